//! Open directories.

use super::super::abi::{self, OpenOut};
use super::super::reply::{self, DirWriter};
use super::{Answer, Call};
use crate::types::{Entry, Errno, NodeId, Result};
use crate::virt::TREE_NAME;

const DT_DIR: u8 = 4;

impl Call<'_, '_> {
    pub(super) fn opendir(&mut self) -> Result<Answer> {
        let (node, caller) = (self.request.node, &self.request.caller);
        if node.is_virtual() {
            let fh = self.session.virt.opendir(node, caller)?;
            return Ok(Answer::Opened(OpenOut { fh, ..OpenOut::default() }));
        }
        if self.session.fs.look_again(node, caller.pid)? {
            return Err(Errno::STALE);
        }
        let opened = self.session.fs.opendir(node, caller, self.tgid())?;
        Ok(Answer::Opened(reply::opened(&opened)))
    }

    pub(super) fn releasedir(&mut self, arg: &abi::ReleaseIn) -> Result<Answer> {
        let node = self.request.node;
        if node.is_virtual() {
            self.session.virt.releasedir(node, arg.fh);
        } else {
            self.session.fs.releasedir(node, arg.fh);
        }
        Ok(Answer::EMPTY)
    }

    pub(super) fn fsyncdir(&mut self, arg: &abi::FsyncIn) -> Result<Answer> {
        if !self.request.node.is_virtual() {
            let datasync = arg.fsync_flags & abi::FSYNC_FDATASYNC != 0;
            self.session.fs.fsyncdir(self.request.node, arg.fh, datasync)?;
        }
        Ok(Answer::EMPTY)
    }

    pub(super) fn readdir(&mut self, arg: &abi::ReadIn, plus: bool) -> Result<Answer> {
        if self.request.node.is_virtual() {
            return self.readdir_virtual(arg, plus);
        }
        let is_root = self.request.node == NodeId::ROOT;
        let (node, session) = (self.request.node, self.session);
        let mut writer = DirWriter::new(self.body, arg.size, plus);
        session.fs.readdir(node, arg.fh, arg.offset, plus, &mut |entry| {
            // `3fs-virt` is found by its name only: who lists a volume finds what was put there. A file of that name in
            // the backing directory is hidden by ours.
            if is_root && entry.name == TREE_NAME.to_bytes() {
                if let Some(hidden) = &entry.entry {
                    session.fs.forget(hidden.node, 1);
                }
                return true;
            }
            writer.add(entry.name, entry.ino, entry.next, entry.kind, entry.entry.as_ref())
        })?;
        Ok(Answer::Body(writer.len()))
    }

    /// The listing is made anew for each part of it, so entries are ordered by something that does not change while
    /// others come and go: their node ids, which count down.
    fn readdir_virtual(&mut self, arg: &abi::ReadIn, plus: bool) -> Result<Answer> {
        let (node, caller) = (self.request.node, &self.request.caller);
        let mut entries = self.session.virt.readdir(node, arg.fh, caller)?;
        entries.sort_by_key(|(_, entry)| place(entry));
        let mut writer = DirWriter::new(self.body, arg.size, plus);
        let dots = [(&b"."[..], 1), (&b".."[..], 2)];
        for (name, place) in dots.into_iter().filter(|(_, place)| *place > arg.offset) {
            if !writer.add(name, node.0, place, DT_DIR, None) {
                return Ok(Answer::Body(writer.len()));
            }
        }
        for (name, entry) in entries.iter().filter(|(_, entry)| place(entry) > arg.offset) {
            let kind = (entry.attr.mode >> 12 & 0xf) as u8;
            if !writer.add(name.to_bytes(), entry.attr.ino, place(entry), kind, Some(entry)) {
                break;
            }
        }
        Ok(Answer::Body(writer.len()))
    }
}

/// Where a listing stands after `entry`. Virtual node ids have a top bit set, so this is a small positive number.
fn place(entry: &Entry) -> u64 {
    (!entry.node.0 & i64::MAX as u64).saturating_add(3)
}
