//! The ioctls of `/dev/fuse`.

use crate::types::{Errno, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
/// `_IOW(229, 2, u32)`.
const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

const _: () = assert!(size_of::<BackingMap>() == 16);

/// Makes `file` a backing file of the connection `fuse`; its id. Needs CAP_SYS_ADMIN; passthrough I/O runs with the
/// credentials of this call.
pub fn backing_open(fuse: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the kernel reads one `fuse_backing_map` at the address, which is what `map` is.
    let id = unsafe { libc::ioctl(fuse.as_raw_fd(), BACKING_OPEN as _, &raw const map) };
    match u32::try_from(id) {
        Ok(id) if id > 0 => Ok(id),
        Ok(_) => Err(Errno::PROTO),
        Err(_) => Err(last()),
    }
}

/// Drops a backing id. Open files that use it keep it.
pub fn backing_close(fuse: BorrowedFd<'_>, id: u32) -> Result<()> {
    // SAFETY: the kernel reads one `u32` at the address.
    match unsafe { libc::ioctl(fuse.as_raw_fd(), BACKING_CLOSE as _, &raw const id) } {
        0.. => Ok(()),
        _ => Err(last()),
    }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
