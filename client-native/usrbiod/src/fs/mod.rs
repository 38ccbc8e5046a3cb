//! The backing directory as a file system.

mod backing;
pub use backing::BackingFile;

use crate::types::{Ino, NodeId, Owner, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The backing directory of one session as a file system.
pub struct Fs {}

impl Fs {
    /// The node that the kernel knows under inode number `ino` (1 is the root, as in the ioctls of 3FS).
    pub fn node_of(&self, ino: Ino) -> Option<NodeId> {
        let _ = ino;
        todo!()
    }

    /// An `O_PATH` fd of a node.
    pub fn path_fd(&self, node: NodeId) -> Result<Arc<OwnedFd>> {
        let _ = node;
        todo!()
    }

    /// The backing file of an inode for ring I/O. `EBADF`: no regular file that the kernel knows and that is open in
    /// this session. `EACCES`: `owner` has no open file description for that direction and may not open one.
    pub fn ring_file(&self, ino: Ino, owner: &Owner, write: bool) -> Result<Arc<BackingFile>> {
        let _ = (ino, owner, write);
        todo!()
    }

    /// Rings wrote to `file`: the kernel's attributes of it are stale. Tells the kernel once until it asks again.
    pub fn written(&self, file: &BackingFile) {
        let _ = file;
        todo!()
    }
}
