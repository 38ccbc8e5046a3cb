//! What one owner's locks become when a range is locked or unlocked.

use super::intervals::Place;
use super::{ByteRange, Lock};

/// Locks to add, and places of locks to remove.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) add: Vec<Lock>,
    pub(super) remove: Vec<(Place, ByteRange)>,
}

impl Change {
    /// `wanted` over those of the owner's locks that touch it: it melts with those of its kind and cuts those of the other.
    pub(super) fn lock(own: impl Iterator<Item = (Place, Lock)>, wanted: &Lock) -> Change {
        let mut merged = *wanted;
        let mut change = Change::default();
        let mut same = None;
        for (place, lock) in own {
            if lock.kind != wanted.kind {
                change.cut(place, &lock, &wanted.range);
            } else {
                merged.range = merged.range.hull(&lock.range);
                change.remove.push((place, lock.range));
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
    pub(super) fn unlock(own: impl Iterator<Item = (Place, Lock)>, range: ByteRange) -> Change {
        let mut change = Change::default();
        for (place, lock) in own {
            change.cut(place, &lock, &range);
        }
        change
    }

    /// Takes `range` out of `lock`, which leaves none, one or two pieces.
    fn cut(&mut self, place: Place, lock: &Lock, range: &ByteRange) {
        if !lock.range.overlaps(range) {
            return;
        }
        self.remove.push((place, lock.range));
        let ByteRange { start, end } = lock.range;
        if start < range.start {
            self.add.push(Lock { range: ByteRange { start, end: range.start - 1 }, ..*lock });
        }
        if end > range.end {
            self.add.push(Lock { range: ByteRange { start: range.end + 1, end }, ..*lock });
        }
    }
}
