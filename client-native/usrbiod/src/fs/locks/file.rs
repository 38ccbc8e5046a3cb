//! The locks on one inode, in one space.

use super::intervals::{Intervals, Place};
use super::ranges::Change;
use super::session::SessionLocks;
use super::{Answer, ByteRange, Key, Lock, LockKind, LockOwner, to_record};
use crate::types::{Errno, Result};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// By `session`, what a session has.
pub(super) trait Sessions {
    fn find(&self, session: u32) -> Option<Arc<SessionLocks>>;
}

/// See the module. Every lock is in the map of its kind and in that of its owner, at the same place.
#[derive(Default)]
pub(super) struct FileLocks {
    reads: Intervals<Holder>,
    writes: Intervals<Holder>,
    owners: HashMap<LockOwner, Intervals<Held>>,
    /// By arrival: the number of a place counts up.
    waiters: Intervals<Waiter>,
    waiting: HashMap<(u32, u64), Place>,
    next: u64,
    /// Empty and out of the table.
    pub(super) dead: bool,
}

#[derive(Debug, Clone, Copy)]
struct Holder {
    owner: LockOwner,
    pid: u32,
}

/// A lock and its record in the state of its session.
struct Held {
    kind: LockKind,
    pid: u32,
    record: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) unique: u64,
    pub(super) lock: Lock,
}

impl FileLocks {
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.waiters.is_empty()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn of_kind(&mut self, kind: LockKind) -> &mut Intervals<Holder> {
        match kind {
            LockKind::Read => &mut self.reads,
            LockKind::Write => &mut self.writes,
        }
    }

    /// Does `each` for locks of others that are in the way of `wanted`, until it breaks.
    pub(super) fn conflicts<B>(
        &self,
        wanted: &Lock,
        mut each: impl FnMut(Lock) -> ControlFlow<B>,
    ) -> Option<B> {
        let mut of_kind = |held: &Intervals<Holder>, kind| {
            held.overlapping(wanted.range, |_, range, holder| {
                if holder.owner == wanted.owner {
                    return ControlFlow::Continue(());
                }
                each(Lock { kind, range, owner: holder.owner, pid: holder.pid })
            })
        };
        let writes = of_kind(&self.writes, LockKind::Write);
        if writes.is_some() || wanted.kind == LockKind::Read {
            return writes;
        }
        of_kind(&self.reads, LockKind::Read)
    }

    /// A lock that `wanted` would have to wait for.
    pub(super) fn conflict(&self, wanted: &Lock) -> Option<Lock> {
        self.conflicts(wanted, ControlFlow::Break)
    }

    fn owned_in(&self, owner: LockOwner, range: ByteRange) -> impl Iterator<Item = (Place, Lock)> {
        let held = self.owners.get(&owner).map(|held| held.all_in(range)).unwrap_or_default();
        held.into_iter()
            .map(move |(place, range, held)| (place, Lock { kind: held.kind, range, owner, pid: held.pid }))
    }

    /// Gives `wanted` to its owner: what became free by it.
    pub(super) fn acquire(
        &mut self,
        key: Key,
        wanted: &Lock,
        session: &SessionLocks,
    ) -> Result<Vec<ByteRange>> {
        // Neighbours melt, too.
        let ByteRange { start, end } = wanted.range;
        let touched = ByteRange { start: start.saturating_sub(1), end: end.saturating_add(1) };
        let change = Change::lock(self.owned_in(wanted.owner, touched), wanted);
        self.apply(key, wanted.owner, change, session)
    }

    /// Takes `range` from `owner`: what became free by it.
    pub(super) fn unlock(
        &mut self,
        key: Key,
        owner: LockOwner,
        range: ByteRange,
        session: &SessionLocks,
    ) -> Result<Vec<ByteRange>> {
        let change = Change::unlock(self.owned_in(owner, range), range);
        self.apply(key, owner, change, session)
    }

    /// Carries out a change of what `owner` holds: all of it, or nothing.
    fn apply(
        &mut self,
        key: Key,
        owner: LockOwner,
        change: Change,
        session: &SessionLocks,
    ) -> Result<Vec<ByteRange>> {
        if change.add.is_empty() && change.remove.is_empty() {
            return Ok(Vec::new());
        }
        session.count(owner, change.add.len(), change.remove.len())?;
        let mut records = Vec::with_capacity(change.add.len());
        for lock in &change.add {
            let Some(record) = session.state.locks.insert(&to_record(key, lock)) else {
                records.iter().for_each(|new| session.state.locks.remove(*new));
                session.recount(owner, change.remove.len() as u32, change.add.len() as u32);
                return Err(Errno::NOLCK);
            };
            records.push(record);
        }
        let freed = change.remove.iter().map(|(_, range)| *range).collect();
        for (place, _) in change.remove {
            self.take(owner, place, session);
        }
        for (lock, record) in change.add.into_iter().zip(records) {
            self.enter(&lock, record);
        }
        Ok(freed)
    }

    /// Enters a lock that has its record.
    pub(super) fn enter(&mut self, lock: &Lock, record: u32) {
        let number = self.number();
        let Lock { kind, range, owner, pid } = *lock;
        self.of_kind(kind).insert(range, number, Holder { owner, pid });
        self.owners.entry(owner).or_default().insert(range, number, Held { kind, pid, record });
    }

    /// Removes a lock and its record.
    fn take(&mut self, owner: LockOwner, place: Place, session: &SessionLocks) {
        let Some(all) = self.owners.get_mut(&owner) else { return };
        let held = all.remove(place);
        if all.is_empty() {
            self.owners.remove(&owner);
        }
        if let Some(held) = held {
            self.of_kind(held.kind).remove(place);
            session.state.locks.remove(held.record);
        }
    }

    /// Takes everything from `owner`: what became free by it.
    pub(super) fn drop_owner(&mut self, owner: LockOwner, session: &SessionLocks) -> Vec<ByteRange> {
        let all: Vec<_> =
            self.owned_in(owner, ByteRange::ALL).map(|(place, lock)| (place, lock.range)).collect();
        for (place, _) in &all {
            self.take(owner, *place, session);
        }
        if !all.is_empty() {
            session.recount(owner, 0, all.len() as u32);
        }
        let ranges = all.into_iter().map(|(_, range)| range);
        ranges.reduce(|a, b| a.hull(&b)).into_iter().collect()
    }

    /// Takes everything from the owners of a session, and forgets its waiters, of which the numbers come back.
    pub(super) fn drop_session(
        &mut self,
        number: u32,
        session: &SessionLocks,
    ) -> (Vec<ByteRange>, Vec<Waiter>) {
        let gone: Vec<_> = self.waiting.keys().filter(|(of, _)| *of == number).copied().collect();
        let waiters = gone.into_iter().filter_map(|(of, unique)| self.unpark(of, unique)).collect();
        let owners: Vec<_> = self.owners.keys().filter(|owner| owner.session == number).copied().collect();
        let freed = owners.into_iter().flat_map(|owner| self.drop_owner(owner, session)).collect();
        (freed, waiters)
    }

    pub(super) fn park(&mut self, unique: u64, lock: &Lock) {
        let number = self.number();
        let place = self.waiters.insert(lock.range, number, Waiter { unique, lock: *lock });
        self.waiting.insert((lock.owner.session, unique), place);
    }

    pub(super) fn unpark(&mut self, session: u32, unique: u64) -> Option<Waiter> {
        let place = self.waiting.remove(&(session, unique))?;
        self.waiters.remove(place)
    }

    /// What a request waits for, if it still does.
    pub(super) fn waits_for(&self, session: u32, unique: u64) -> Option<Lock> {
        let place = self.waiting.get(&(session, unique))?;
        self.waiters.get(*place).map(|(_, waiter)| waiter.lock)
    }

    /// Grants what has become possible since `freed` became free, the longest waiting first, until nothing more is. With
    /// each answer, who waited.
    pub(super) fn settle(
        &mut self,
        key: Key,
        mut freed: Vec<ByteRange>,
        sessions: &impl Sessions,
    ) -> Vec<(Answer, LockOwner)> {
        let mut answers = Vec::new();
        while !freed.is_empty() && !self.waiters.is_empty() {
            let mut next: Vec<(u64, Waiter)> = Vec::new();
            for range in freed.drain(..) {
                next.extend(
                    self.waiters.all_in(range).into_iter().map(|(place, _, waiter)| (place.1, *waiter)),
                );
            }
            next.sort_unstable_by_key(|(arrived, _)| *arrived);
            next.dedup_by_key(|(arrived, _)| *arrived);
            for (_, Waiter { unique, lock }) in next {
                if self.conflict(&lock).is_some() {
                    continue;
                }
                let number = lock.owner.session;
                self.unpark(number, unique);
                let session = sessions.find(number);
                let result = session.ok_or(Errno::NOLCK).and_then(|session| {
                    session.unpark(unique);
                    self.acquire(key, &lock, &session)
                });
                let result = result.map(|more| freed.extend(more));
                answers.push((Answer { session: number, unique, result }, lock.owner));
            }
        }
        answers
    }

    /// Every lock, for tests.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<Lock> {
        let of = |held: &Intervals<Holder>, kind| {
            let all = held.all_in(ByteRange::ALL).into_iter();
            all.map(|(_, range, h)| Lock { kind, range, owner: h.owner, pid: h.pid }).collect::<Vec<_>>()
        };
        [of(&self.reads, LockKind::Read), of(&self.writes, LockKind::Write)].concat()
    }
}
