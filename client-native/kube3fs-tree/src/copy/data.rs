//! The bytes of a file.

use crate::error::{Doing, Result};
use crate::meter::Meter;
use rustix::fs::{SeekFrom, Statx};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Bytes that are copied between two looks at how far it is.
const CHUNK: u64 = 4 << 20;

/// Bytes of a buffer where the kernel cannot copy by itself.
const BUFFER: usize = 256 << 10;

/// Bytes of a block of `statx`.
const BLOCK: u64 = 512;

/// Copies `source`, as long as `found` says, into the empty `target`.
pub fn copy(
    source: &OwnedFd,
    target: &OwnedFd,
    found: &Statx,
    meter: &mut Meter<'_>,
    what: &dyn Fn() -> String,
) -> Result<()> {
    if found.stx_size == 0 {
        return Ok(());
    }
    // Of a file that shares all its blocks nothing is written. Any error here is one of not being able to.
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return meter.bytes(found.stx_blocks.saturating_mul(BLOCK));
    }
    let (mut at, end) = (0, found.stx_size);
    while at < end {
        let Some((from, to)) = data_behind(source, at, end).doing(what)? else { break };
        at = from;
        while at < to {
            let copied = chunk(source, target, at, CHUNK.min(to - at)).doing(what)?;
            if copied == 0 {
                break; // it has become shorter
            }
            at += copied;
            meter.bytes(copied)?;
        }
        if at < to {
            break;
        }
    }
    rustix::fs::ftruncate(target, end).doing(what)
}

/// The next bytes, from `at` on, that are no hole.
fn data_behind(source: &OwnedFd, at: u64, end: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    let from = match rustix::fs::seek(source, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some((at, end))), // does not know holes
        other => other?,
    };
    let to = match rustix::fs::seek(source, SeekFrom::Hole(from)) {
        Err(Errno::NXIO) => return Ok(None),
        other => other?,
    };
    Ok((from < end).then_some((from, to.min(end))))
}

/// Copies up to `length` bytes at `at`; 0 at the end.
fn chunk(source: &OwnedFd, target: &OwnedFd, at: u64, length: u64) -> rustix::io::Result<u64> {
    let (mut from, mut to) = (at, at);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
        Ok(copied) => Ok(copied as u64),
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::FBIG)) => Err(errno),
        Err(_) => through_memory(source, target, at, length),
    }
}

fn through_memory(source: &OwnedFd, target: &OwnedFd, at: u64, length: usize) -> rustix::io::Result<u64> {
    let mut buffer = vec![0; length.min(BUFFER)];
    let read = rustix::io::pread(source, &mut buffer, at)?;
    let mut written = 0;
    while written < read {
        written += rustix::io::pwrite(target, &buffer[written..read], at + written as u64)?;
    }
    Ok(read as u64)
}
