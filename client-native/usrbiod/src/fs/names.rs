//! Operations on names. Every name is one component, resolved by an `*at` call relative to its parent's fd, and a symbolic
//! link is never followed: nothing leads out of the served directory.

use super::Fs;
use super::opens::{Opener, allows};
use super::types::Opened;
use crate::sys::creds::Scope;
use crate::types::{Caller, Entry, Errno, NodeId, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

fn check(name: &CStr) -> Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    Ok(())
}

impl Fs {
    /// The fd of the directory in which `name` is to be changed.
    fn parent(&self, parent: NodeId, name: &CStr) -> Result<Arc<OwnedFd>> {
        check(name)?;
        self.writable()?;
        self.nodes.path_fd(parent)
    }

    fn entry(&self, (node, stat): (NodeId, Stat)) -> Entry {
        self.asked(node);
        Entry { node, attr: self.nodes.attr(&stat) }
    }

    /// FUSE_LOOKUP. Takes one lookup on the node.
    pub fn lookup(&self, parent: NodeId, name: &CStr) -> Result<Entry> {
        check(name)?;
        Ok(self.entry(self.nodes.lookup(&*self.nodes.path_fd(parent)?, name)?))
    }

    /// FUSE_FORGET, and each part of FUSE_BATCH_FORGET.
    pub fn forget(&self, node: NodeId, nlookup: u64) {
        self.nodes.forget(node, nlookup, || self.opens.find(node).is_some());
        self.gone.forget(node);
    }

    /// FUSE_SYMLINK.
    pub fn symlink(&self, parent: NodeId, name: &CStr, target: &CStr, caller: &Caller) -> Result<Entry> {
        let dir = self.parent(parent, name)?;
        let scope = Scope::owner(caller.uid, caller.gid, 0)?;
        rustix::fs::symlinkat(target, &*dir, name)?;
        drop(scope);
        Ok(self.entry(self.nodes.lookup_new(&*dir, name)?))
    }

    /// FUSE_MKNOD; `rdev` in the kernel's 32-bit encoding.
    pub fn mknod(
        &self,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        caller: &Caller,
    ) -> Result<Entry> {
        let dir = self.parent(parent, name)?;
        let scope = create_scope(&dir, mode, umask, caller)?;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Unknown => FileType::RegularFile,
            kind => kind,
        };
        rustix::fs::mknodat(&*dir, name, kind, permissions(mode), u64::from(rdev))?;
        drop(scope);
        Ok(self.entry(self.nodes.lookup_new(&*dir, name)?))
    }

    /// FUSE_MKDIR.
    pub fn mkdir(
        &self,
        parent: NodeId,
        name: &CStr,
        mode: u32,
        umask: u32,
        caller: &Caller,
    ) -> Result<Entry> {
        let dir = self.parent(parent, name)?;
        let scope = Scope::owner(caller.uid, caller.gid, umask)?;
        rustix::fs::mkdirat(&*dir, name, permissions(mode))?;
        drop(scope);
        Ok(self.entry(self.nodes.lookup_new(&*dir, name)?))
    }

    /// FUSE_UNLINK.
    pub fn unlink(&self, parent: NodeId, name: &CStr) -> Result<()> {
        let dir = self.parent(parent, name)?;
        self.removing(&*dir, name, || rustix::fs::unlinkat(&*dir, name, AtFlags::empty()))
    }

    /// FUSE_RMDIR.
    pub fn rmdir(&self, parent: NodeId, name: &CStr) -> Result<()> {
        rustix::fs::unlinkat(&*self.parent(parent, name)?, name, AtFlags::REMOVEDIR)
    }

    /// FUSE_RENAME and FUSE_RENAME2, with `RENAME_*` flags.
    pub fn rename(
        &self,
        parent: NodeId,
        name: &CStr,
        new_parent: NodeId,
        new_name: &CStr,
        flags: u32,
    ) -> Result<()> {
        let from = self.parent(parent, name)?;
        let to = self.parent(new_parent, new_name)?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let rename = || rustix::fs::renameat_with(&*from, name, &*to, new_name, flags);
        if flags.intersects(RenameFlags::EXCHANGE | RenameFlags::NOREPLACE) {
            return rename();
        }
        self.removing(&*to, new_name, rename)
    }

    /// FUSE_LINK.
    pub fn link(&self, node: NodeId, new_parent: NodeId, new_name: &CStr) -> Result<Entry> {
        let dir = self.parent(new_parent, new_name)?;
        let file = self.nodes.path_fd(node)?;
        rustix::fs::linkat(&*file, c"", &*dir, new_name, AtFlags::EMPTY_PATH)?;
        Ok(self.entry(self.nodes.adopt_open(&*file)?))
    }

    /// FUSE_CREATE; `flags` are those of `open(2)`.
    #[allow(clippy::too_many_arguments, reason = "the fields of the request")]
    pub fn create(
        &self,
        parent: NodeId,
        name: &CStr,
        flags: u32,
        mode: u32,
        umask: u32,
        caller: &Caller,
        tgid: u32,
    ) -> Result<(Entry, Opened)> {
        let dir = self.parent(parent, name)?;
        let opener = Opener { uid: caller.uid, tgid, flags: OFlags::from_bits_retain(flags) };
        let how = access_mode(opener.flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let scope = create_scope(&dir, mode, umask, caller)?;
        let open = || rustix::fs::openat(&*dir, name, how | OFlags::CLOEXEC, permissions(mode));
        let made = self.nodes.with_room(open);
        drop(scope);
        match made {
            // Somebody made the file since the kernel looked. Opening it here would pass over the kernel's check of
            // its permissions; at ESTALE it looks again, checks and opens.
            Err(Errno::EXIST) if !opener.flags.contains(OFlags::EXCL) => Err(Errno::STALE),
            made => self.open_made(made?, opener),
        }
    }

    /// FUSE_TMPFILE.
    pub fn tmpfile(
        &self,
        parent: NodeId,
        flags: u32,
        mode: u32,
        umask: u32,
        caller: &Caller,
        tgid: u32,
    ) -> Result<(Entry, Opened)> {
        let dir = self.parent(parent, c"tmpfile")?;
        let opener = Opener { uid: caller.uid, tgid, flags: OFlags::from_bits_retain(flags) };
        let excl = opener.flags & OFlags::EXCL;
        let how = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC | excl;
        let scope = create_scope(&dir, mode, umask, caller)?;
        let made = self.nodes.with_room(|| rustix::fs::openat(&*dir, c".", how, permissions(mode)));
        drop(scope);
        self.open_made(made?, opener)
    }

    fn open_made(&self, file: OwnedFd, opener: Opener) -> Result<(Entry, Opened)> {
        let entry = self.entry(self.nodes.adopt_open(&file)?);
        match self.open_as(entry.node, opener, Some(file)) {
            Ok(opened) => Ok((entry, opened)),
            Err(error) => {
                self.forget(entry.node, 1);
                Err(error)
            }
        }
    }
}

/// Acts as the caller while something is created in `dir`.
fn create_scope(dir: &OwnedFd, mode: u32, umask: u32, caller: &Caller) -> Result<Scope> {
    const SETGID_PROGRAM: u32 = 0o2010;
    let mut gid = caller.gid;
    if mode & SETGID_PROGRAM == SETGID_PROGRAM {
        // The kernel has cleared the bit already if the caller may not give it to the directory's group; the backing file
        // system does not see the caller's other groups and would clear it in any case.
        let parent = rustix::fs::fstat(dir)?;
        if parent.st_mode & 0o2000 != 0 {
            gid = parent.st_gid;
        }
    }
    Scope::owner(caller.uid, gid, umask)
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// One fd serves every later open of the file, so a writer's is for reading as well.
fn access_mode(flags: OFlags) -> OFlags {
    if allows(flags, true) { OFlags::RDWR } else { OFlags::RDONLY }
}
