//! Mounting FUSE, and what is mounted where.

use super::mountinfo::{Line, unescape};
use crate::types::{Errno, Result};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file system type that USRBIO clients look for.
pub const FSTYPE: &str = "fuse.hf3fs";

/// Longest read that the kernel sends.
const MAX_READ: u32 = 1 << 20;

/// Mounts `/dev/fuse` fd `fuse` at `target`. The mount lives as long as any duplicate of the fd.
pub fn mount_fuse(fuse: &OwnedFd, cluster: &str, target: &Path) -> Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={MAX_READ}",
        fuse.as_raw_fd()
    );
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(format!("hf3fs.{cluster}"), target, FSTYPE, flags, Some(options.as_c_str()))
}

/// Unmounts `target`; a mount that is in use goes when its last file is closed. `true`: it was not in use.
pub fn unmount(target: &Path) -> Result<bool> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) => {
            rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
            Ok(false)
        }
        Err(errno) => Err(errno),
    }
}

/// The types of what is mounted at exactly `path`, the topmost last.
pub fn mounted_at(path: &Path) -> std::io::Result<Vec<String>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let there = Line::all(&table).filter(|line| unescape(line.at) == path);
    Ok(there.map(|line| String::from_utf8_lossy(line.fstype).into_owned()).collect())
}

/// Is `path` a FUSE mount that lost its daemon?
pub fn is_dead(path: &Path) -> bool {
    rustix::fs::stat(path.as_os_str().as_bytes()).is_err_and(|errno| errno == Errno::NOTCONN)
}
