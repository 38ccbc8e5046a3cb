//! What an ioctl or an order may touch: what its caller could change through a mount of its own. See [`crate::mounts`].

use super::Virt;
use crate::mounts::View;
use crate::types::{Caller, Errno, NodeId, Result};
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;

impl Virt {
    /// What the caller sees of the mount. `EPERM`: it cannot be seen.
    pub(super) fn seen_by(&self, caller: &Caller) -> Result<View> {
        self.parts.mounts.seen_by(caller)
    }

    /// May the owner of `view` change the file, or the names in the directory, that `node` is? `EROFS`: its mount is
    /// read-only. `EPERM`: it does not see it.
    pub(super) fn may_change(&self, view: &View, node: NodeId) -> Result<()> {
        if view.is_whole() {
            return Ok(());
        }
        view.may_change(&self.parts.fs.path_of(node).map_err(|_| Errno::PERM)?)
    }

    /// May it remove or rename `parent`/`name`? Besides, `EBUSY`: it has another mount there.
    pub(super) fn may_take_away(&self, view: &View, parent: NodeId, name: &CStr) -> Result<()> {
        if view.is_whole() {
            return Ok(());
        }
        let parent = self.parts.fs.path_of(parent).map_err(|_| Errno::PERM)?;
        view.may_take_away(&parent.join(OsStr::from_bytes(name.to_bytes())))
    }
}
