//! Operations on open files, for what the kernel does not do itself by passthrough.

use super::opens::{Opener, allows};
use super::types::Opened;
use super::{BackingFile, Fs};
use crate::sys::creds::Scope;
use crate::types::{Caller, Errno, NodeId, Result};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use std::os::fd::OwnedFd;

/// The kernel's own limit of one read or write.
const MAX_RW: u64 = 0x7fff_f000;

impl Fs {
    /// FUSE_OPEN. `tgid` is the caller's process, 0 when it cannot be seen: it is what rings are checked against.
    /// Truncating clears set-id bits with or without `kill_suidgid`.
    pub fn open(
        &self,
        node: NodeId,
        flags: u32,
        kill_suidgid: bool,
        caller: &Caller,
        tgid: u32,
    ) -> Result<Opened> {
        let _ = kill_suidgid;
        let flags = OFlags::from_bits_retain(flags);
        if allows(flags, true) || flags.contains(OFlags::TRUNC) {
            self.writable()?;
        }
        let opened = self.open_as(node, Opener { uid: caller.uid, tgid, flags }, None)?;
        if flags.contains(OFlags::TRUNC)
            && let Err(error) = self.truncate(node, None, 0)
        {
            self.release(node, opened.fh);
            return Err(error);
        }
        Ok(opened)
    }

    pub(super) fn open_as(&self, node: NodeId, opener: Opener, made: Option<OwnedFd>) -> Result<Opened> {
        let direct = opener.flags.contains(OFlags::DIRECT);
        let (fh, backing_id) = self.opens.open(&self.nodes, node, opener, made)?;
        // What another session writes would not be seen in pages that the kernel keeps of a file in this one; and what is
        // appended, the kernel would keep at a place where it may not be.
        let uncached = self.folder.is_shared() || opener.flags.contains(OFlags::APPEND);
        let direct_io = (direct || uncached && self.channel.maps_uncached()) && backing_id.is_none();
        Ok(Opened { fh, backing_id, direct_io })
    }

    /// FUSE_RELEASE. A handle that is not open is no error: a predecessor may have released it.
    pub fn release(&self, node: NodeId, fh: u64) {
        if self.opens.release(node, fh) {
            self.nodes.unpin(node);
        }
        self.forget(node, 0);
    }

    /// FUSE_FLUSH.
    pub fn flush(&self, node: NodeId, fh: u64) -> Result<()> {
        self.opens.flags(node, fh).map(drop)
    }

    /// FUSE_READ: the bytes that were read, less than asked only at the end of the file.
    pub fn read(&self, node: NodeId, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = self.opens.file(&self.nodes, node, fh, false)?;
        self.asked(node);
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&file.fd, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// FUSE_WRITE: the bytes that were written. Clears set-id bits with or without `kill_suidgid`, as the kernel does
    /// when it writes by passthrough.
    pub fn write(
        &self,
        node: NodeId,
        fh: u64,
        offset: u64,
        data: &[u8],
        kill_suidgid: bool,
    ) -> Result<usize> {
        let _ = kill_suidgid;
        let file = self.opens.file(&self.nodes, node, fh, true)?;
        let _writer = Scope::writer()?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&file.fd, &data[done..], offset + done as u64) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// FUSE_FSYNC.
    pub fn fsync(&self, node: NodeId, fh: u64, datasync: bool) -> Result<()> {
        self.opens.flags(node, fh)?;
        let file = self.opens.any_file(&self.nodes, node, false)?;
        if datasync { rustix::fs::fdatasync(&file.fd) } else { rustix::fs::fsync(&file.fd) }
    }

    /// FUSE_FALLOCATE with the mode of `fallocate(2)`.
    pub fn fallocate(&self, node: NodeId, fh: u64, offset: u64, len: u64, mode: u32) -> Result<()> {
        let file = self.opens.file(&self.nodes, node, fh, true)?;
        let writer = Scope::writer()?;
        let result = rustix::fs::fallocate(&file.fd, FallocateFlags::from_bits_retain(mode), offset, len);
        drop(writer);
        self.holes_made(node);
        result
    }

    /// The file of `node` may have new holes, or be shorter: rings of all sessions must know.
    pub fn holes_made(&self, node: NodeId) {
        self.opens.for_files(node, BackingFile::may_have_holes);
        if let Ok(key) = self.nodes.key(node) {
            for (fs, node) in self.elsewhere(key) {
                fs.opens.for_files(node, BackingFile::may_have_holes);
            }
        }
    }

    /// FUSE_LSEEK: `SEEK_DATA` or `SEEK_HOLE`.
    pub fn lseek(&self, node: NodeId, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        self.opens.flags(node, fh)?;
        let to = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        // Nobody uses the fd's own position, which this moves.
        rustix::fs::seek(&self.opens.any_file(&self.nodes, node, false)?.fd, to)
    }

    /// FUSE_COPY_FILE_RANGE: from `(node, fh, offset)` to another one; the bytes copied.
    pub fn copy_file_range(
        &self,
        from: (NodeId, u64, u64),
        to: (NodeId, u64, u64),
        len: u64,
        flags: u64,
    ) -> Result<usize> {
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let source = self.opens.file(&self.nodes, from.0, from.1, false)?;
        let target = self.opens.file(&self.nodes, to.0, to.1, true)?;
        let (mut at, mut to_at) = (from.2, to.2);
        let len = len.min(MAX_RW) as usize;
        let writer = Scope::writer()?;
        let done = rustix::fs::copy_file_range(&source.fd, Some(&mut at), &target.fd, Some(&mut to_at), len)?;
        drop(writer);
        // Holes are copied as holes.
        self.holes_made(to.0);
        Ok(done)
    }
}
