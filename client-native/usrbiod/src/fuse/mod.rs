//! The FUSE protocol: requests off `/dev/fuse`, replies onto it.

use crate::types::{NodeId, Result};
use std::os::fd::OwnedFd;

/// The `/dev/fuse` fd of one session.
pub struct Channel {
    /// The fd itself; the peer that mounted holds a duplicate.
    pub fd: OwnedFd,
}

impl Channel {
    /// Makes the kernel forget attributes of `node`, and its cached pages of `len` bytes from `offset`: `offset < 0` for
    /// attributes only, `len` 0 for all to the end (`FUSE_NOTIFY_INVAL_INODE`). A node that the kernel does not know is
    /// no error.
    pub fn invalidate_inode(&self, node: NodeId, offset: i64, len: i64) -> Result<()> {
        let _ = (node, offset, len);
        todo!()
    }

    /// Makes the kernel forget the name `name` in `parent` (`FUSE_NOTIFY_INVAL_ENTRY`).
    pub fn invalidate_entry(&self, parent: NodeId, name: &std::ffi::CStr) -> Result<()> {
        let _ = (parent, name);
        todo!()
    }
}
