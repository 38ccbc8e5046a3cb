//! A backing file as rings read it: what it can do, and its hot parts mapped.
//!
//! Copying from a mapping is twice as fast as `pread` on cached data, but touching a page that is not in memory blocks
//! the worker on the disk. So only chunks that were found in the page cache within the last second are copied, and
//! only where the file has no holes.

use super::shm::SharedMap;
use crate::fs::BackingFile;
use crate::sys::{dio, residency};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// What is checked and mapped in at once.
const CHUNK: u64 = 2 << 20;
/// Inline reads after which a file is mapped.
const HOT_AFTER: u32 = 32;
/// Reads within a chunk after which it is worth checking.
const CHUNK_AFTER: u32 = 4;
/// How long a check holds, in [`Tick`]s.
const VALID_TICKS: u32 = 16;
/// Address space is free, mappings are not: they count against `vm.max_map_count` (65530).
const MAX_MAPS: usize = 4096;
/// A file may grow this far without being mapped anew.
const MAP_AT_LEAST: u64 = 4 << 30;
const PAGE: u64 = 4096;

static MAPS: AtomicUsize = AtomicUsize::new(0);

/// Sixteenths of a second since the worker began, in 24 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tick(u32);

impl Tick {
    const MASK: u32 = 0xff_ffff;

    pub(super) fn at(begun: Instant, now: Instant) -> Tick {
        Tick((now.saturating_duration_since(begun).as_millis() / 62) as u32 & Self::MASK)
    }

    fn later(self, ticks: u32) -> u32 {
        (self.0 + ticks) & Self::MASK
    }

    /// Is `expiry` still to come? It is at most [`VALID_TICKS`] ahead of a tick of the same clock.
    fn before(self, expiry: u32) -> bool {
        let ahead = expiry.wrapping_sub(self.0) & Self::MASK;
        ahead > 0 && ahead <= VALID_TICKS
    }
}

/// A mapped file. Each chunk's word holds the tick until which it counts as resident (24 bits) and the reads since.
struct FileMap {
    map: SharedMap,
    chunks: Box<[AtomicU32]>,
}

impl FileMap {
    fn new(file: &BackingFile, dense: u64) -> Option<FileMap> {
        let len = dense.saturating_mul(2).max(MAP_AT_LEAST).next_multiple_of(CHUNK);
        if MAPS.fetch_add(1, Ordering::Relaxed) >= MAX_MAPS {
            MAPS.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        match SharedMap::new(&file.fd, len, false) {
            Ok(map) => Some(FileMap { map, chunks: (0..len / CHUNK).map(|_| AtomicU32::new(0)).collect() }),
            Err(_) => {
                MAPS.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        MAPS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A backing file with what rings know about it. Shared by the rings of a session.
pub(super) struct RingFile {
    pub(super) backing: Arc<BackingFile>,
    /// Alignment of memory and offsets for direct I/O.
    dio: (u64, u64),
    /// `RWF_NOWAIT` is refused and the file is not in memory either: a read may block.
    may_block: AtomicBool,
    reads: AtomicU32,
    map: OnceLock<Option<FileMap>>,
}

impl RingFile {
    pub(super) fn new(backing: Arc<BackingFile>) -> RingFile {
        let dio = backing.direct.as_ref().map_or((1, 1), dio::alignment);
        RingFile {
            backing,
            dio,
            may_block: AtomicBool::new(false),
            reads: AtomicU32::new(0),
            map: OnceLock::new(),
        }
    }

    /// Can this request go past the page cache?
    pub(super) fn can_go_direct(&self, memory: usize, off: u64, len: u64) -> bool {
        let (mem_align, off_align) = self.dio;
        self.backing.direct.is_some()
            && (memory as u64).is_multiple_of(mem_align)
            && off.is_multiple_of(off_align)
            && len.is_multiple_of(off_align)
    }

    /// Does even `RWF_NOWAIT` not help here?
    pub(super) fn may_block(&self) -> bool {
        self.may_block.load(Ordering::Relaxed)
    }

    pub(super) fn set_may_block(&self) {
        self.may_block.store(true, Ordering::Relaxed);
    }

    /// Copies `off..off + len`, all of which is below `dense`, if that is known to be in memory. The caller asks `to` whether
    /// it is poisoned.
    #[inline]
    pub(super) fn copy_hot(
        &self,
        to: &SharedMap,
        at: u64,
        off: u64,
        len: u64,
        dense: u64,
        now: Tick,
    ) -> bool {
        let Some(map) = self.map.get() else {
            self.count_read(dense);
            return false;
        };
        let Some(file) = map else { return false };
        if off + len > file.map.len() as u64 || file.map.poisoned() {
            return false;
        }
        let (first, last) = (off / CHUNK, (off + len - 1) / CHUNK);
        if !(first..=last).all(|chunk| self.resident(file, chunk, dense, now)) {
            return false;
        }
        to.copy_from(at, &file.map, off, len);
        !file.map.poisoned()
    }

    /// The `HOT_AFTER`-th read maps the file.
    #[cold]
    fn count_read(&self, dense: u64) {
        if self.may_block() || dense < PAGE {
            return;
        }
        if self.reads.fetch_add(1, Ordering::Relaxed) >= HOT_AFTER {
            self.map.get_or_init(|| FileMap::new(&self.backing, dense));
        }
    }

    #[inline]
    fn resident(&self, file: &FileMap, chunk: u64, dense: u64, now: Tick) -> bool {
        let word = &file.chunks[chunk as usize];
        let seen = word.load(Ordering::Relaxed);
        now.before(seen >> 8) || self.check(file, chunk, dense, now, word, seen)
    }

    #[cold]
    fn check(&self, file: &FileMap, chunk: u64, dense: u64, now: Tick, word: &AtomicU32, seen: u32) -> bool {
        let reads = (seen & 0xff) + 1;
        if reads < CHUNK_AFTER {
            word.store(reads, Ordering::Relaxed);
            return false;
        }
        let off = chunk * CHUNK;
        let len = CHUNK.min(dense - off);
        let cached = self.backing.in_memory
            || residency::cached_pages(&self.backing.fd, off, len) == Some(len.div_ceil(PAGE));
        let resident = cached && file.map.populate(off, len);
        word.store(if resident { now.later(VALID_TICKS) << 8 } else { 0 }, Ordering::Relaxed);
        resident
    }
}
