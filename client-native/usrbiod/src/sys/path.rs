//! Calls on the inode behind an `O_PATH` fd that POSIX has only for paths.

use super::last_errno;
use crate::types::{Errno, Result};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

/// The path under which the kernel resolves `fd` to its inode, without following a link that it may be.
pub fn proc_path(fd: impl AsFd) -> CString {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    CString::new(path).unwrap_or_default()
}

/// `chmod` of the inode behind any fd, not following it if it is a link: `fchmodat2` (Linux 6.6), else by `/proc`.
pub fn chmod(fd: impl AsFd, mode: u32) -> Result<()> {
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: four integers and an empty C string.
    let rc = unsafe {
        libc::syscall(SYS_FCHMODAT2, fd.as_fd().as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH)
    };
    if rc == 0 {
        return Ok(());
    }
    match last_errno() {
        // A seccomp profile that does not know the call answers EPERM.
        Errno::NOSYS | Errno::PERM => {
            rustix::fs::chmod(proc_path(fd), rustix::fs::Mode::from_raw_mode(mode & 0o7777))
        }
        error => Err(error),
    }
}
