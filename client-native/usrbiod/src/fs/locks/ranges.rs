//! What one owner's locks become when a range is locked or unlocked.

use super::{ByteRange, Lock};

/// Locks to add, and places of locks to remove, in ascending order.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) add: Vec<Lock>,
    pub(super) remove: Vec<usize>,
}

impl Change {
    /// `wanted` over the owner's locks `own`: it melts with those of its kind and cuts those of the other.
    pub(super) fn lock(own: impl Iterator<Item = (usize, Lock)>, wanted: &Lock) -> Change {
        let mut merged = *wanted;
        let mut change = Change::default();
        let mut same = None;
        for (at, lock) in own {
            if lock.kind != wanted.kind {
                change.cut(at, &lock, &wanted.range);
            } else if touches(&lock.range, &wanted.range) {
                merged.range.start = merged.range.start.min(lock.range.start);
                merged.range.end = merged.range.end.max(lock.range.end);
                change.remove.push(at);
                same = Some(lock.range);
            }
        }
        if change.remove.len() == 1 && same == Some(merged.range) {
            return Change::default(); // held already
        }
        change.add.push(merged);
        change
    }

    /// Nothing of the owner's in `range` any more.
    pub(super) fn unlock(own: impl Iterator<Item = (usize, Lock)>, range: ByteRange) -> Change {
        let mut change = Change::default();
        for (at, lock) in own {
            change.cut(at, &lock, &range);
        }
        change
    }

    /// Takes `range` out of `lock`, which leaves none, one or two pieces.
    fn cut(&mut self, at: usize, lock: &Lock, range: &ByteRange) {
        if !lock.range.overlaps(range) {
            return;
        }
        self.remove.push(at);
        if lock.range.start < range.start {
            self.add
                .push(Lock { range: ByteRange { start: lock.range.start, end: range.start - 1 }, ..*lock });
        }
        if lock.range.end > range.end {
            self.add.push(Lock { range: ByteRange { start: range.end + 1, end: lock.range.end }, ..*lock });
        }
    }
}

/// Do they overlap, or lie side by side?
fn touches(a: &ByteRange, b: &ByteRange) -> bool {
    a.start <= b.end.saturating_add(1) && b.start <= a.end.saturating_add(1)
}
