//! Links and renames that are orders: remove a tree, move a file.

use super::as_caller::as_caller;
use super::paths::{arguments_are_safe, command_line, open_parent};
use super::remove_tree::remove_tree;
use super::{TREE_NAME, Virt, nodes::Virtual};
use crate::fuse::Note;
use crate::types::{Caller, Entry, Errno, Ino, NodeId, Result};
use rustix::fs::{AtFlags, RenameFlags};
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A link with a target that begins so is an order to rename.
pub(super) const MOVE_PREFIX: &[u8] = b"mv:";

/// Removals at a time in one session, and in the daemon: each occupies a FUSE worker for as long as it takes.
const IN_SESSION: u32 = 4;
const IN_DAEMON: u32 = 16;

static DAEMON: AtomicU32 = AtomicU32::new(0);

/// Counts the removals of a session.
#[derive(Default)]
pub(super) struct Slots(AtomicU32);

impl Slots {
    /// `EAGAIN` when too many are running.
    fn take(&self) -> Result<[Slot<'_>; 2]> {
        Ok([Slot::take(&self.0, IN_SESSION)?, Slot::take(&DAEMON, IN_DAEMON)?])
    }
}

struct Slot<'a>(&'a AtomicU32);

impl<'a> Slot<'a> {
    fn take(running: &'a AtomicU32, most: u32) -> Result<Slot<'a>> {
        let one_more = |n| (n < most).then_some(n + 1);
        running
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .map_or(Err(Errno::AGAIN), |_| Ok(Slot(running)))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Virt {
    /// `ln -s <path on this mount> 3fs-virt/rm-rf/<any>`.
    pub(super) fn remove_by_link(&self, target: &CStr, caller: &Caller) -> Result<Entry> {
        self.check_writable(caller)?;
        let view = self.seen_by(caller)?;
        if !arguments_are_safe(&view, &command_line(caller)) {
            return Err(Errno::INVAL);
        }
        let path = ordinary(view.relative(target.to_bytes())?)?;
        view.may_take_away(&path)?;
        let root = self.parts.fs.path_fd(NodeId::ROOT)?;
        let (parent, name) = as_caller(caller, || open_parent(&*root, &path))?;
        self.remove_below(&parent, &name, caller)?;
        Ok(self.order(target.count_bytes(), caller))
    }

    /// Removes `parent`/`name` with all below, as the caller, and makes the kernel forget it.
    pub(super) fn remove_below(&self, parent: &OwnedFd, name: &CStr, caller: &Caller) -> Result<()> {
        let removed = self.remove(parent, name, caller);
        // Also after an error: some of it is gone.
        if let Some(node) = self.node_of(parent) {
            self.forget_names(vec![(node, name.to_owned())]);
        }
        removed
    }

    fn remove(&self, parent: &OwnedFd, name: &CStr, caller: &Caller) -> Result<()> {
        let _slots = self.slots.take()?;
        let (session, name_shown) = (&self.parts.session, name.to_string_lossy());
        tracing::info!(session, uid = caller.uid, name = %name_shown, "removes a tree");
        let unlink = |dir: BorrowedFd<'_>, name: &CStr| {
            self.parts.channel.gate.pass();
            self.parts.fs.removing(dir, name, || rustix::fs::unlinkat(dir, name, AtFlags::empty()))
        };
        as_caller(caller, || remove_tree(parent, name, &unlink))
    }

    /// Are links in this directory orders of `caller`? In the `3fs-virt` at the root of a mount, where programs look for
    /// it; not in one that an archive leads to. `EPERM` elsewhere.
    pub(super) fn takes_orders(&self, directory: NodeId, caller: &Caller) -> Result<()> {
        let place = Virtual::place(directory);
        if place == NodeId::ROOT {
            return Ok(());
        }
        let path = self.parts.fs.path_of(place).map_err(|_| Errno::PERM)?;
        if self.seen_by(caller)?.is_root(&path) { Ok(()) } else { Err(Errno::PERM) }
    }

    /// Renames the ordinary `old_parent`/`old_name` into the virtual `new_parent`: into `rm-rf` removes it with all below.
    pub fn rename_into(
        &self,
        old_parent: NodeId,
        old_name: &CStr,
        new_parent: NodeId,
        new_name: &CStr,
        caller: &Caller,
    ) -> Result<()> {
        let _ = new_name; // any will do
        if Virtual::of(new_parent) != Some(Virtual::RmRf) || Self::owns(old_parent, old_name) {
            return Err(Errno::PERM);
        }
        self.check_writable(caller)?;
        self.takes_orders(new_parent, caller)?;
        // The kernel has judged by the mount that it came through. But what is below it does not look at.
        if caller.pid != 0 {
            self.may_take_away(&self.seen_by(caller)?, old_parent, old_name)?;
        }
        // The kernel, which holds both directories, moves its entry itself.
        let parent = self.parts.fs.path_fd(old_parent)?;
        self.remove(&parent, old_name, caller)
    }

    /// Carries out a link with a `mv:` target: renames the named path to `parent`/`name`. The entry is that of a link,
    /// as the kernel demands; it is not cached, so that the next look finds what was moved.
    pub fn symlink_move(&self, parent: NodeId, name: &CStr, target: &CStr, caller: &Caller) -> Result<Entry> {
        self.check_writable(caller)?;
        let path = target.to_bytes().strip_prefix(MOVE_PREFIX).ok_or(Errno::INVAL)?;
        let view = self.seen_by(caller)?;
        let path = ordinary(view.relative(path)?)?;
        view.may_take_away(&path)?;
        let (root, new_dir) = (self.parts.fs.path_fd(NodeId::ROOT)?, self.parts.fs.path_fd(parent)?);
        let (old_dir, old_name) = as_caller(caller, || {
            let (old_dir, old_name) = open_parent(&*root, &path)?;
            rename_to_free(&old_dir, &old_name, &*new_dir, name)?;
            Ok((old_dir, old_name))
        })?;
        if let Some(node) = self.node_of(&old_dir) {
            let notes = &self.parts.channel.notes;
            let ticket = notes.push(Note::Forget(node, old_name));
            // The kernel holds the lock of the directory in which the link is made.
            if node != parent {
                notes.settle(ticket);
            }
        }
        Ok(self.order(target.count_bytes(), caller))
    }

    /// The entry that answers an order which a predecessor has carried out.
    pub fn carried_out(&self, target: &CStr, caller: &Caller) -> Entry {
        self.order(target.count_bytes(), caller)
    }

    /// The node of a directory, if the kernel knows it.
    pub(super) fn node_of(&self, directory: &OwnedFd) -> Option<NodeId> {
        let stat = rustix::fs::fstat(directory).ok()?;
        let root = self.parts.fs.backing_key(NodeId::ROOT).ok()?;
        if (stat.st_dev, stat.st_ino) == root {
            return Some(NodeId::ROOT);
        }
        self.parts.fs.node_of(Ino(stat.st_ino)).filter(|node| {
            self.parts.fs.backing_key(*node).is_ok_and(|key| key == (stat.st_dev, stat.st_ino))
        })
    }

    /// Makes the kernel forget names, and what it knows below them.
    pub(super) fn forget_names(&self, names: Vec<(NodeId, CString)>) {
        let notes = &self.parts.channel.notes;
        notes.settle(notes.push_all(names.into_iter().map(|(parent, name)| Note::Forget(parent, name))));
    }
}

/// Renames to a name that the kernel has found free.
fn rename_to_free(from: impl AsFd, name: &CStr, to: impl AsFd, new: &CStr) -> Result<()> {
    match rustix::fs::renameat_with(&from, name, &to, new, RenameFlags::NOREPLACE) {
        // A file system without that flag; or a directory into itself, which is refused once more.
        Err(Errno::INVAL) => rustix::fs::renameat(from, name, to, new),
        done => done,
    }
}

/// Refuses what is not of the backing directory: `EINVAL` for the root, `EPERM` for the virtual tree.
fn ordinary(path: PathBuf) -> Result<PathBuf> {
    match path.components().next() {
        None => Err(Errno::INVAL),
        Some(first) if first.as_os_str() == OsStr::from_bytes(TREE_NAME.to_bytes()) => Err(Errno::PERM),
        Some(_) => Ok(path),
    }
}
