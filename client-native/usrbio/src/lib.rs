//! usrbio
