//! Tests of the rings, with a client end of their own.

mod hostile;
mod peer;
mod registration;
mod requests;
mod serving;
mod sweep;
mod takeover;
