//! Appending where the kernel does not write the backing file itself. It names the place that it knows as the end of the
//! file, which may be older than what other mounts have appended; so the backing file system chooses the place.
//!
//! Done twice, an append would leave its bytes twice. So it is noted with the length that the file had before, and all
//! appends of the daemon to one file come one after the other: what a predecessor was at when it died is found at that
//! length, or was not written.

use super::Fs;
use super::nodes::Key;
use crate::sys::creds::Scope;
use crate::types::{Errno, NodeId, Result};
use rustix::io::ReadWriteFlags;
use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// Files that are remembered after they were appended to.
const REMEMBERED: usize = 4096;

/// The files that this daemon appends to, for all sessions.
#[derive(Default)]
pub(super) struct Appends(Mutex<HashMap<Key, Arc<Mutex<Tail>>>>);

/// Locked while an append is done.
#[derive(Default)]
struct Tail {
    /// Length of the file before this process appended first: what lies behind is not a predecessor's.
    first: Option<u64>,
}

impl Appends {
    fn tail(&self, key: Key) -> Arc<Mutex<Tail>> {
        let mut tails = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if tails.len() >= REMEMBERED {
            tails.retain(|_, tail| Arc::strong_count(tail) > 1);
        }
        tails.entry(key).or_default().clone()
    }
}

impl Fs {
    /// FUSE_WRITE of a file that is open for appending: the bytes that were written, at the end of the backing file. `begin`
    /// is called before that with the file's length, for a successor to know.
    pub fn append(&self, node: NodeId, fh: u64, data: &[u8], begin: impl FnOnce(u64)) -> Result<usize> {
        self.append_since(node, fh, data, None, begin)
    }

    /// The same for a request that a predecessor began when the file had `length`: its bytes are not written again.
    /// Fewer than all, if it died while it wrote.
    pub fn append_again(
        &self,
        node: NodeId,
        fh: u64,
        data: &[u8],
        length: u64,
        begin: impl FnOnce(u64),
    ) -> Result<usize> {
        self.append_since(node, fh, data, Some(length), begin)
    }

    fn append_since(
        &self,
        node: NodeId,
        fh: u64,
        data: &[u8],
        begun_at: Option<u64>,
        begin: impl FnOnce(u64),
    ) -> Result<usize> {
        let file = self.opens.file(&self.nodes, node, fh, true)?;
        let tail = self.folders().appends.tail(self.nodes.key(node)?);
        let mut tail = tail.lock().unwrap_or_else(|e| e.into_inner());
        let length = rustix::fs::fstat(&file.fd)?.st_size.cast_unsigned();
        let first = *tail.first.get_or_insert(length);
        if let Some(begun_at) = begun_at {
            let there = written_at(&file.fd, data, begun_at, first.min(length))?;
            if there > 0 {
                return Ok(there);
            }
        }
        begin(length);
        let _writer = Scope::writer()?;
        loop {
            match rustix::io::pwritev2(&file.fd, &[IoSlice::new(data)], 0, ReadWriteFlags::APPEND) {
                Err(Errno::INTR) => (),
                written => return written,
            }
        }
    }
}

/// How many bytes of `data` lie at `from`, if all do that are between there and `to`.
fn written_at(fd: &OwnedFd, data: &[u8], from: u64, to: u64) -> Result<usize> {
    let mut there = vec![0; data.len().min(to.saturating_sub(from) as usize)];
    let mut read = 0;
    while read < there.len() {
        match rustix::io::pread(fd, &mut there[read..], from + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(Errno::INTR) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(if there[..read] == data[..read] { read } else { 0 })
}
