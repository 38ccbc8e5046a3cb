//! Attributes, extended attributes, and what the file system as a whole says of itself.

use super::Fs;
use super::space::Space;
use super::types::{SetAttr, SetTime, Statfs, Statx};
use crate::sys::creds::{Scope, prepare_thread};
use crate::sys::path::{chmod, proc_path};
use crate::types::{Attr, Errno, NodeId, Result};
use rustix::fs::{AtFlags, Gid, OFlags, StatxFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::ffi::CStr;
use std::os::fd::OwnedFd;

/// `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const XATTR_MAX: usize = 65_536;
const SETGID: u32 = 0o2000;

impl Fs {
    /// FUSE_GETATTR.
    pub fn getattr(&self, node: NodeId) -> Result<Attr> {
        let fd = self.nodes.path_fd(node)?;
        self.asked(node);
        Ok(self.nodes.attr(&rustix::fs::fstat(&*fd)?))
    }

    /// FUSE_STATX.
    pub fn statx(&self, node: NodeId, mask: u32, flags: u32) -> Result<Statx> {
        let fd = self.nodes.path_fd(node)?;
        let attr = self.getattr(node)?;
        let sync = AtFlags::STATX_FORCE_SYNC | AtFlags::STATX_DONT_SYNC;
        let flags = AtFlags::EMPTY_PATH | AtFlags::from_bits_truncate(flags) & sync;
        let known = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat = rustix::fs::statx(&*fd, c"", flags, StatxFlags::from_bits_truncate(mask) | known)?;
        Ok(Statx {
            mask: (StatxFlags::from_bits_retain(stat.stx_mask) & known).bits(),
            attributes: stat.stx_attributes.bits(),
            attributes_mask: stat.stx_attributes_mask.bits(),
            attr,
            btime: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        })
    }

    /// FUSE_SETATTR.
    pub fn setattr(&self, node: NodeId, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let fd = self.nodes.path_fd(node)?;
        if let Some(size) = set.size {
            self.truncate(node, set.fh, size)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            rustix::fs::chownat(&*fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = set.mode {
            let _scope = group_scope(&fd, mode & SETGID != 0)?;
            chmod(&*fd, mode & 0o7777)?;
        }
        if set.atime != SetTime::Omit || set.mtime != SetTime::Omit {
            let times = Timestamps { last_access: time(set.atime), last_modification: time(set.mtime) };
            rustix::fs::utimensat(&*fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        self.getattr(node)
    }

    /// Sets the length, which also clears set-id bits.
    pub(super) fn truncate(&self, node: NodeId, fh: Option<u64>, size: u64) -> Result<()> {
        prepare_thread()?;
        match fh {
            Some(fh) => rustix::fs::ftruncate(&self.opens.file(&self.nodes, node, fh, true)?.fd, size)?,
            None => {
                let file = self.nodes.reopen(node, OFlags::WRONLY | OFlags::NONBLOCK)?;
                rustix::fs::ftruncate(file, size)?;
            }
        }
        self.holes_made(node);
        Ok(())
    }

    /// FUSE_READLINK.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let fd = self.nodes.path_fd(node)?;
        Ok(rustix::fs::readlinkat(&*fd, c"", Vec::new())?.into_bytes())
    }

    /// FUSE_ACCESS. The kernel checks (`default_permissions`), so this only says that the node exists.
    pub fn access(&self, node: NodeId) -> Result<()> {
        self.nodes.key(node).map(drop)
    }

    /// Has `statfs` answer for a volume of that size from now on.
    pub fn set_space(&self, space: Space) {
        *self.space.lock().unwrap_or_else(|e| e.into_inner()) = space;
    }

    /// FUSE_STATFS.
    pub fn statfs(&self, node: NodeId) -> Result<Statfs> {
        let stat = rustix::fs::fstatvfs(&*self.nodes.path_fd(node)?)?;
        let space = *self.space.lock().unwrap_or_else(|e| e.into_inner());
        Ok(space.of_volume(Statfs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: u32::try_from(stat.f_bsize).unwrap_or(u32::MAX),
            namelen: u32::try_from(stat.f_namemax).unwrap_or(u32::MAX),
            frsize: u32::try_from(stat.f_frsize).unwrap_or(u32::MAX),
        }))
    }

    /// FUSE_SYNCFS.
    pub fn syncfs(&self, node: NodeId) -> Result<()> {
        let _ = node;
        rustix::fs::syncfs(&self.nodes.mount)
    }

    /// FUSE_SETXATTR with the flags of `setxattr(2)`; `kill_sgid` is `FUSE_SETXATTR_ACL_KILL_SGID`.
    pub fn setxattr(
        &self,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
    ) -> Result<()> {
        self.writable()?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let fd = self.nodes.path_fd(node)?;
        // An ACL carries mode bits, and the file system clears set-group-id for who is not in the group.
        let _scope = group_scope(&fd, name == c"system.posix_acl_access" && !kill_sgid)?;
        rustix::fs::setxattr(proc_path(&*fd), name, value, flags)
    }

    /// FUSE_GETXATTR: the value; the caller compares its length with the room there is (`ERANGE`, or the length for 0).
    pub fn getxattr(&self, node: NodeId, name: &CStr) -> Result<Vec<u8>> {
        let path = proc_path(&*self.nodes.path_fd(node)?);
        with_buffer(|buf| rustix::fs::getxattr(&path, name, buf))
    }

    /// FUSE_LISTXATTR: NUL-terminated names, to be treated as for `getxattr`. As local file systems do it, `trusted.*` is
    /// named only to who may read it: if `is_admin` says so.
    pub fn listxattr(&self, node: NodeId, is_admin: impl FnOnce() -> bool) -> Result<Vec<u8>> {
        let path = proc_path(&*self.nodes.path_fd(node)?);
        let names = with_buffer(|buf| rustix::fs::listxattr(&path, buf))?;
        let is_trusted = |name: &[u8]| name.starts_with(b"trusted.");
        let mut each = names.split_inclusive(|byte| *byte == 0);
        if !each.clone().any(is_trusted) || is_admin() {
            return Ok(names);
        }
        Ok(each.by_ref().filter(|name| !is_trusted(name)).flatten().copied().collect())
    }

    /// FUSE_REMOVEXATTR.
    pub fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        self.writable()?;
        rustix::fs::removexattr(proc_path(&*self.nodes.path_fd(node)?), name)
    }
}

/// When `member`, acts as a member of the file's group: without CAP_FSETID only a member keeps its set-group-id bit. That the
/// caller may have it was checked by the kernel.
fn group_scope(fd: &OwnedFd, member: bool) -> Result<Option<Scope>> {
    if !member {
        return Ok(None);
    }
    Scope::owner(0, rustix::fs::fstat(fd)?.st_gid, 0).map(Some)
}

fn time(set: SetTime) -> Timespec {
    match set {
        SetTime::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        SetTime::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        SetTime::At(tv_sec, nanoseconds) => Timespec { tv_sec, tv_nsec: nanoseconds.into() },
    }
}

/// What `call` puts into a buffer: first into a small one, since most values are.
fn with_buffer(call: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buf = vec![0; 1024];
    let len = match call(&mut buf) {
        Err(Errno::RANGE) => {
            buf.resize(XATTR_MAX, 0);
            call(&mut buf)?
        }
        len => len?,
    };
    buf.truncate(len);
    Ok(buf)
}
