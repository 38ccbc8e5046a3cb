//! The system calls that rustix lacks. Callers hold no `unsafe`.

use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, AsRawFd};

fn done(rc: libc::c_long) -> Result<()> {
    if rc == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

/// `chmod` of the node behind any fd, also one that only names it (`fchmodat2`, Linux 6.6).
pub fn chmod(fd: impl AsFd, mode: u32) -> Result<()> {
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: an fd, a C string that lives as long as the program, and two integers.
    done(unsafe {
        libc::syscall(SYS_FCHMODAT2, fd.as_fd().as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH)
    })
}

/// Sets attributes (`MOUNT_ATTR_*`) of the mount whose root `fd` is.
pub fn set_mount_attributes(fd: impl AsFd, attributes: u64) -> Result<()> {
    // Of the ways to treat times of access one takes the place of another.
    let replaced = if attributes & libc::MOUNT_ATTR__ATIME == 0 { 0 } else { libc::MOUNT_ATTR__ATIME };
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: replaced, propagation: 0, userns_fd: 0 };
    let (flags, size) = (libc::AT_EMPTY_PATH, size_of::<libc::mount_attr>());
    // SAFETY: the kernel reads `size` bytes of `wanted`, which is that long.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size,
        )
    })
}

/// Reads and writes of this process come after those of others, where the block device has a scheduler.
pub fn lower_io_priority() -> Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const BEST_EFFORT_LOWEST: libc::c_int = (2 << 13) | 7;
    // SAFETY: three integers; 0 is the calling process.
    done(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, BEST_EFFORT_LOWEST) })
}
