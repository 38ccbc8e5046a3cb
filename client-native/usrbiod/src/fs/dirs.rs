//! Directory streams: the backing file system's own order and offsets, so that an offset stays good while entries come
//! and go, and after a take-over.

use super::Fs;
use super::opens::Opener;
use super::types::{DirEntry, Opened};
use crate::sys::dirents;
use crate::types::{Caller, Entry, Errno, NodeId, Result};
use rustix::fs::{OFlags, SeekFrom};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, RwLock};

/// Bytes of directory that are read at once.
const CHUNK: usize = 32 << 10;

/// Streams by file handle.
#[derive(Default)]
pub(super) struct Dirs(RwLock<HashMap<u64, Arc<Mutex<Stream>>>>);

struct Stream {
    fd: OwnedFd,
    /// Records that were read and not yet given: `chunk[at..len]`.
    chunk: Vec<u8>,
    at: usize,
    len: usize,
    /// Offset of the record at `at`.
    offset: u64,
    /// The last read found nothing more.
    ended: bool,
}

impl Stream {
    fn new(fd: OwnedFd) -> Arc<Mutex<Stream>> {
        Arc::new(Mutex::new(Stream { fd, chunk: Vec::new(), at: 0, len: 0, offset: 0, ended: false }))
    }

    /// Goes to `offset`. The beginning is always read anew (`rewinddir`).
    fn seek(&mut self, offset: u64) -> Result<()> {
        if offset == self.offset && offset != 0 {
            return Ok(());
        }
        (self.at, self.len, self.ended) = (0, 0, false);
        rustix::fs::seek(&self.fd, SeekFrom::Start(offset))?;
        self.offset = offset;
        Ok(())
    }

    /// Reads on, when everything was given. False at the end.
    fn fill(&mut self) -> Result<bool> {
        if self.at == self.len {
            self.read()?;
        }
        Ok(self.at < self.len)
    }

    /// Reads a chunk behind what is there.
    fn read(&mut self) -> Result<()> {
        self.chunk.copy_within(self.at..self.len, 0);
        (self.at, self.len) = (0, self.len - self.at);
        self.chunk.resize(self.len + CHUNK, 0);
        let read = dirents::read(&self.fd, &mut self.chunk[self.len..])?;
        self.len += read;
        self.ended = read == 0;
        if self.len == 0 {
            self.chunk = Vec::new();
        }
        Ok(())
    }
}

impl Fs {
    /// FUSE_OPENDIR.
    pub fn opendir(&self, node: NodeId, caller: &Caller, tgid: u32) -> Result<Opened> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        // Opened here: a directory that is removed while it is open can still be read.
        let fd = self.nodes.reopen(node, flags)?;
        let fh = self.opens.open_dir(node, Opener { uid: caller.uid, tgid, flags })?;
        self.dirs.0.write().unwrap_or_else(|e| e.into_inner()).insert(fh, Stream::new(fd));
        Ok(Opened { fh, ..Opened::default() })
    }

    /// The stream of `fh`; opened again when a predecessor had it.
    fn stream(&self, node: NodeId, fh: u64) -> Result<Arc<Mutex<Stream>>> {
        self.opens.check_dir(node, fh)?;
        if let Some(stream) = self.dirs.0.read().unwrap_or_else(|e| e.into_inner()).get(&fh) {
            return Ok(stream.clone());
        }
        let stream = Stream::new(self.nodes.reopen(node, OFlags::RDONLY | OFlags::DIRECTORY)?);
        let mut dirs = self.dirs.0.write().unwrap_or_else(|e| e.into_inner());
        Ok(dirs.entry(fh).or_insert(stream).clone())
    }

    /// FUSE_READDIR and FUSE_READDIRPLUS: gives entries from `offset` (0, or [`DirEntry::next`] of an entry) to `sink` until
    /// it answers false, for "no room": that entry comes again next time. When the sink was never refused, the end was
    /// reached.
    pub fn readdir(
        &self,
        node: NodeId,
        fh: u64,
        offset: u64,
        plus: bool,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let stream = self.stream(node, fh)?;
        // The kernel reads a directory by one request at a time; the lock only matters to a kernel that does not.
        let stream = &mut *stream.lock().unwrap_or_else(|e| e.into_inner());
        stream.seek(offset)?;
        while stream.fill()? {
            let Some(found) = dirents::parse(&stream.chunk[stream.at..stream.len]) else {
                return Err(Errno::IO);
            };
            let (next, len) = (found.next, found.len);
            if !self.give(&stream.fd, &found, node, plus, sink)? {
                return Ok(());
            }
            stream.at += len;
            stream.offset = next;
        }
        Ok(())
    }

    /// Reads what the next [`readdir`](Self::readdir) of `fh` will give, while the caller looks at what the last one gave.
    pub fn read_dir_ahead(&self, node: NodeId, fh: u64) {
        let Ok(stream) = self.stream(node, fh) else { return };
        let mut stream = stream.lock().unwrap_or_else(|e| e.into_inner());
        if !stream.ended && stream.len - stream.at < CHUNK {
            // An error comes again when it is asked for.
            let _ = stream.read();
        }
    }

    /// Gives one entry; false when there is no room for it.
    fn give(
        &self,
        dir: &OwnedFd,
        found: &dirents::Dirent<'_>,
        node: NodeId,
        plus: bool,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<bool> {
        let dots = matches!(found.name, b"." | b"..");
        let mut ino = self.nodes.ino_in_root(found.ino);
        if node == NodeId::ROOT && dots {
            ino = 1;
        }
        let mut entry = None;
        // What may not be kept need not be looked up.
        if plus && !dots && !self.folder.is_shared() {
            let name = CString::new(found.name).map_err(|_| Errno::IO)?;
            match self.nodes.lookup(dir, &name) {
                Ok((node, stat)) => entry = Some(Entry { node, attr: self.nodes.attr(&stat) }),
                // Removed since it was read: not there.
                Err(Errno::NOENT | Errno::STALE) => return Ok(true),
                // The name alone; looking it up will tell what is wrong with it.
                Err(_) => {}
            }
            ino = entry.map_or(ino, |e| e.attr.ino);
        }
        let given = DirEntry { ino, next: found.next, kind: found.kind, name: found.name, entry };
        let accepted = sink(&given);
        if let (false, Some(entry)) = (accepted, entry) {
            self.forget(entry.node, 1);
        }
        Ok(accepted)
    }

    /// FUSE_RELEASEDIR.
    pub fn releasedir(&self, node: NodeId, fh: u64) {
        self.opens.release_dir(node, fh);
        let stream = self.dirs.0.write().unwrap_or_else(|e| e.into_inner()).remove(&fh);
        drop(stream);
    }

    /// FUSE_FSYNCDIR.
    pub fn fsyncdir(&self, node: NodeId, fh: u64, datasync: bool) -> Result<()> {
        let stream = self.stream(node, fh)?;
        let stream = stream.lock().unwrap_or_else(|e| e.into_inner());
        match datasync {
            true => rustix::fs::fdatasync(&stream.fd),
            false => rustix::fs::fsync(&stream.fd),
        }
    }
}
