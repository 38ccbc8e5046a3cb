//! Directory streams: the backing file system's own order and offsets, so that an offset stays good while entries come
//! and go, and after a take-over.
//!
//! For the same reason a stream need not stay open: of the streams of a session those are open that were read of late, and
//! one that was closed goes on where it was. A stream that was never read costs nothing.

use super::Fs;
use super::opens::Opener;
use super::types::{DirEntry, Opened};
use crate::budget::Held;
use crate::sys::dirents;
use crate::types::{Caller, Entry, Errno, NodeId, Result};
use rustix::fs::{FileType, OFlags, SeekFrom};
use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, TryLockError};

/// Bytes of directory that are read at once.
const CHUNK: usize = 32 << 10;

/// Streams of a session that are open at a time, each with up to two chunks.
const MOST_OPEN: usize = 256;

#[derive(Default)]
pub(super) struct Dirs {
    /// Streams that were read, by file handle.
    streams: RwLock<HashMap<u64, Arc<Mutex<Stream>>>>,
    /// Handles of those that are open, from the one that was opened longest ago.
    open: Mutex<VecDeque<u64>>,
}

#[derive(Default)]
struct Stream {
    open: Option<Open>,
    /// Read since somebody looked for a stream to close.
    used: bool,
    /// Records that were read and not yet given: `chunk[at..len]`.
    chunk: Vec<u8>,
    at: usize,
    len: usize,
    /// Offset of the record at `at`.
    offset: u64,
    /// The last read found nothing more.
    ended: bool,
}

struct Open {
    fd: OwnedFd,
    _held: Held,
}

impl Dirs {
    fn open(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.open.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn find(&self, fh: u64) -> Option<Arc<Mutex<Stream>>> {
        self.streams.read().unwrap_or_else(|e| e.into_inner()).get(&fh).cloned()
    }

    /// Closes the stream that was not read for longest. False: all are being read.
    pub(super) fn close_one(&self) -> bool {
        let mut open = self.open();
        for _ in 0..2 * open.len() {
            let Some(fh) = open.pop_front() else { return false };
            let Some(stream) = self.find(fh) else { return true };
            let mut stream = match stream.try_lock() {
                Ok(stream) => stream,
                Err(TryLockError::Poisoned(e)) => e.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    open.push_back(fh);
                    continue;
                }
            };
            if std::mem::take(&mut stream.used) {
                open.push_back(fh);
                continue;
            }
            let Stream { open: closed, offset, .. } = std::mem::take(&mut *stream);
            stream.offset = offset;
            drop(closed);
            return true;
        }
        false
    }
}

impl Stream {
    fn fd(&self) -> Result<&OwnedFd> {
        self.open.as_ref().map(|open| &open.fd).ok_or(Errno::BADF)
    }

    /// Goes to `offset`. The beginning is always read anew (`rewinddir`).
    fn seek(&mut self, offset: u64) -> Result<()> {
        if offset == self.offset && offset != 0 {
            return Ok(());
        }
        (self.at, self.len, self.ended) = (0, 0, false);
        rustix::fs::seek(self.fd()?, SeekFrom::Start(offset))?;
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
        let fd = &self.open.as_ref().ok_or(Errno::BADF)?.fd;
        let read = dirents::read(fd, &mut self.chunk[self.len..])?;
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
        let stat = rustix::fs::fstat(&*self.nodes.path_fd(node)?)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let fh = self.opens.open_dir(node, Opener { uid: caller.uid, tgid, flags })?;
        Ok(Opened { fh, ..Opened::default() })
    }

    /// The stream of `fh`.
    fn stream(&self, node: NodeId, fh: u64) -> Result<Arc<Mutex<Stream>>> {
        self.opens.check_dir(node, fh)?;
        if let Some(stream) = self.dirs.find(fh) {
            return Ok(stream);
        }
        let mut streams = self.dirs.streams.write().unwrap_or_else(|e| e.into_inner());
        Ok(streams.entry(fh).or_default().clone())
    }

    /// Opens a stream where it was, if it is not open. `ENOENT`: the directory is removed, as a local file system answers then.
    fn open_stream(&self, node: NodeId, fh: u64, stream: &mut Stream) -> Result<()> {
        stream.used = true;
        if stream.open.is_some() {
            return Ok(());
        }
        while self.dirs.open().len() >= MOST_OPEN && self.dirs.close_one() {}
        let held = loop {
            match self.nodes.fds.take() {
                Err(Errno::NFILE) if self.dirs.close_one() => (),
                taken => break taken?,
            }
        };
        let fd =
            self.nodes.reopen(node, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|errno| match errno {
                Errno::STALE => Errno::NOENT,
                errno => errno,
            })?;
        if rustix::fs::fstat(&fd)?.st_nlink == 0 {
            return Err(Errno::NOENT);
        }
        if stream.offset != 0 {
            rustix::fs::seek(&fd, SeekFrom::Start(stream.offset))?;
        }
        stream.open = Some(Open { fd, _held: held });
        self.dirs.open().push_back(fh);
        Ok(())
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
        self.open_stream(node, fh, stream)?;
        stream.seek(offset)?;
        while stream.fill()? {
            let Some(found) = dirents::parse(&stream.chunk[stream.at..stream.len]) else {
                return Err(Errno::IO);
            };
            let (next, len) = (found.next, found.len);
            if !self.give(stream.fd()?, &found, node, plus, sink)? {
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
        if stream.open.is_some() && !stream.ended && stream.len - stream.at < CHUNK {
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
        let stream = self.dirs.streams.write().unwrap_or_else(|e| e.into_inner()).remove(&fh);
        if stream.is_some() {
            self.dirs.open().retain(|open| *open != fh);
        }
        drop(stream);
    }

    /// FUSE_FSYNCDIR.
    pub fn fsyncdir(&self, node: NodeId, fh: u64, datasync: bool) -> Result<()> {
        let stream = self.stream(node, fh)?;
        let mut stream = stream.lock().unwrap_or_else(|e| e.into_inner());
        self.open_stream(node, fh, &mut stream)?;
        match datasync {
            true => rustix::fs::fdatasync(stream.fd()?),
            false => rustix::fs::fsync(stream.fd()?),
        }
    }
}
