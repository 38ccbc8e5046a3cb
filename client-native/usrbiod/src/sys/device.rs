//! What a file lies on.

use crate::types::Result;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`.
const BTRFS_FS_INFO: libc::c_ulong = 0x8400_941f;
const BTRFS_MAGIC: u32 = 0x9123_683e;

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C, align(8))]
struct BtrfsFsInfo([u8; 1024]);

/// A number that files of one file system share: `st_dev`, or on btrfs, where each subvolume has one of its own, a part of
/// the file system's UUID.
pub fn of(fd: impl AsFd) -> Result<u64> {
    let fd = fd.as_fd();
    let device = rustix::fs::fstat(fd)?.st_dev;
    if rustix::fs::fstatfs(fd)?.f_type as u32 != BTRFS_MAGIC {
        return Ok(device);
    }
    let mut info = BtrfsFsInfo([0; 1024]);
    // SAFETY: the kernel writes one `btrfs_ioctl_fs_info_args`, 1024 bytes, at the address, which is what `info` is.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), BTRFS_FS_INFO as _, &raw mut info) };
    // Behind `max_id` and `num_devices`, 8 bytes each.
    let uuid = info.0[16..24].try_into().map_or(0, u64::from_ne_bytes);
    Ok(if rc == 0 { uuid } else { device })
}
