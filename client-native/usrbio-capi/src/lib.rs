//! usrbio-capi
