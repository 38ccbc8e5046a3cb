//! A backing file that rings read and write.

use crate::budget::Held;
use crate::types::{Errno, Ino, NodeId, Result};
use rustix::fs::FileType;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// An open backing file, shared by all rings of a session and by the kernel's requests that come without passthrough. It lives
/// from the first request until the last open file description on the mount is closed.
#[derive(Debug)]
pub struct BackingFile {
    /// Opened `O_RDONLY`, or `O_RDWR` for writing rings.
    pub fd: OwnedFd,
    /// The same with `O_DIRECT`, when a client opened the file so.
    pub direct: Option<OwnedFd>,
    /// What it counts for, for the session.
    pub held: Held,
    /// The node.
    pub node: NodeId,
    /// Inode number that clients name.
    pub ino: Ino,
    /// On tmpfs: never blocks, and `RWF_NOWAIT` is not supported.
    pub in_memory: bool,
    /// It had no name any more when it was opened.
    pub unlinked: bool,
    /// No file description is open any more; look the file up again.
    pub closed: AtomicBool,
    /// Bytes `0..dense_end` are known to hold no hole. Truncation and hole punching on this mount set it to 0.
    pub dense_end: AtomicU64,
}

impl BackingFile {
    /// Wraps `fd`, which must be a regular file: anything else could block, or have effects, when read.
    pub(super) fn new(
        fd: OwnedFd,
        direct: Option<OwnedFd>,
        node: NodeId,
        ino: Ino,
        held: Held,
    ) -> Result<BackingFile> {
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::BADF);
        }
        let in_memory = is_in_memory(&fd)?;
        let (closed, dense_end) = (AtomicBool::new(false), AtomicU64::new(0));
        Ok(BackingFile {
            fd,
            direct,
            held,
            node,
            ino,
            in_memory,
            unlinked: stat.st_nlink == 0,
            closed,
            dense_end,
        })
    }

    /// A part of the file may have become a hole.
    pub(super) fn may_have_holes(&self) {
        self.dense_end.store(0, Ordering::Release);
    }
}

fn is_in_memory(fd: &OwnedFd) -> Result<bool> {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    // The magic is a `long` whose upper half repeats the sign of the lower one on some file systems.
    Ok(matches!(rustix::fs::fstatfs(fd)?.f_type as u32, TMPFS | RAMFS))
}
