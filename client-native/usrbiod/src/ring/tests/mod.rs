//! Tests of the rings, with a client end of their own.

mod holes;
mod hostile;
mod isolation;
mod peer;
mod registration;
mod requests;
mod serving;
mod sweep;
mod takeover;
