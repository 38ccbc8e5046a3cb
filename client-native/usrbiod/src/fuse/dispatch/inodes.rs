//! Attributes, extended attributes, links' targets.

use super::super::abi::{self, fattr};
use super::super::reply;
use super::{Answer, Call};
use crate::clients;
use crate::fs::{SetAttr, SetTime};
use crate::types::{Errno, NodeId, Result};
use std::ffi::CStr;

impl Call<'_, '_> {
    pub(super) fn getattr(&mut self) -> Result<Answer> {
        let node = self.request.node;
        let attr = if node.is_virtual() {
            self.session.virt.getattr(node, &self.request.caller)?
        } else {
            self.session.fs.getattr(node)?
        };
        self.put(&reply::attr(&attr))
    }

    pub(super) fn setattr(&mut self, arg: &abi::SetattrIn) -> Result<Answer> {
        let node = self.ordinary()?;
        let attr = self.session.fs.setattr(node, &wanted(arg))?;
        self.put(&reply::attr(&attr))
    }

    /// `ENOSYS` for virtual nodes would switch `STATX` off for the whole mount.
    pub(super) fn statx(&mut self, arg: &abi::StatxIn) -> Result<Answer> {
        let node = self.request.node;
        let found = if node.is_virtual() {
            let attr = self.session.virt.getattr(node, &self.request.caller)?;
            crate::fs::Statx { mask: libc::STATX_BASIC_STATS, attr, ..crate::fs::Statx::default() }
        } else {
            self.session.fs.statx(node, arg.sx_mask, arg.sx_flags)?
        };
        self.put(&reply::statx(&found))
    }

    pub(super) fn readlink(&mut self) -> Result<Answer> {
        let node = self.request.node;
        let target = if node.is_virtual() {
            self.session.virt.readlink(node, &self.request.caller)?
        } else {
            self.session.fs.readlink(node)?
        };
        reply::put_bytes(self.body, &target).map(Answer::Body)
    }

    pub(super) fn setxattr(
        &mut self,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
    ) -> Result<Answer> {
        self.session.fs.setxattr(self.ordinary()?, name, value, flags, kill_sgid)?;
        Ok(Answer::EMPTY)
    }

    pub(super) fn getxattr(&mut self, name: &CStr, size: u32) -> Result<Answer> {
        if self.request.node.is_virtual() {
            return Err(Errno::NODATA);
        }
        let value = self.session.fs.getxattr(self.request.node, name)?;
        reply::xattr(self.body, &value, size).map(Answer::Body)
    }

    pub(super) fn listxattr(&mut self, size: u32) -> Result<Answer> {
        let (node, caller) = (self.request.node, &self.request.caller);
        let names = match node.is_virtual() {
            true => Vec::new(),
            false => self.session.fs.listxattr(node, || clients::is_admin(caller))?,
        };
        reply::xattr(self.body, &names, size).map(Answer::Body)
    }

    pub(super) fn removexattr(&mut self, name: &CStr) -> Result<Answer> {
        self.session.fs.removexattr(self.ordinary()?, name)?;
        Ok(Answer::EMPTY)
    }

    pub(super) fn statfs(&mut self) -> Result<Answer> {
        let node = if self.request.node.is_virtual() { NodeId::ROOT } else { self.request.node };
        let found = self.session.fs.statfs(node)?;
        self.put(&reply::statfs(&found))
    }
}

/// What a `SETATTR` asks for. It may set the change time only with a writeback cache, which there is not.
fn wanted(arg: &abi::SetattrIn) -> SetAttr {
    let has = |flag: u32| arg.valid & flag != 0;
    let time = |set: u32, now: u32, secs: u64, nanos: u32| match (has(now), has(set)) {
        (true, _) => SetTime::Now,
        (_, true) => SetTime::At(secs as i64, nanos),
        _ => SetTime::Omit,
    };
    SetAttr {
        mode: has(fattr::MODE).then_some(arg.mode),
        // The highest id means "leave it", as for chown(2).
        uid: (has(fattr::UID) && arg.uid != u32::MAX).then_some(arg.uid),
        gid: (has(fattr::GID) && arg.gid != u32::MAX).then_some(arg.gid),
        size: has(fattr::SIZE).then_some(arg.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, arg.atime, arg.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, arg.mtime, arg.mtimensec),
        fh: has(fattr::FH).then_some(arg.fh),
        kill_suidgid: has(fattr::KILL_SUIDGID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_valid_is_set() {
        let arg = abi::SetattrIn {
            valid: fattr::SIZE | fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW | fattr::KILL_SUIDGID,
            size: 5,
            uid: 9,
            fh: 3,
            atime: -1i64 as u64,
            ..abi::SetattrIn::default()
        };
        let expected = SetAttr {
            size: Some(5),
            atime: SetTime::At(-1, 0),
            mtime: SetTime::Now,
            kill_suidgid: true,
            ..SetAttr::default()
        };
        assert_eq!(wanted(&arg), expected);
    }
}
