//! Where the data of a request ends.

use crate::ring::holes::visible;
use crate::types::Errno;
use proptest::prelude::*;
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;

/// What the contract says, by visiting everything.
fn slowly(file: &File, off: u64, len: u64, forbid: bool) -> Result<u64, Errno> {
    let (end, mut at) = (off + len, off);
    while at < end {
        let Some(data) = seek(file, SeekFrom::Data(at)).ok().filter(|data| *data < end) else { break };
        if data > at && forbid {
            return Err(Errno::NODATA);
        }
        at = seek(file, SeekFrom::Hole(data)).unwrap().min(end);
    }
    Ok(at - off)
}

fn sparse(dir: &str, pages: &[bool], len: u64) -> File {
    let file = tempfile::tempfile_in(dir).unwrap();
    for (i, _) in pages.iter().enumerate().filter(|(_, data)| **data) {
        file.write_all_at(&[1; PAGE as usize], i as u64 * PAGE).unwrap();
    }
    file.set_len(len).unwrap();
    file
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn halving_finds_what_visiting_every_hole_finds(
        pages in prop::collection::vec(any::<bool>(), 1..80),
        len in 1..90 * PAGE,
        requests in prop::collection::vec((0..90 * PAGE, 1..90 * PAGE, any::<bool>()), 20),
    ) {
        for dir in ["/dev/shm", "/tmp"] {
            let file = sparse(dir, &pages, len);
            for (off, len, forbid) in &requests {
                prop_assert_eq!(visible(&file, *off, *len, *forbid), slowly(&file, *off, *len, *forbid));
            }
        }
    }
}

#[test]
fn a_request_over_very_many_holes_is_answered_as_soon_as_one_over_few() {
    // Visiting every hole once takes longer than finding the last one many times.
    let pages: Vec<bool> = (0..20_000).map(|i| i % 2 == 1).collect();
    let len = pages.len() as u64 * PAGE;
    let file = sparse("/dev/shm", &pages, len);
    let begun = std::time::Instant::now();
    assert_eq!(slowly(&file, 0, len, false), Ok(len));
    let slow = begun.elapsed();
    let begun = std::time::Instant::now();
    for i in 0..20 {
        assert_eq!(visible(&file, i, len - i, false), Ok(len - i));
    }
    assert!(begun.elapsed() < slow, "{:?}, {slow:?}", begun.elapsed());
}
