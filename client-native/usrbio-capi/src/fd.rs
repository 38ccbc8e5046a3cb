//! `hf3fs_reg_fd`, `hf3fs_dereg_fd`: the files that requests may name.

use crate::boundary::{errno, guard};
use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use usrbio::Error;
use usrbio::fd::TABLE;

/// Runs `body` on a caller's fd number, if it can be one.
pub(crate) fn with_fd<T>(fd: c_int, body: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    // SAFETY: not -1, the one number that the type excludes. A number that is not open gives EBADF from every
    // system call; whose file it names is the C caller's concern.
    (fd >= 0).then(|| body(unsafe { BorrowedFd::borrow_raw(fd) }))
}

/// Registers a file. Its handle, 0 or less, or a **positive** errno. The flags mean nothing.
#[unsafe(no_mangle)]
pub extern "C" fn hf3fs_reg_fd(fd: c_int, _flags: u64) -> c_int {
    let mut handle = 0;
    let rc = errno("hf3fs_reg_fd", || {
        handle = with_fd(fd, |fd| TABLE.register(fd)).unwrap_or(Err(Error::NotOn3fs(fd)))?;
        Ok(())
    });
    if rc == 0 { handle } else { rc }
}

/// Ends a registration, by the fd's number (also after it was closed) or by the handle.
#[unsafe(no_mangle)]
pub extern "C" fn hf3fs_dereg_fd(fd: c_int) {
    guard("hf3fs_dereg_fd", (), || TABLE.deregister(fd));
}
