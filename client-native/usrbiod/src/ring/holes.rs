//! Holes: the result of a read ends at the last data byte within the request.

use crate::fs::BackingFile;
use crate::types::{Errno, Result};
use rustix::fs::{SeekFrom, seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

/// Bytes from 0 known to hold no hole, at least `end` of them if that can be found out.
pub(super) fn dense_to(file: &BackingFile, end: u64) -> u64 {
    let known = file.dense_end.load(Ordering::Acquire);
    if end <= known { known } else { extend(file, known) }
}

fn extend(file: &BackingFile, known: u64) -> u64 {
    // ENXIO: `known` is the end of the file.
    let Ok(hole) = seek(&file.fd, SeekFrom::Hole(known)) else { return known };
    if hole <= known
        || file.dense_end.compare_exchange(known, hole, Ordering::SeqCst, Ordering::Relaxed).is_err()
    {
        return known.min(hole);
    }
    // A truncation resets the mark after it truncated. If it did so between our two steps, we have stored what was true
    // before it: look again. If it truncates from here on, its reset comes after our store.
    match seek(&file.fd, SeekFrom::Hole(known)) {
        Ok(again) if again >= hole => hole,
        _ => {
            file.dense_end.store(0, Ordering::SeqCst);
            0
        }
    }
}

/// Bytes of `off..off + len` up to the last one that is data. `ENODATA`: data follows a hole and `forbid` is set.
///
/// Takes some 70 calls at most, however many holes there are: the last data is found by halving, not by visiting all before it.
pub(super) fn visible(fd: impl AsFd, off: u64, len: u64, forbid: bool) -> Result<u64> {
    let fd = fd.as_fd();
    let end = off + len;
    // Behind the data that begins at the first place not below `off`.
    let Some(first) = next_data(fd, off, end)? else { return Ok(0) };
    let mut data_end = next_hole(fd, first, end)?;
    if forbid && (first > off || next_data(fd, data_end, end)?.is_some()) {
        return Err(Errno::NODATA);
    }
    // There is no data in `none_from..end`.
    let mut none_from = end;
    let mut probe = data_end;
    while data_end < none_from {
        match next_data(fd, probe, none_from)? {
            Some(data) => data_end = next_hole(fd, data, none_from)?,
            None => none_from = probe,
        }
        probe = data_end + none_from.saturating_sub(data_end) / 2;
    }
    Ok(data_end - off)
}

/// Where data begins, at `at` or behind it, below `end`.
fn next_data(fd: BorrowedFd<'_>, at: u64, end: u64) -> Result<Option<u64>> {
    if at >= end {
        return Ok(None);
    }
    match seek(fd, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data).filter(|data| *data < end)),
        // No more data in the file.
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the data at `at`, which is below `end`, ends: `end` at most.
fn next_hole(fd: BorrowedFd<'_>, at: u64, end: u64) -> Result<u64> {
    match seek(fd, SeekFrom::Hole(at)) {
        // At least a byte further, whatever happens to the file between two calls: so the halving ends.
        Ok(hole) => Ok(hole.clamp(at + 1, end)),
        // Truncated between the two calls.
        Err(Errno::NXIO) => Ok(at + 1),
        Err(error) => Err(error),
    }
}
