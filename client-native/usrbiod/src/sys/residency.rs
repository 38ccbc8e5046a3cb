//! Is a part of a file in the page cache?

use std::os::fd::{AsFd, AsRawFd};

#[repr(C)]
struct Range {
    off: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

const SYS_CACHESTAT: libc::c_long = 451;

/// Pages of `off..off + len` that are in the page cache (`cachestat`, Linux 6.5); `None` when it cannot be said.
pub fn cached_pages(fd: impl AsFd, off: u64, len: u64) -> Option<u64> {
    let range = Range { off, len };
    let mut stat = CacheStat::default();
    // SAFETY: both point to live structs of the layout of `cachestat(2)`.
    let rc = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            fd.as_fd().as_raw_fd(),
            &raw const range,
            &raw mut stat,
            0 as libc::c_uint,
        )
    };
    (rc == 0).then_some(stat.cached)
}
