//! Leases on files (`F_SETLEASE`).

use super::last_errno;
use crate::types::Result;
use std::os::fd::{AsFd, AsRawFd};

/// Takes a write lease on a regular file: the kernel grants it only if no other open file description refers to the
/// file, which a mapping also does. `EAGAIN`: there is one. The lease ends when `fd` is closed. Wants the thread's file
/// system user to own the file. Whoever opens the file meanwhile waits, and the process gets `SIGIO`.
pub fn lease_for_writing(fd: impl AsFd) -> Result<()> {
    // SAFETY: no memory is involved.
    let rc = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}
