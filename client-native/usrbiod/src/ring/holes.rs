//! Holes: the result of a read ends at the last data byte within the request.

use crate::fs::BackingFile;
use crate::types::{Errno, Result};
use rustix::fs::{SeekFrom, seek};
use std::os::fd::AsFd;
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
pub(super) fn visible(fd: impl AsFd, off: u64, len: u64, forbid: bool) -> Result<u64> {
    let fd = fd.as_fd();
    let end = off + len;
    let mut at = off;
    while at < end {
        let data = match seek(fd, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            // No more data within the request, or none in the file.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        if data > at && forbid {
            return Err(Errno::NODATA);
        }
        at = match seek(fd, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(end),
            // Truncated between the two calls.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
    }
    Ok(at - off)
}
