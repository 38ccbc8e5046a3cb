//! Which argument slots of a ring are free. The preparing thread takes, the reaping thread gives back.

use std::sync::atomic::{AtomicU64, Ordering};

const BITS: u32 = u64::BITS;

/// A bitmap of free slots and, above it, a bitmap of its words that are not empty, so that the lowest free slot is
/// found at once also in a ring of many thousand.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    count: u32,
}

impl Slots {
    /// `count` free slots.
    pub(crate) fn new(count: u32) -> Slots {
        let free = full_bitmap(count);
        let summary = full_bitmap(free.len() as u32);
        Slots { free, summary, count }
    }

    /// Takes up to `max` of the lowest free slots, all in one word of the bitmap. One thread takes at a time.
    #[inline]
    pub(crate) fn take(&self, max: u32) -> Lease<'_> {
        for (s, summary) in self.summary.iter().enumerate() {
            let mut words = summary.load(Ordering::Acquire);
            while words != 0 {
                let w = s as u32 * BITS + words.trailing_zeros();
                let word = &self.free[w as usize];
                let mask = lowest_bits(word.load(Ordering::Acquire), max);
                if mask != 0 {
                    let left = word.fetch_and(!mask, Ordering::AcqRel) & !mask;
                    if left == 0 {
                        self.mark_empty(w);
                    }
                    return Lease { slots: self, word: w, mask };
                }
                words &= words - 1;
            }
        }
        Lease { slots: self, word: 0, mask: 0 }
    }

    /// Clears the word's summary bit, and sets it again when a slot came back meanwhile.
    fn mark_empty(&self, word: u32) {
        let (summary, bit) = (&self.summary[(word / BITS) as usize], 1 << (word % BITS));
        summary.fetch_and(!bit, Ordering::SeqCst);
        if self.free[word as usize].load(Ordering::SeqCst) != 0 {
            summary.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Gives back the slots that `mask` names in `word`; `false` if one of them was free or never existed.
    #[inline]
    fn give_back(&self, word: u32, mask: u64) -> bool {
        let before = self.free[word as usize].fetch_or(mask, Ordering::SeqCst);
        if before == 0 {
            self.summary[(word / BITS) as usize].fetch_or(1 << (word % BITS), Ordering::SeqCst);
        }
        before & mask == 0
    }

    /// Starts giving back slots, in any order.
    pub(crate) fn giving_back(&self) -> GiveBack<'_> {
        GiveBack { slots: self, word: 0, mask: 0 }
    }
}

/// The lowest `max` bits that are set in `word`.
fn lowest_bits(word: u64, max: u32) -> u64 {
    match max {
        0 => 0,
        1 => word & word.wrapping_neg(),
        BITS.. => word,
        _ => {
            let mut rest = word;
            for _ in 0..max {
                rest &= rest.wrapping_sub(1);
            }
            word & !rest
        }
    }
}

fn full_bitmap(bits: u32) -> Box<[AtomicU64]> {
    (0..bits.div_ceil(BITS))
        .map(|word| {
            let used = (bits - word * BITS).min(BITS);
            AtomicU64::new(u64::MAX >> (BITS - used))
        })
        .collect()
}

/// Slots taken for requests. Those not used go back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    slots: &'a Slots,
    word: u32,
    mask: u64,
}

impl Lease<'_> {
    /// The lowest one, if there is one; it stays leased until [`used`](Self::used).
    #[inline]
    pub(crate) fn peek(&self) -> Option<u32> {
        (self.mask != 0).then(|| self.word * BITS + self.mask.trailing_zeros())
    }

    /// The slot that [`peek`](Self::peek) showed belongs to a request now.
    #[inline]
    pub(crate) fn used(&mut self) {
        self.mask &= self.mask.wrapping_sub(1);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.mask != 0 {
            self.slots.give_back(self.word, self.mask);
        }
    }
}

/// Collects slots to give back, so that those of one word cost one atomic step.
pub(crate) struct GiveBack<'a> {
    slots: &'a Slots,
    word: u32,
    mask: u64,
}

impl GiveBack<'_> {
    /// Adds a slot; `false` when it is out of range or was free already.
    #[inline]
    pub(crate) fn add(&mut self, slot: i32) -> bool {
        let Some(slot) = u32::try_from(slot).ok().filter(|slot| *slot < self.slots.count) else {
            return false;
        };
        let (word, bit) = (slot / BITS, 1u64 << (slot % BITS));
        if word != self.word {
            self.flush();
            self.word = word;
        }
        let busy = self.slots.free[word as usize].load(Ordering::Relaxed) & bit == 0;
        let known = busy && self.mask & bit == 0;
        if known {
            self.mask |= bit;
        }
        known
    }

    fn flush(&mut self) {
        let mask = std::mem::take(&mut self.mask);
        if mask != 0 {
            self.slots.give_back(self.word, mask);
        }
    }
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_one(slots: &Slots) -> Option<u32> {
        let mut lease = slots.take(1);
        let slot = lease.peek();
        lease.used();
        slot
    }

    #[test]
    fn slots_come_lowest_first_and_end() {
        for count in [1, 63, 64, 65, 4096, 5000] {
            let slots = Slots::new(count);
            for expected in 0..count {
                assert_eq!(take_one(&slots), Some(expected));
            }
            assert_eq!(take_one(&slots), None);
            for slot in [0, count - 1] {
                assert!(slots.giving_back().add(slot as i32));
                assert_eq!(take_one(&slots), Some(slot));
            }
        }
    }

    #[test]
    fn a_lease_gives_back_what_was_not_used() {
        let slots = Slots::new(100);
        let mut lease = slots.take(3);
        assert_eq!(lease.peek(), Some(0));
        lease.used();
        assert_eq!(lease.peek(), Some(1));
        drop(lease);
        assert_eq!(take_one(&slots), Some(1));
    }

    #[test]
    fn a_slot_that_is_free_or_unknown_cannot_be_given_back() {
        let slots = Slots::new(4);
        take_one(&slots);
        let mut back = slots.giving_back();
        assert!(back.add(0));
        assert!(!back.add(0), "twice in one go");
        for wrong in [1, 4, -1, i32::MIN, i32::MAX] {
            assert!(!back.add(wrong), "{wrong}");
        }
    }

    #[test]
    fn two_threads_take_and_give_back_without_losing_a_slot() {
        let slots = Slots::new(130);
        let (send, receive) = std::sync::mpsc::channel::<u32>();
        std::thread::scope(|scope| {
            let slots = &slots;
            scope.spawn(move || {
                for slot in receive {
                    assert!(slots.giving_back().add(slot as i32));
                }
            });
            for _ in 0..200_000 {
                let slot = std::iter::repeat_with(|| take_one(slots)).flatten().next();
                send.send(slot.unwrap()).unwrap();
            }
            drop(send);
        });
        assert_eq!(std::iter::from_fn(|| take_one(&slots)).count(), 130);
    }
}
