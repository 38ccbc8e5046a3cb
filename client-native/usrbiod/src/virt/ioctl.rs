//! ioctls of the mount: what 3FS's own tools and its client library ask for.

use super::as_caller::as_caller;
use super::paths::open_parent;
use super::{Ioctl, Virt, nodes::Virtual};
use crate::clients::asker;
use crate::sys::path::proc_path;
use crate::types::{Caller, Errno, Ino, NodeId, Result, UNKNOWN_ID};
use rustix::fs::{AtFlags, FallocateFlags, FileType, IFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use usrbio_wire::IovName;
use usrbio_wire::ioctl::{self, HardlinkArg, MoveArg, PunchHoleArg, RegisterArg, RemoveArg, UnregisterArg};
use zerocopy::FromBytes;

/// From a 32-bit process (`FUSE_IOCTL_COMPAT`).
const COMPAT: u32 = 1 << 0;
/// On a directory (`FUSE_IOCTL_DIR`).
const ON_DIRECTORY: u32 = 1 << 4;

const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// `struct fsxattr`, of which the first word is used.
const FSXATTR_LEN: usize = 28;
const FS_XFLAG_IMMUTABLE: u32 = 0x8;

const NAME_FIELD: usize = 32;

impl Virt {
    /// An ioctl on a virtual or an ordinary node: the bytes to answer.
    pub fn ioctl(&self, call: &Ioctl<'_>, caller: &Caller) -> Result<Vec<u8>> {
        if call.flags & COMPAT != 0 {
            return Err(Errno::NOSYS);
        }
        match call.cmd {
            ioctl::GET_MOUNT_NAME => call.answer(self.mount_name().to_vec()),
            ioctl::GET_PATH_OFFSET => {
                call.number(u32::try_from(self.parts.mount_point.as_os_str().len()).unwrap_or(u32::MAX))
            }
            ioctl::GET_MAGIC_NUM => call.number(ioctl::SUPER_MAGIC),
            ioctl::GET_IOCTL_VERSION => call.number(ioctl::IOCTL_VERSION),
            _ if call.node.is_virtual() => match call.cmd {
                ioctl::FSYNC => Ok(Vec::new()),
                ioctl::REGISTER | ioctl::UNREGISTER if Virtual::of(call.node) == Some(Virtual::Iovs) => {
                    self.registration(call, caller)
                }
                ioctl::RECURSIVE_RM | ioctl::HARDLINK | ioctl::PUNCH_HOLE | ioctl::MOVE | ioctl::REMOVE => {
                    Err(Errno::PERM)
                }
                _ => Err(Errno::INVAL),
            },
            FS_IOC_GETFLAGS => call.number(self.flags(call.node)?.bits()),
            FS_IOC_FSGETXATTR => self.fsxattr(call),
            ioctl::FSYNC => self.fsync(call),
            FS_IOC_SETFLAGS => self.changes(caller, |this| this.set_flags(call)),
            ioctl::RECURSIVE_RM => self.changes(caller, |this| this.remove_node(call.node, caller)),
            ioctl::HARDLINK => self.changes(caller, |this| this.hardlink(call, caller)),
            ioctl::PUNCH_HOLE => self.changes(caller, |this| this.punch_hole(call)),
            ioctl::MOVE => self.changes(caller, |this| this.move_name(call, caller)),
            ioctl::REMOVE => self.changes(caller, |this| this.remove_name(call, caller)),
            _ => Err(Errno::INVAL),
        }
    }

    /// As a link in `iovs` that is made or removed, for callers whose mount is read-only. It answers no bytes. A ring for
    /// writes is refused (`EROFS`) to a caller who can write nowhere; for a user namespace the kernel does not say who
    /// calls (`EPERM`).
    fn registration(&self, call: &Ioctl<'_>, caller: &Caller) -> Result<Vec<u8>> {
        if caller.uid == UNKNOWN_ID {
            return Err(Errno::PERM);
        }
        let text = |field| CStr::from_bytes_until_nul(field).map_err(|_| Errno::INVAL);
        if call.cmd == ioctl::UNREGISTER {
            let arg = UnregisterArg::read_from_bytes(call.input).map_err(|_| Errno::INVAL)?;
            return self.unregister(text(&arg.name)?, caller).map(|()| Vec::new());
        }
        let arg = RegisterArg::read_from_bytes(call.input).map_err(|_| Errno::INVAL)?;
        let (name, target) = (text(&arg.name)?, text(&arg.target)?);
        let writes = name.to_str().ok().and_then(|name| IovName::parse(name).ok()?.ring);
        if writes.is_some_and(|ring| !ring.for_read) && !self.seen_by(caller)?.is_writable() {
            return Err(Errno::ROFS);
        }
        self.register(name, target, caller).map(|_| Vec::new())
    }

    /// Was this `REGISTER` carried out before?
    pub fn was_registered(&self, input: &[u8], caller: &Caller) -> bool {
        let Ok(arg) = RegisterArg::read_from_bytes(input) else { return false };
        let text = |field| CStr::from_bytes_until_nul(field).ok()?.to_str().ok();
        let (Some(name), Some(target)) = (text(&arg.name), text(&arg.target)) else { return false };
        let found = self.parts.rings.find(name);
        found.is_some_and(|info| info.target == target && asker(caller).may_manage(&info.owner))
    }

    /// What changes something answers no bytes.
    fn changes(&self, caller: &Caller, change: impl FnOnce(&Virt) -> Result<()>) -> Result<Vec<u8>> {
        self.check_writable(caller)?;
        change(self).map(|()| Vec::new())
    }

    /// The cluster's id, NUL-padded.
    fn mount_name(&self) -> [u8; NAME_FIELD] {
        let mut field = [0; NAME_FIELD];
        let id = self.parts.cluster.as_bytes();
        let len = id.len().min(NAME_FIELD - 1);
        field[..len].copy_from_slice(&id[..len]);
        field
    }

    /// Flushes, and makes the kernel ask for length and data again before this is answered. No bytes are answered: the
    /// Python client passes no place for any.
    fn fsync(&self, call: &Ioctl<'_>) -> Result<Vec<u8>> {
        let fs = &self.parts.fs;
        if call.flags & ON_DIRECTORY != 0 {
            fs.fsyncdir(call.node, call.fh, false)?;
        } else {
            fs.fsync(call.node, call.fh, false)?;
        }
        self.forget_inode(call.node);
        Ok(Vec::new())
    }

    fn forget_inode(&self, node: NodeId) {
        let notes = &self.parts.channel.notes;
        notes.settle(notes.push(self.parts.fs.stale(node)));
    }

    /// Links the file of the fd to another name.
    fn hardlink(&self, call: &Ioctl<'_>, caller: &Caller) -> Result<()> {
        let arg = HardlinkArg::read_from_bytes(call.input).map_err(|_| Errno::INVAL)?;
        let parent = self.directory(arg.parent)?;
        let name = self.name(parent, &arg.name)?;
        let view = self.seen_by(caller)?;
        self.may_change(&view, parent)?;
        // What it may only look at where it is, it could change by the new name.
        self.may_change(&view, call.node)?;
        let (file, dir) = (self.parts.fs.path_fd(call.node)?, self.parts.fs.path_fd(parent)?);
        as_caller(caller, || {
            rustix::fs::linkat(rustix::fs::CWD, proc_path(&*file), &*dir, &name, AtFlags::SYMLINK_FOLLOW)
        })?;
        self.forget_names(vec![(parent, name)]);
        self.forget_inode(call.node);
        Ok(())
    }

    /// Punches holes through the fd, which must be open for writing (`EBADF`): so the kernel has judged who may.
    fn punch_hole(&self, call: &Ioctl<'_>) -> Result<()> {
        let arg = PunchHoleArg::read_from_bytes(call.input).map_err(|_| Errno::INVAL)?;
        let fs = &self.parts.fs;
        let stat = rustix::fs::fstat(&*fs.path_fd(call.node)?)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let ranges = ranges(&arg, u64::try_from(stat.st_blksize).unwrap_or(4096).max(1))?;
        let mode = (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE).bits();
        let punch = |(start, len)| fs.fallocate(call.node, call.fh, start, len, mode);
        let punched = ranges.into_iter().try_for_each(punch);
        self.forget_inode(call.node);
        punched
    }

    /// Renames a name of the fd's directory. The trash is a directory like others.
    fn move_name(&self, call: &Ioctl<'_>, caller: &Caller) -> Result<()> {
        let arg = MoveArg::read_from_bytes(call.input).map_err(|_| Errno::INVAL)?;
        let from = self.own_directory(call, arg.src_parent)?;
        let to = self.directory(arg.dst_parent)?;
        let (old, new) = (self.name(from, &arg.src_name)?, self.name(to, &arg.dst_name)?);
        let view = self.seen_by(caller)?;
        self.may_take_away(&view, from, &old)?;
        self.may_take_away(&view, to, &new)?;
        let (old_dir, new_dir) = (self.parts.fs.path_fd(from)?, self.parts.fs.path_fd(to)?);
        let rename = || as_caller(caller, || rustix::fs::renameat(&*old_dir, &old, &*new_dir, &new));
        self.parts.fs.removing(&*new_dir, &new, rename)?;
        self.forget_names(vec![(from, old), (to, new)]);
        Ok(())
    }

    /// Removes a name of the fd's directory.
    fn remove_name(&self, call: &Ioctl<'_>, caller: &Caller) -> Result<()> {
        let arg = RemoveArg::read_from_bytes(call.input).map_err(|_| Errno::INVAL)?;
        let parent = self.own_directory(call, arg.parent)?;
        let name = self.name(parent, &arg.name)?;
        self.may_take_away(&self.seen_by(caller)?, parent, &name)?;
        let dir = self.parts.fs.path_fd(parent)?;
        if arg.recursive != 0 {
            return self.remove_below(&dir, &name, caller);
        }
        let unlink = || match rustix::fs::unlinkat(&*dir, &name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&*dir, &name, AtFlags::REMOVEDIR),
            done => done,
        };
        self.parts.fs.removing(&*dir, &name, || as_caller(caller, unlink))?;
        self.forget_names(vec![(parent, name)]);
        Ok(())
    }

    /// Removes the tree, or the file, that the fd refers to.
    fn remove_node(&self, node: NodeId, caller: &Caller) -> Result<()> {
        let (path, parent, name) = self.place_of(node)?;
        self.seen_by(caller)?.may_take_away(&path)?;
        self.remove_below(&parent, &name, caller)
    }

    /// Where a node lies, the directory there and its name in it. `EBUSY`: it is the root. `ENOENT`: it has no name in the backing directory any more.
    fn place_of(&self, node: NodeId) -> Result<(PathBuf, OwnedFd, CString)> {
        if node == NodeId::ROOT {
            return Err(Errno::BUSY);
        }
        let (root, fd) = (self.parts.fs.path_fd(NodeId::ROOT)?, self.parts.fs.path_fd(node)?);
        let path = self.parts.fs.path_of(node)?;
        let (parent, name) = open_parent(&*root, &path)?;
        // The kernel's path was right a moment ago, and names may end in " (deleted)": is it the node still?
        let found = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let own = rustix::fs::fstat(&*fd)?;
        if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino) {
            Ok((path, parent, name))
        } else {
            Err(Errno::NOENT)
        }
    }

    /// The flags of which the kernel may know: only whether the file is immutable.
    fn flags(&self, node: NodeId) -> Result<IFlags> {
        let fd = self.parts.fs.path_fd(node)?;
        let stat = rustix::fs::statx(&*fd, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        let immutable = stat.stx_attributes.contains(StatxAttributes::IMMUTABLE);
        Ok(if immutable { IFlags::IMMUTABLE } else { IFlags::empty() })
    }

    fn fsxattr(&self, call: &Ioctl<'_>) -> Result<Vec<u8>> {
        let immutable = self.flags(call.node)?.contains(IFlags::IMMUTABLE);
        let mut out = vec![0; FSXATTR_LEN];
        out[..4].copy_from_slice(&if immutable { FS_XFLAG_IMMUTABLE } else { 0 }.to_ne_bytes());
        call.answer(out)
    }

    /// Makes a file immutable or not. The kernel lets only those through who may; the daemon itself needs
    /// `CAP_LINUX_IMMUTABLE` as well, else `EPERM`. `EOPNOTSUPP` for other flags.
    fn set_flags(&self, call: &Ioctl<'_>) -> Result<()> {
        let wanted = u32::read_from_bytes(call.input).map_err(|_| Errno::INVAL)?;
        if wanted & !IFlags::IMMUTABLE.bits() != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let wanted = IFlags::from_bits_retain(wanted);
        if self.flags(call.node)? == wanted {
            return Ok(());
        }
        let fd = self.parts.fs.path_fd(call.node)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&*fd)?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = rustix::fs::open(proc_path(&*fd), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let others = rustix::fs::ioctl_getflags(&file)? & !IFlags::IMMUTABLE;
        rustix::fs::ioctl_setflags(&file, others | wanted)
    }

    /// The directory that an argument names by inode number. `ENOENT`: the kernel knows none.
    fn directory(&self, ino: u64) -> Result<NodeId> {
        self.parts.fs.node_of(Ino(ino)).ok_or(Errno::NOENT)
    }

    /// The same, where it must be that of the fd.
    fn own_directory(&self, call: &Ioctl<'_>, ino: u64) -> Result<NodeId> {
        if self.parts.fs.node_of(Ino(ino)) == Some(call.node) { Ok(call.node) } else { Err(Errno::INVAL) }
    }

    /// A name in `parent`, from a field that a NUL ends.
    fn name(&self, parent: NodeId, field: &[u8]) -> Result<CString> {
        let name = CStr::from_bytes_until_nul(field).map_err(|_| Errno::INVAL)?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ if Self::owns(parent, name) || Self::is_reserved(name) => Err(Errno::PERM),
            _ => Ok(name.to_owned()),
        }
    }
}

impl Ioctl<'_> {
    fn number(&self, number: u32) -> Result<Vec<u8>> {
        self.answer(number.to_ne_bytes().to_vec())
    }

    fn answer(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        if bytes.len() <= self.out_size as usize { Ok(bytes) } else { Err(Errno::INVAL) }
    }
}

/// First byte and length of what is to be punched. `EINVAL`: more ranges than there can be, one that is none, or one that is
/// not made of whole chunks.
fn ranges(arg: &PunchHoleArg, chunk: u64) -> Result<Vec<(u64, u64)>> {
    let n = usize::try_from(arg.n).ok().filter(|n| *n <= ioctl::PUNCH_HOLE_MAX).ok_or(Errno::INVAL)?;
    let mut ranges = Vec::with_capacity(n);
    for (start, end) in arg.start[..n].iter().zip(&arg.end[..n]) {
        let whole = start.is_multiple_of(chunk) && end.is_multiple_of(chunk);
        if !whole || start > end || *end > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        if start < end {
            ranges.push((*start, end - start));
        }
    }
    Ok(ranges)
}
