//! What resolves, makes and removes names.

use super::super::{abi, reply};
use super::{Answer, Call};
use crate::types::{Errno, NodeId, Result};
use crate::virt::Virt;
use std::ffi::CStr;

impl Call<'_, '_> {
    pub(super) fn lookup(&mut self, name: &CStr) -> Result<Answer> {
        let (parent, caller) = (self.request.node, &self.request.caller);
        if Virt::owns(parent, name) {
            return self.session.virt.lookup(parent, name, caller).map(Answer::Entry);
        }
        match self.session.fs.lookup(parent, name) {
            Err(Errno::NOENT) if Virt::is_reserved(name) => {
                self.session.virt.lookup(parent, name, caller).map(Answer::Entry)
            }
            found => found.map(Answer::Entry),
        }
    }

    /// Nobody counts lookups of virtual nodes.
    pub(super) fn forget(&self, node: NodeId, nlookup: u64) -> Result<Answer> {
        if !node.is_virtual() {
            self.session.fs.forget(node, nlookup);
        }
        Ok(Answer::Silent)
    }

    /// The parent, of a name that is to be given.
    fn parent_of(&self, name: &CStr) -> Result<NodeId> {
        if Virt::is_reserved(name) { Err(Errno::PERM) } else { self.parent_with(name) }
    }

    /// The parent, of a name that is not of the virtual tree.
    fn parent_with(&self, name: &CStr) -> Result<NodeId> {
        if Virt::owns(self.request.node, name) { Err(Errno::PERM) } else { Ok(self.request.node) }
    }

    pub(super) fn symlink(&mut self, name: &CStr, target: &CStr) -> Result<Answer> {
        let (session, parent, caller) = (self.session, self.request.node, &self.request.caller);
        let entry = if Virt::owns(parent, name) {
            session.virt.symlink(parent, name, target, caller)
        } else if Virt::is_reserved(name) {
            return Err(Errno::PERM);
        } else if session.virt.is_move_order(target) {
            session.virt.symlink_move(parent, name, target, caller)
        } else {
            session.fs.symlink(parent, name, target, caller)
        };
        entry.map(Answer::Entry)
    }

    pub(super) fn mknod(&mut self, arg: &abi::MknodIn, name: &CStr) -> Result<Answer> {
        let (parent, caller) = (self.parent_of(name)?, &self.request.caller);
        let entry = self.session.fs.mknod(parent, name, arg.mode, arg.rdev, arg.umask, caller);
        entry.map(Answer::Entry)
    }

    pub(super) fn mkdir(&mut self, arg: &abi::MkdirIn, name: &CStr) -> Result<Answer> {
        let (parent, caller) = (self.parent_of(name)?, &self.request.caller);
        self.session.fs.mkdir(parent, name, arg.mode, arg.umask, caller).map(Answer::Entry)
    }

    pub(super) fn unlink(&mut self, name: &CStr) -> Result<Answer> {
        let (parent, caller) = (self.request.node, &self.request.caller);
        if parent.is_virtual() {
            self.session.virt.unlink(parent, name, caller)?;
        } else {
            self.session.fs.unlink(self.parent_with(name)?, name).map_err(|errno| of_tree(name, errno))?;
        }
        Ok(Answer::EMPTY)
    }

    pub(super) fn rmdir(&mut self, name: &CStr) -> Result<Answer> {
        self.session.fs.rmdir(self.parent_with(name)?, name).map_err(|errno| of_tree(name, errno))?;
        Ok(Answer::EMPTY)
    }

    pub(super) fn rename(&mut self, to: NodeId, flags: u32, old: &CStr, new: &CStr) -> Result<Answer> {
        let from = self.parent_with(old)?;
        if to.is_virtual() {
            if flags & libc::RENAME_EXCHANGE != 0 {
                return Err(Errno::INVAL);
            }
            self.session.virt.rename_into(from, old, to, new, &self.request.caller)?;
        } else if Virt::is_reserved(new) {
            return Err(Errno::PERM);
        } else {
            self.session.fs.rename(from, old, to, new, flags).map_err(|errno| of_tree(old, errno))?;
        }
        Ok(Answer::EMPTY)
    }

    pub(super) fn link(&mut self, node: NodeId, name: &CStr) -> Result<Answer> {
        let parent = self.parent_of(name)?;
        if node.is_virtual() {
            return Err(Errno::PERM);
        }
        self.session.fs.link(node, parent, name).map(Answer::Entry)
    }

    pub(super) fn create(&mut self, arg: &abi::CreateIn, name: &CStr) -> Result<Answer> {
        let (parent, caller) = (self.parent_of(name)?, &self.request.caller);
        let tgid = self.tgid();
        let made = self.session.fs.create(parent, name, arg.flags, arg.mode, arg.umask, caller, tgid)?;
        Ok(Answer::Created(made.0, reply::opened(&made.1)))
    }

    pub(super) fn tmpfile(&mut self, arg: &abi::CreateIn) -> Result<Answer> {
        let (parent, caller) = (self.ordinary()?, &self.request.caller);
        let made = self.session.fs.tmpfile(parent, arg.flags, arg.mode, arg.umask, caller, self.tgid())?;
        Ok(Answer::Created(made.0, reply::opened(&made.1)))
    }
}

/// What is not in the backing directory by that name may be the virtual tree, which stays.
fn of_tree(name: &CStr, errno: Errno) -> Errno {
    if errno == Errno::NOENT && Virt::is_reserved(name) { Errno::PERM } else { errno }
}
