//! Tables of fixed-size records in a state file.

use super::OpenError;
use super::file::{Entry, Mapping, PAGE, entry_at};
use super::records::Record;
use crate::types::{Errno, Result};
use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Space is reserved for half as much again as there is, but for this much at most.
const MOST_RESERVED: u64 = 1 << 20;
/// A table that takes more leaves the rest of a file system that is nearly full to others.
const MODEST: u64 = 256 << 10;

/// Records at a fixed place of the file. The directory holds the high-water mark, so that a successor need not scan
/// records that never were.
pub struct Table<R> {
    map: Arc<Mapping>,
    entry: usize,
    at: u64,
    stride: u64,
    capacity: u32,
    room: Mutex<Room>,
    records: PhantomData<R>,
}

/// Where the next records go.
#[derive(Default)]
struct Room {
    free: Vec<u32>,
    /// Records before this one have their space on disk.
    reserved: u32,
    /// It was logged that there is none.
    told: bool,
}

impl<R: Record> Table<R> {
    /// The table that entry `index` describes. What a newer version brought must not be in use in it.
    pub(super) fn open(
        map: &Arc<Mapping>,
        index: usize,
        entry: &Entry,
    ) -> std::result::Result<Table<R>, OpenError> {
        let stride = u64::from(entry.record_size);
        if stride < size_of::<R>() as u64 {
            return Err(OpenError::refused(format!("records of its table `{}` are too short", R::NAME)));
        }
        let table = Table {
            map: map.clone(),
            entry: entry_at(index),
            at: entry.offset,
            stride,
            capacity: entry.capacity,
            room: Mutex::default(),
            records: PhantomData,
        };
        if entry.version > R::VERSION && !table.is_understood() {
            return Err(OpenError::refused(format!(
                "a newer version wrote its table `{}` (version {}; this usrbiod knows {}) and used what is new in it",
                R::NAME,
                entry.version,
                R::VERSION
            )));
        }
        map.half(table.entry + offset_of!(Entry, version)).fetch_max(R::VERSION, Ordering::Relaxed);
        let high = table.high_water();
        let end = (table.at + u64::from(high) * stride).next_multiple_of(PAGE);
        let reserved = ((end - table.at) / stride).min(u64::from(table.capacity)) as u32;
        let reserved = if high == 0 && table.at.is_multiple_of(PAGE) { 0 } else { reserved };
        let free = (0..high).rev().filter(|i| table.tag(*i) == 0).collect();
        *table.room() = Room { free, reserved, told: false };
        Ok(table)
    }

    /// Is everything zero that this version does not know?
    fn is_understood(&self) -> bool {
        (0..self.high_water()).filter(|i| self.tag(*i) != 0).all(|i| {
            let words = (R::SPARE / 4 * 4..self.stride as usize).step_by(4);
            let unknown = words.map(|at| self.map.half(self.slot(i) + at).load(Ordering::Relaxed));
            self.tag(i) <= R::TAGS && unknown.into_iter().all(|word| word == 0)
        })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn slot(&self, index: u32) -> usize {
        (self.at + self.stride * u64::from(index)) as usize
    }

    fn tag(&self, index: u32) -> u32 {
        self.map.half(self.slot(index)).load(Ordering::Acquire)
    }

    fn mark(&self) -> &AtomicU32 {
        self.map.half(self.entry + offset_of!(Entry, high_water))
    }

    fn high_water(&self) -> u32 {
        self.mark().load(Ordering::Acquire).min(self.capacity)
    }

    /// A copy of record `index`, if there is one.
    pub fn get(&self, index: u32) -> Option<R> {
        // Beyond the mark there may be no space behind the mapping.
        if index >= self.high_water() || self.tag(index) == 0 {
            return None;
        }
        let slot = self.slot(index);
        let mut record = R::new_zeroed();
        for (i, bytes) in record.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.map.word(slot + 8 * i).load(Ordering::Relaxed).to_ne_bytes());
        }
        Some(record)
    }

    /// Writes a record that was there before, tag last. A successor sees the old record, none, or the new one; change
    /// single fields of a live record with [`field`](Self::field). Panics where there never was a record.
    pub fn put(&self, index: u32, record: &R) {
        assert!(index < self.high_water(), "record {index} of `{}` never was", R::NAME);
        self.write(index, record);
    }

    fn write(&self, index: u32, record: &R) {
        let slot = self.slot(index);
        let tag_word = self.map.half(slot);
        tag_word.store(0, Ordering::Release);
        let (first, rest) = record.as_bytes().split_at(8);
        for (i, bytes) in rest.chunks_exact(8).enumerate() {
            self.map.word(slot + 8 + 8 * i).store(u64::from_ne_bytes(eight(bytes)), Ordering::Relaxed);
        }
        // What a newer version put behind its records.
        for at in (size_of::<R>()..self.stride as usize).step_by(8) {
            self.map.word(slot + at).store(0, Ordering::Relaxed);
        }
        let first = u64::from_ne_bytes(eight(first));
        self.map.half(slot + 4).store((first >> 32) as u32, Ordering::Relaxed);
        self.mark().fetch_max(index + 1, Ordering::AcqRel);
        tag_word.store(first as u32, Ordering::Release);
    }

    /// Writes a record over one that is there and stays there, whatever happens: word by word, the first one last.
    pub(super) fn overwrite(&self, index: u32, record: &R) {
        assert!(index < self.high_water(), "record {index} of `{}` never was", R::NAME);
        for (i, bytes) in record.as_bytes().chunks_exact(8).enumerate().skip(1) {
            self.field_word(index, 8 * i).store(u64::from_ne_bytes(eight(bytes)), Ordering::Relaxed);
        }
        let first = u64::from_ne_bytes(eight(record.as_bytes()));
        self.field_word(index, 0).store(first, Ordering::Release);
    }

    /// Writes a record where there is room; `None` when the table is full, or the file system that the file lies on.
    pub fn insert(&self, record: &R) -> Option<u32> {
        let mut room = self.room();
        let index = match room.free.pop() {
            Some(index) => index,
            None => {
                let next = self.high_water();
                if next >= room.reserved && !self.grow(&mut room) {
                    return None;
                }
                next
            }
        };
        self.write(index, record);
        Some(index)
    }

    fn grow(&self, room: &mut Room) -> bool {
        if room.reserved >= self.capacity {
            return false;
        }
        let used = u64::from(room.reserved) * self.stride;
        let more = (used / 2).clamp(self.stride.max(PAGE), MOST_RESERVED);
        match self.reserve_bytes(room, used + more, used > MODEST) {
            Ok(()) => room.told = false,
            Err(error) if !room.told => {
                let table = R::NAME;
                tracing::warn!(table, %error, "no space for more records: make room in the file system of --state-dir");
                room.told = true;
            }
            Err(_) => {}
        }
        self.high_water() < room.reserved
    }

    fn reserve_bytes(&self, room: &mut Room, bytes: u64, grows: bool) -> Result<()> {
        let end =
            (self.at + bytes).next_multiple_of(PAGE).min(self.at + self.stride * u64::from(self.capacity));
        self.map.reserve(self.at + u64::from(room.reserved) * self.stride, end, grows)?;
        room.reserved = ((end - self.at) / self.stride) as u32;
        Ok(())
    }

    /// Has space for `records` before anything needs it. `ENOSPC`: there is none.
    pub(super) fn reserve(&self, records: u32) -> Result<()> {
        let mut room = self.room();
        if records > self.capacity {
            return Err(Errno::NOSPC);
        }
        if records > room.reserved {
            self.reserve_bytes(&mut room, u64::from(records) * self.stride, false)?;
        }
        Ok(())
    }

    /// Puts a record where a predecessor had it. Its space must be [reserved](Self::reserve), and the table be opened again
    /// before anything is inserted.
    pub(super) fn restore(&self, index: u32, record: &R) {
        assert!(index < self.room().reserved);
        self.write(index, record);
    }

    /// Frees record `index`, if there is one.
    pub fn remove(&self, index: u32) {
        let mut room = self.room();
        if index < self.high_water() && self.map.half(self.slot(index)).swap(0, Ordering::AcqRel) != 0 {
            room.free.push(index);
        }
    }

    /// Every record with its index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, R)> + '_ {
        (0..self.high_water()).filter_map(|i| Some((i, self.get(i)?)))
    }

    fn field_word(&self, index: u32, offset: usize) -> &AtomicU64 {
        self.map.word(self.slot(index) + offset)
    }

    /// A `u64` field of record `index`, at `offset_of!(R, field)`, to be changed in place; `None` where there never was a
    /// record.
    pub fn field(&self, index: u32, offset: usize) -> Option<&AtomicU64> {
        assert!(offset.is_multiple_of(8) && offset + 8 <= size_of::<R>());
        (index < self.high_water()).then(|| self.field_word(index, offset))
    }

    /// A `u32` field of record `index`, likewise.
    pub fn field32(&self, index: u32, offset: usize) -> Option<&AtomicU32> {
        assert!(offset.is_multiple_of(4) && offset + 4 <= size_of::<R>());
        (index < self.high_water()).then(|| self.map.half(self.slot(index) + offset))
    }
}

/// Has record of a table that this version does not know a tag?
pub(super) fn is_empty(map: &Mapping, entry: &Entry) -> bool {
    (0..entry.high_water.min(entry.capacity)).all(|i| {
        let at = entry.offset + u64::from(i) * u64::from(entry.record_size);
        map.half(at as usize).load(Ordering::Acquire) == 0
    })
}

fn eight(bytes: &[u8]) -> [u8; 8] {
    std::array::from_fn(|i| bytes[i])
}
