//! The file of a session: its first page says which tables it holds and where.
//!
//! ```text
//! page 0   0  magic "usrbiod2", number of tables
//!         64  one entry of 64 bytes a table: kind, version, size of a record, capacity, place, high-water mark
//!       2048  the table of kind 1, the session's header, of one record
//! page 1 …    the other tables, at whole pages; sparse
//! ```
//!
//! Nothing is ever touched that has no space on disk: a store to a hole of a full file system ends the process by SIGBUS,
//! and on tmpfs a load does too.

use super::OpenError;
use super::records::Record;
use crate::types::{Errno, Result};
use rustix::fs::FallocateFlags;
use rustix::io::{pread, pwrite};
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// First 8 bytes of a state file.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"usrbiod2");
pub(super) const PAGE: u64 = 4096;
/// Where the record of the session's header lies.
const HEADER_AT: u64 = 2048;
const ENTRIES_AT: usize = 64;
const TABLES_WORD: usize = 8;
const MOST_TABLES: usize = (HEADER_AT as usize - ENTRIES_AT) / size_of::<Entry>();
/// No file is longer: 16 million nodes take 2.3 GiB.
const MOST_BYTES: u64 = 1 << 40;

/// What the directory says of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Entry {
    /// [`Record::KIND`].
    pub kind: u32,
    /// [`Record::VERSION`] of the newest writer.
    pub version: u32,
    /// Bytes from one record to the next.
    pub record_size: u32,
    /// Most records.
    pub capacity: u32,
    /// Place of the first record in the file.
    pub offset: u64,
    /// Records from here on never were.
    pub high_water: u32,
    pub spare: [u32; 9],
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Entry {
    fn of<R: Record>(offset: u64) -> Entry {
        Entry {
            kind: R::KIND,
            version: R::VERSION,
            record_size: size_of::<R>() as u32,
            capacity: R::CAPACITY,
            offset,
            ..Entry::new_zeroed()
        }
    }

    fn bytes(&self) -> u64 {
        u64::from(self.record_size) * u64::from(self.capacity)
    }

    fn is_sound(&self, file_len: u64) -> bool {
        let end = self.offset.checked_add(self.bytes());
        self.record_size >= 8
            && self.record_size.is_multiple_of(8)
            && self.offset >= HEADER_AT
            && self.offset.is_multiple_of(8)
            && end.is_some_and(|end| end <= file_len)
    }
}

/// The directory as it is read from a file or made for a new one.
pub(super) struct Directory {
    entries: Vec<Entry>,
    /// Of these, how many are in the file.
    written: usize,
    end: u64,
}

impl Directory {
    pub(super) fn empty() -> Directory {
        Directory { entries: Vec::new(), written: 0, end: PAGE }
    }

    /// Reads page 0. `None`: nothing was ever written to the file.
    pub(super) fn read(file: &OwnedFd) -> std::result::Result<Option<Directory>, OpenError> {
        let len = rustix::fs::fstat(file)?.st_size.cast_unsigned();
        let mut page = [0; PAGE as usize];
        let got = pread(file, &mut page, 0)?;
        let magic = u64::from_ne_bytes(std::array::from_fn(|i| page[i]));
        let count = u32::from_ne_bytes(std::array::from_fn(|i| page[TABLES_WORD + i])) as usize;
        if len == 0 || (magic == 0 && got == page.len()) {
            return Ok(None);
        }
        if magic != MAGIC || !len.is_multiple_of(PAGE) || len > MOST_BYTES || count > MOST_TABLES {
            return Err(OpenError::refused(
                "it is no state file of usrbiod, or of a version that is not known",
            ));
        }
        let bytes = &page[ENTRIES_AT..][..count * size_of::<Entry>()];
        let entries: Vec<Entry> = bytes
            .chunks_exact(size_of::<Entry>())
            .map(|bytes| Entry::read_from_bytes(bytes).unwrap_or(Entry::new_zeroed()))
            .collect();
        match entries.iter().find(|entry| !entry.is_sound(len)) {
            Some(entry) => Err(OpenError::refused(format!("its table of kind {} is damaged", entry.kind))),
            None => Ok(Some(Directory { written: count, entries, end: len })),
        }
    }

    /// Index of the table of `R`, which is made if there is none.
    pub(super) fn place<R: Record>(&mut self) -> usize {
        if let Some(index) = self.entries.iter().position(|entry| entry.kind == R::KIND) {
            return index;
        }
        // The header shares page 0 with the directory.
        let offset = if R::CAPACITY == 1 { HEADER_AT } else { self.end };
        let entry = Entry::of::<R>(offset);
        self.end = self.end.max((offset + entry.bytes()).next_multiple_of(PAGE));
        self.entries.push(entry);
        self.entries.len() - 1
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Makes the file long enough, maps it and writes the directory there.
    pub(super) fn map(self, file: OwnedFd) -> Result<Mapping> {
        assert!(self.entries.len() <= MOST_TABLES);
        rustix::fs::ftruncate(&file, self.end)?;
        reserve(&file, 0, PAGE)?;
        let map = Mapping::new(file, self.end as usize)?;
        for (index, entry) in self.entries.iter().enumerate().skip(self.written) {
            for (i, word) in entry.as_bytes().chunks_exact(8).enumerate() {
                let word = u64::from_ne_bytes(std::array::from_fn(|i| word[i]));
                map.word(entry_at(index) + 8 * i).store(word, Ordering::Relaxed);
            }
        }
        map.half(TABLES_WORD).store(self.entries.len() as u32, Ordering::Release);
        map.word(0).store(MAGIC, Ordering::Release);
        Ok(map)
    }
}

/// Place of an entry in the file.
pub(super) fn entry_at(index: usize) -> usize {
    ENTRIES_AT + index * size_of::<Entry>()
}

/// A shared mapping of a whole file, unmapped when the last table is gone.
pub(super) struct Mapping {
    base: *mut u8,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the mapping is only touched word by word, as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: OwnedFd, len: usize) -> Result<Mapping> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags, &file, 0)?
        };
        let map = Mapping { base: base.cast(), len, file };
        // Records lie far apart in a sparse file: read-ahead would fill memory with pages of zeros (measured with 100
        // idle sessions: 40 MiB resident with it, 12 MiB without).
        // SAFETY: advice changes no byte of the mapping, which is ours.
        unsafe { rustix::mm::madvise(base, len, rustix::mm::Advice::Random)? };
        Ok(map)
    }

    /// The word at `at`. Panics outside the mapping or unaligned.
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < self.len && 8 <= self.len - at);
        // SAFETY: inside the mapping and aligned, as just checked (it begins at a page); it lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.add(at).cast()) }
    }

    /// The half word at `at`, likewise.
    pub(super) fn half(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at < self.len && 4 <= self.len - at);
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(self.base.add(at).cast()) }
    }

    /// Has space on disk for `from..to`; what lies before `from` has it. `grows`: the table is big already, and leaves the rest
    /// of a file system that is nearly full to others.
    pub(super) fn reserve(&self, from: u64, to: u64, grows: bool) -> Result<()> {
        if grows && is_nearly_full(&self.file) {
            return Err(Errno::NOSPC);
        }
        // The page that `from` lies in has its space: it holds the record before.
        let (from, to) = (from.next_multiple_of(PAGE), to.next_multiple_of(PAGE));
        if from < to { reserve(&self.file, from, to - from) } else { Ok(()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base..base + len` is ours alone, and every `Table` over it is gone (they hold an `Arc`).
        // The only error is a wrong range.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.len) };
    }
}

/// Less than an eighth is left, and less than 64 MiB.
fn is_nearly_full(file: &OwnedFd) -> bool {
    let Ok(fs) = rustix::fs::fstatvfs(file) else { return false };
    // A memfd has no blocks that could be counted.
    let unit = if fs.f_frsize == 0 { fs.f_bsize } else { fs.f_frsize };
    fs.f_blocks != 0 && fs.f_bavail < fs.f_blocks / 8 && fs.f_bavail.saturating_mul(unit) < 64 << 20
}

fn reserve(file: &OwnedFd, from: u64, len: u64) -> Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), from, len) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP) => return write_holes(file, from, len),
            result => return result,
        }
    }
}

/// What `fallocate` does, where there is none. Nothing else writes to these pages meanwhile.
fn write_holes(file: &OwnedFd, from: u64, len: u64) -> Result<()> {
    let mut page = [0; PAGE as usize];
    for at in (from..from + len).step_by(PAGE as usize) {
        // A page that holds something has its space; it is written as it was.
        let got = pread(file, &mut page, at)?;
        page[got..].fill(0);
        let mut done = 0;
        while done < page.len() {
            match pwrite(file, &page[done..], at + done as u64) {
                Ok(0) => return Err(Errno::NOSPC),
                Ok(wrote) => done += wrote,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
