//! The border between C and Rust: nothing unwinds across it, and every error becomes a number.

use crate::log;
use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use usrbio::mount::MOUNT_POINT_MAX;
use usrbio::{Error, Mount};

/// Runs `body`; a panic, which is always a defect of this library, becomes `otherwise`.
#[inline]
pub(crate) fn guard<T>(function: &'static str, otherwise: T, body: impl FnOnce() -> T) -> T {
    // What a panic may leave half done is one ring's or one Iov's state, and those are atomics and plain values.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(_) => {
            tracing::error!("{function}: internal error, please report it");
            otherwise
        }
    }
}

/// Runs a control function, logs why it failed, and answers 0 or a positive errno.
pub(crate) fn errno(function: &'static str, body: impl FnOnce() -> Result<(), Error>) -> c_int {
    log::start();
    guard(function, libc::EIO, || match body() {
        Ok(()) => 0,
        Err(error) => {
            tracing::warn!("{function}: {error}");
            error.errno()
        }
    })
}

/// A NULL argument.
pub(crate) fn null(what: &str) -> Error {
    Error::Invalid(format!("{what} is NULL"))
}

/// The mount point that a caller names.
///
/// # Safety
/// `path` must be NULL or a NUL-terminated string.
pub(crate) unsafe fn mount(path: *const c_char) -> Result<Mount, Error> {
    if path.is_null() {
        return Err(null("the mount point"));
    }
    // SAFETY: a NUL-terminated string (caller), of which no more than 256 bytes are looked at.
    if unsafe { libc::strnlen(path, MOUNT_POINT_MAX + 1) } > MOUNT_POINT_MAX {
        return Err(Error::Invalid(format!("the mount point's path has more than {MOUNT_POINT_MAX} bytes")));
    }
    // SAFETY: as just seen, a string that ends.
    Mount::at(unsafe { path_of(path) }?)
}

/// A path that a caller names.
///
/// # Safety
/// `path` must be NULL or a NUL-terminated string that outlives the result.
pub(crate) unsafe fn path_of<'a>(path: *const c_char) -> Result<&'a Path, Error> {
    if path.is_null() {
        return Err(null("the path"));
    }
    // SAFETY: not NULL, and NUL-terminated as the caller promised.
    Ok(Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes())))
}

/// A mount point as the C structs hold it; [`Mount`] is short enough.
pub(crate) fn mount_field(mount: &Mount) -> [c_char; MOUNT_POINT_MAX + 1] {
    let mut field = [0; MOUNT_POINT_MAX + 1];
    for (to, from) in field.iter_mut().zip(mount.point().as_os_str().as_bytes().iter().take(MOUNT_POINT_MAX))
    {
        *to = *from as c_char;
    }
    field
}
