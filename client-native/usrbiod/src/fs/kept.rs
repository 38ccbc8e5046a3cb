//! Open files without a name. Where the kernel has no backing file of them (no passthrough), only this process holds their
//! inodes: the peer gets an fd of each, so that they outlive this process.

use super::Fs;
use super::nodes::{Key, Nodes, key_of};
use crate::budget::Share;
use crate::control::Keeper;
use crate::types::{NodeId, Result};
use rustix::fs::{AtFlags, FileType};
use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What the keys of nodes begin with. Those of Iovs and rings begin with a UUID.
const PREFIX: &str = "node:";

/// Who keeps fds of a session's nodes, and what was kept for a predecessor.
#[derive(Default)]
pub struct Keeping {
    /// Who keeps fds.
    pub keeper: Arc<Keeper>,
    /// The session's name.
    pub session: String,
    /// What came back from the peer, by key.
    pub kept: HashMap<String, OwnedFd>,
    /// What the session may have of the daemon's fds.
    pub fds: Share,
}

impl Keeping {
    /// Takes from `all` what is for nodes.
    pub fn new(
        keeper: Arc<Keeper>,
        session: String,
        all: Option<&mut HashMap<String, OwnedFd>>,
        fds: Share,
    ) -> Keeping {
        let kept = all.map(|all| all.extract_if(|key, _| key.starts_with(PREFIX)).collect());
        Keeping { keeper, session, kept: kept.unwrap_or_default(), fds }
    }

    pub(super) fn keep(&self, node: NodeId, fd: BorrowedFd<'_>) {
        self.keeper.keep(&self.session, &key(node), fd);
    }

    pub(super) fn forget(&self, node: NodeId) {
        self.keeper.forget(&self.session, &key(node));
    }

    /// Gives what was kept to the nodes that it belongs to; what belongs to none is forgotten.
    pub(super) fn return_to(&mut self, nodes: &Nodes) -> Vec<NodeId> {
        let mut pinned = Vec::new();
        for (key, fd) in self.kept.drain() {
            let node = key.strip_prefix(PREFIX).and_then(|id| id.parse().ok()).map(NodeId);
            match node {
                Some(node) if nodes.pin(node, fd) => pinned.push(node),
                _ => self.keeper.forget(&self.session, &key),
            }
        }
        pinned
    }
}

pub(super) fn key(node: NodeId) -> String {
    format!("{PREFIX}{}", node.0)
}

impl Fs {
    /// Runs `remove`, which takes `name` from `dir` (by removal, or by a rename over it), such that the file outlives
    /// this process if it is open.
    pub fn removing<T>(&self, dir: impl AsFd, name: &CStr, remove: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(key) = self.last_name(dir, name) else { return remove() };
        let kept = self.keep(key);
        let elsewhere: Vec<_> = self.elsewhere(key).into_iter().filter(|(fs, _)| fs.keep(key)).collect();
        let result = remove();
        if result.is_ok() {
            // It may have been opened since.
            self.keep(key);
            for (fs, _) in self.elsewhere(key) {
                fs.keep(key);
            }
        } else {
            let own = kept.then(|| self.nodes.by_key(key)).flatten();
            own.into_iter().for_each(|node| self.opens.unkeep(node));
            elsewhere.iter().for_each(|(fs, node)| fs.opens.unkeep(*node));
        }
        result
    }

    fn keep(&self, key: Key) -> bool {
        self.nodes.by_key(key).is_some_and(|node| self.opens.keep(&self.nodes, node))
    }

    /// The inode of a regular file that has no other name, if it may be open without a backing file in the kernel.
    fn last_name(&self, dir: impl AsFd, name: &CStr) -> Option<Key> {
        if !self.any_without_passthrough() {
            return None;
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let last = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink <= 1;
        last.then(|| key_of(&stat))
    }

    /// Duplicates of the fds that the peer should have, by key.
    pub fn kept_fds(&self) -> Result<Vec<(String, OwnedFd)>> {
        self.opens.kept_fds(&self.nodes)
    }
}
