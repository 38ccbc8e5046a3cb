//! Tests of the rings, with a client end of their own.
