//! A backing file that rings read and write.

use crate::types::{Ino, NodeId};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// An open backing file, shared by all rings of a session. It lives from the first ring request until the last open file
/// description on the mount is closed.
pub struct BackingFile {
    /// Opened `O_RDONLY`, or `O_RDWR` for writing rings.
    pub fd: OwnedFd,
    /// The same with `O_DIRECT`, when a client opened the file so.
    pub direct: Option<OwnedFd>,
    /// The node.
    pub node: NodeId,
    /// Inode number that clients name.
    pub ino: Ino,
    /// On tmpfs: never blocks, and `RWF_NOWAIT` is not supported.
    pub in_memory: bool,
    /// No file description is open any more; look the file up again.
    pub closed: AtomicBool,
    /// Bytes `0..dense_end` are known to hold no hole. Truncation and hole punching on this mount set it to 0.
    pub dense_end: AtomicU64,
}
