//! The client's errors as Python's: a wrong argument is a ValueError, everything else an OSError with its errno.

use pyo3::PyErr;
use pyo3::exceptions::{PyOSError, PyValueError};
use rustix::io::Errno;
use usrbio::{Error, PrepError};

/// An OSError; Python makes the subclass that fits the errno.
pub fn os_error(errno: i32, message: impl std::fmt::Display) -> PyErr {
    PyOSError::new_err((errno, message.to_string()))
}

/// What Python raises for an error of the client.
pub fn raise(error: Error) -> PyErr {
    match error {
        Error::Invalid(message) => PyValueError::new_err(message),
        // 3FS has no errno for it, and FileNotFoundError would be misleading: the path is there.
        Error::NoMount(_) => os_error(Errno::NODEV.raw_os_error(), error),
        _ => os_error(error.errno(), &error),
    }
}

/// What Python raises for a request that was not queued.
pub fn raise_prep(error: PrepError) -> PyErr {
    os_error(error.errno(), error)
}

/// What Python raises for the use of something closed.
pub fn closed(what: &str) -> PyErr {
    PyValueError::new_err(format!("the {what} is closed"))
}
