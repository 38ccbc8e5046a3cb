//! Ring geometry and index arithmetic, modulo the number of slots.

use crate::layout::{ARGS_LEN, CQE_LEN, INDEX_WORDS_LEN, SEM_LEN, SLACK_LEN, SQE_LEN};

/// A position in the submission or completion queue, always inside the ring that it was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slot(u32);

impl Slot {
    /// The first slot, where both queues of a new ring start.
    pub const ZERO: Slot = Slot(0);

    /// The number as it is stored in an index word.
    #[inline]
    pub fn raw(self) -> i32 {
        self.0 as i32 // below `slots`, which fits an i32 (see `Geometry::for_entries`)
    }

    pub(crate) fn index(self) -> u32 {
        self.0
    }
}

/// How a ring of `entries` requests lies in its shared-memory file. It comes from the size that was
/// registered, never from the ring's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    slots: u32,
}

/// Bytes of one slot over all three arrays.
const PER_SLOT: u64 = (ARGS_LEN + CQE_LEN + SQE_LEN) as u64;
/// Bytes of everything else.
const FIXED: u64 = (INDEX_WORDS_LEN + SEM_LEN + SLACK_LEN) as u64;
/// Keeps every offset and index inside an `i32`.
const MAX_ENTRIES: u32 = (i32::MAX as u64 / PER_SLOT - 64) as u32;

impl Geometry {
    /// The geometry of a ring that holds `entries` requests; `None` for 0 and for sizes beyond 2 GiB.
    pub fn for_entries(entries: u32) -> Option<Geometry> {
        (1..=MAX_ENTRIES).contains(&entries).then(|| Geometry { slots: entries + 1 })
    }

    /// The geometry of the ring in a shared-memory file of `len` bytes: the largest that fits, as 3FS computes
    /// it (`floor((len - 4144) / 96) - 1`); `None` when not one request fits or it is beyond 2 GiB.
    pub fn for_file_len(len: u64) -> Option<Geometry> {
        let entries = (len.checked_sub(FIXED)? / PER_SLOT).checked_sub(1)?;
        Geometry::for_entries(u32::try_from(entries).ok()?)
    }

    /// Requests that may be in flight.
    #[inline]
    pub fn entries(self) -> u32 {
        self.slots - 1
    }

    /// Slots in each array: one more than entries, so that full and empty differ.
    #[inline]
    pub fn slots(self) -> u32 {
        self.slots
    }

    /// Bytes of the shared-memory file (`hf3fs_ior_size`).
    pub fn file_len(self) -> usize {
        (FIXED + PER_SLOT * u64::from(self.slots)) as usize
    }

    /// Byte offset of argument slot `slot`, for `slot < slots`.
    #[inline]
    pub fn args_at(self, slot: u32) -> usize {
        INDEX_WORDS_LEN + ARGS_LEN * slot as usize
    }

    /// Byte offset of a completion-queue entry.
    #[inline]
    pub fn cqe_at(self, slot: Slot) -> usize {
        INDEX_WORDS_LEN + ARGS_LEN * self.slots as usize + CQE_LEN * slot.0 as usize
    }

    /// Byte offset of a submission-queue entry.
    #[inline]
    pub fn sqe_at(self, slot: Slot) -> usize {
        INDEX_WORDS_LEN + (ARGS_LEN + CQE_LEN) * self.slots as usize + SQE_LEN * slot.0 as usize
    }

    /// Byte offset of the completion semaphore (a glibc `sem_t`).
    pub fn sem_at(self) -> usize {
        INDEX_WORDS_LEN + PER_SLOT as usize * self.slots as usize
    }

    /// The slot that an index word names, if it names one.
    #[inline]
    pub fn slot(self, raw: i32) -> Option<Slot> {
        u32::try_from(raw).ok().filter(|raw| *raw < self.slots).map(Slot)
    }

    /// The slot after `slot`.
    #[inline]
    pub fn next(self, slot: Slot) -> Slot {
        Slot(if slot.0 + 1 == self.slots { 0 } else { slot.0 + 1 })
    }

    /// The slot `n` places after `slot`.
    #[inline]
    pub fn advance(self, slot: Slot, n: u32) -> Slot {
        let sum = slot.0 + n % self.slots;
        Slot(if sum >= self.slots { sum - self.slots } else { sum })
    }

    /// How many steps lead from `tail` forward to `head`: below `slots` always.
    #[inline]
    pub fn distance(self, tail: Slot, head: Slot) -> u32 {
        if head.0 >= tail.0 { head.0 - tail.0 } else { head.0 + self.slots - tail.0 }
    }
}
