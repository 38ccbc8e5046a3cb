//! Advisory locks: POSIX byte ranges and BSD `flock`, over backing inodes.
//!
//! One table serves all sessions, so that pods which mount one directory see each other's locks. What a session holds
//! is also in its state file. New records are written before old ones are removed: a successor may find records of one
//! owner that overlap, never a gap; the request that was cut short comes again and puts that right.

mod ranges;
#[cfg(test)]
mod tests;

use crate::state::SessionState;
use crate::state::records::LockRec;
use crate::types::{Errno, Result};
use ranges::Change;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

/// A backing inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// The two kinds of locks; they do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// `fcntl` byte ranges.
    Posix,
    /// `flock`, always the whole file.
    Flock,
}

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockOwner {
    /// Number of the session, unique in the daemon.
    pub session: u32,
    /// The kernel's name for the owner.
    pub id: u64,
}

/// How a range is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// Shared, `F_RDLCK`.
    Read,
    /// Exclusive, `F_WRLCK`.
    Write,
}

/// First and last byte, both inside; the last is `OFFSET_MAX` for "to the end".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
}

impl ByteRange {
    /// The whole file.
    pub const ALL: ByteRange = ByteRange { start: 0, end: i64::MAX as u64 };

    /// Do both hold a byte?
    pub fn overlaps(&self, other: &ByteRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// A lock that is asked for or held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// How.
    pub kind: LockKind,
    /// Where.
    pub range: ByteRange,
    /// Whose.
    pub owner: LockOwner,
    /// The process, for `F_GETLK`.
    pub pid: u32,
}

impl Lock {
    fn conflicts(&self, other: &Lock) -> bool {
        let exclusive = self.kind == LockKind::Write || other.kind == LockKind::Write;
        exclusive && self.owner != other.owner && self.range.overlaps(&other.range)
    }
}

/// A request that waited and now has its answer: reply to `unique` on the channel of `session`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Number of the session.
    pub session: u32,
    /// The request.
    pub unique: u64,
    /// What to reply.
    pub result: Result<()>,
}

/// What became of a request that may wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    /// Locked. Others may have become possible by it, as after a downgrade.
    Granted(Vec<Answer>),
    /// Parked: do not reply; the answer comes from a later call. A BSD lock that was to be converted is gone, which may
    /// have let others in.
    Parked(Vec<Answer>),
}

/// The locks of all sessions.
#[derive(Default)]
pub struct LockTable {
    inner: Mutex<Inner>,
}

type Key = (FileId, Space);

#[derive(Default)]
struct Inner {
    files: HashMap<Key, FileLocks>,
    sessions: HashMap<u32, Arc<SessionState>>,
    /// Where a parked request waits, by session and `unique`.
    parked: HashMap<(u32, u64), Key>,
    /// What the owners of parked POSIX requests wait for; `unique` tells the threads of one process apart.
    blocked: HashMap<LockOwner, Vec<(u64, Key, Lock)>>,
}

/// The locks on one inode, in one space.
#[derive(Default)]
struct FileLocks {
    held: Vec<Held>,
    /// Longest waiting first.
    waiters: Vec<Waiter>,
}

/// A lock and its record in the state of its session.
struct Held {
    lock: Lock,
    record: u32,
}

struct Waiter {
    unique: u64,
    lock: Lock,
}

/// Owners that the search for a deadlock visits before it gives up and lets the request wait.
const DEADLOCK_SEARCH: usize = 64;

impl LockTable {
    /// Adds a session with the locks in its state, which holds them from now on.
    pub fn attach(&self, session: u32, state: Arc<SessionState>) {
        let mut inner = self.lock();
        for (record, found) in state.locks.iter() {
            if let Some((key, lock)) = from_record(session, &found) {
                inner.files.entry(key).or_default().held.push(Held { lock, record });
            }
        }
        inner.sessions.insert(session, state);
    }

    /// Drops the locks of a session that has ended and forgets its waiters. Not for a hand-over: the successor needs the
    /// records.
    pub fn detach(&self, session: u32) -> Vec<Answer> {
        let mut inner = self.lock();
        let keys: Vec<Key> = inner.files.keys().copied().collect();
        let mut answers = Vec::new();
        for key in keys {
            while inner.take_waiter(key, |w| w.lock.owner.session == session).is_some() {}
            inner.drop_held(key, |lock| lock.owner.session == session);
            answers.extend(inner.settle(key));
        }
        inner.sessions.remove(&session);
        answers
    }

    /// A lock that `wanted` would have to wait for (`F_GETLK`).
    pub fn get(&self, file: FileId, space: Space, wanted: &Lock) -> Option<Lock> {
        self.lock().conflict((file, space), &in_space(space, wanted))
    }

    /// Locks without waiting. `EAGAIN`: somebody else holds a conflicting lock, and nothing has changed. `ENOLCK`: no room.
    pub fn set(&self, file: FileId, space: Space, wanted: &Lock) -> Result<Vec<Answer>> {
        let (key, wanted) = ((file, space), in_space(space, wanted));
        check(&wanted.range)?;
        let mut inner = self.lock();
        if inner.conflict(key, &wanted).is_some() {
            return Err(Errno::AGAIN);
        }
        inner.acquire(key, &wanted)?;
        Ok(inner.settle(key))
    }

    /// Locks, or parks the request until that is possible. `EDEADLK`: it never would be. `ENOLCK`: no room.
    pub fn wait(&self, file: FileId, space: Space, wanted: &Lock, unique: u64) -> Result<Waited> {
        let (key, wanted) = ((file, space), in_space(space, wanted));
        check(&wanted.range)?;
        let mut inner = self.lock();
        if inner.conflict(key, &wanted).is_none() {
            inner.acquire(key, &wanted)?;
            return Ok(Waited::Granted(inner.settle(key)));
        }
        match space {
            Space::Posix if inner.would_deadlock(key, &wanted) => return Err(Errno::DEADLK),
            Space::Posix => {}
            // As `flock(2)` says: two holders of a shared lock that both want it exclusive would wait for ever.
            Space::Flock => inner.drop_held(key, |lock| lock.owner == wanted.owner),
        }
        inner.park(key, &wanted, unique);
        // Only others can be among the answers: the conflict found above is not with a lock of this owner.
        Ok(Waited::Parked(inner.settle(key)))
    }

    /// Unlocks a range. `ENOLCK`: a lock would have to be split and there is no room for the halves.
    pub fn unlock(
        &self,
        file: FileId,
        space: Space,
        owner: LockOwner,
        range: ByteRange,
    ) -> Result<Vec<Answer>> {
        check(&range)?;
        let key = (file, space);
        let range = if space == Space::Flock { ByteRange::ALL } else { range };
        let mut inner = self.lock();
        let change = Change::unlock(inner.owned_by(key, owner), range);
        inner.apply(key, owner, change)?;
        Ok(inner.settle(key))
    }

    /// Unlocks all that `owner` holds on `file` (`FUSE_FLUSH`, and `FUSE_RELEASE` with `FLOCK_UNLOCK`).
    pub fn release_owner(&self, file: FileId, space: Space, owner: LockOwner) -> Vec<Answer> {
        let mut inner = self.lock();
        inner.drop_held((file, space), |lock| lock.owner == owner);
        inner.settle((file, space))
    }

    /// Takes a parked request back (`FUSE_INTERRUPT`): true means reply `EINTR` to it; false that it does not wait here,
    /// and its answer is on its way or was given.
    pub fn cancel(&self, session: u32, unique: u64) -> bool {
        let mut inner = self.lock();
        let Some(key) = inner.parked.get(&(session, unique)).copied() else { return false };
        let waiter = inner.take_waiter(key, |w| w.unique == unique && w.lock.owner.session == session);
        inner.forget_empty(key);
        waiter.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Inner {
    fn conflict(&self, key: Key, wanted: &Lock) -> Option<Lock> {
        let held = self.files.get(&key)?.held.iter();
        held.map(|h| h.lock).find(|lock| lock.conflicts(wanted))
    }

    fn owned_by(&self, key: Key, owner: LockOwner) -> impl Iterator<Item = (usize, Lock)> + '_ {
        let held = self.files.get(&key).map_or(&[][..], |file| &file.held);
        held.iter().enumerate().filter(move |(_, h)| h.lock.owner == owner).map(|(i, h)| (i, h.lock))
    }

    fn acquire(&mut self, key: Key, wanted: &Lock) -> Result<()> {
        let change = Change::lock(self.owned_by(key, wanted.owner), wanted);
        self.apply(key, wanted.owner, change)
    }

    /// Carries out a change of what `owner` holds: all of it, or nothing.
    fn apply(&mut self, key: Key, owner: LockOwner, change: Change) -> Result<()> {
        let state = self.sessions.get(&owner.session).ok_or(Errno::NOLCK)?;
        let mut added = Vec::with_capacity(change.add.len());
        for lock in change.add {
            let Some(record) = state.locks.insert(&to_record(key, &lock)) else {
                added.iter().for_each(|new: &Held| state.locks.remove(new.record));
                return Err(Errno::NOLCK);
            };
            added.push(Held { lock, record });
        }
        if added.is_empty() && change.remove.is_empty() {
            return Ok(());
        }
        let held = &mut self.files.entry(key).or_default().held;
        // From the back, so that the places before stay where they are.
        for at in change.remove.into_iter().rev() {
            state.locks.remove(held.swap_remove(at).record);
        }
        held.extend(added);
        Ok(())
    }

    fn drop_held(&mut self, key: Key, gone: impl Fn(&Lock) -> bool) {
        let Some(file) = self.files.get_mut(&key) else { return };
        for old in file.held.extract_if(.., |h| gone(&h.lock)) {
            if let Some(state) = self.sessions.get(&old.lock.owner.session) {
                state.locks.remove(old.record);
            }
        }
    }

    fn park(&mut self, key: Key, wanted: &Lock, unique: u64) {
        let session = wanted.owner.session;
        if self.parked.insert((session, unique), key).is_some() {
            return;
        }
        self.files.entry(key).or_default().waiters.push(Waiter { unique, lock: *wanted });
        if key.1 == Space::Posix {
            self.blocked.entry(wanted.owner).or_default().push((unique, key, *wanted));
        }
    }

    /// Removes the first waiter that matches.
    fn take_waiter(&mut self, key: Key, wanted: impl Fn(&Waiter) -> bool) -> Option<Waiter> {
        let waiters = &mut self.files.get_mut(&key)?.waiters;
        let waiter = waiters.remove(waiters.iter().position(wanted)?);
        let owner = waiter.lock.owner;
        self.parked.remove(&(owner.session, waiter.unique));
        if let Some(blocked) = self.blocked.get_mut(&owner) {
            blocked.retain(|(unique, ..)| *unique != waiter.unique);
            if blocked.is_empty() {
                self.blocked.remove(&owner);
            }
        }
        Some(waiter)
    }

    /// Grants what has become possible, the longest waiting first, until nothing more is.
    fn settle(&mut self, key: Key) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some((session, unique)) = self.next_free(key) {
            let next = self.take_waiter(key, |w| w.unique == unique && w.lock.owner.session == session);
            let result = next.map_or(Ok(()), |waiter| self.acquire(key, &waiter.lock));
            answers.push(Answer { session, unique, result });
        }
        self.forget_empty(key);
        answers
    }

    /// The longest waiting request that need not wait any more.
    fn next_free(&self, key: Key) -> Option<(u32, u64)> {
        let file = self.files.get(&key)?;
        let free = |w: &&Waiter| !file.held.iter().any(|h| h.lock.conflicts(&w.lock));
        file.waiters.iter().find(free).map(|w| (w.lock.owner.session, w.unique))
    }

    fn forget_empty(&mut self, key: Key) {
        if self.files.get(&key).is_some_and(|file| file.held.is_empty() && file.waiters.is_empty()) {
            self.files.remove(&key);
        }
    }

    /// Does somebody that `wanted` would wait for wait, in the end, for the owner of `wanted`? As in Linux, a process with
    /// several threads counts as waiting when one of them does.
    fn would_deadlock(&self, key: Key, wanted: &Lock) -> bool {
        let mut seen = HashSet::new();
        let mut todo = vec![(key, *wanted)];
        while let Some((key, lock)) = todo.pop() {
            let held = self.files.get(&key).map_or(&[][..], |file| &file.held);
            for holder in held.iter().filter(|h| h.lock.conflicts(&lock)).map(|h| h.lock.owner) {
                if holder == wanted.owner {
                    return true;
                }
                if seen.len() < DEADLOCK_SEARCH && seen.insert(holder) {
                    let waits = self.blocked.get(&holder).into_iter().flatten();
                    todo.extend(waits.map(|(_, key, lock)| (*key, *lock)));
                }
            }
        }
        false
    }
}

fn check(range: &ByteRange) -> Result<()> {
    if range.start <= range.end && range.end <= ByteRange::ALL.end { Ok(()) } else { Err(Errno::INVAL) }
}

fn in_space(space: Space, wanted: &Lock) -> Lock {
    match space {
        Space::Posix => *wanted,
        Space::Flock => Lock { range: ByteRange::ALL, ..*wanted },
    }
}

fn to_record((file, space): Key, lock: &Lock) -> LockRec {
    LockRec {
        tag: if space == Space::Posix { 1 } else { 2 },
        kind: if lock.kind == LockKind::Read { libc::F_RDLCK } else { libc::F_WRLCK } as u32,
        dev: file.dev,
        ino: file.ino,
        owner: lock.owner.id,
        start: lock.range.start,
        end: lock.range.end,
        pid: lock.pid,
        ..LockRec::default()
    }
}

fn from_record(session: u32, record: &LockRec) -> Option<(Key, Lock)> {
    let space = match record.tag {
        1 => Space::Posix,
        2 => Space::Flock,
        _ => return None,
    };
    let kind = if record.kind == libc::F_RDLCK as u32 { LockKind::Read } else { LockKind::Write };
    let range = ByteRange { start: record.start, end: record.end };
    check(&range).ok()?;
    let owner = LockOwner { session, id: record.owner };
    let file = FileId { dev: record.dev, ino: record.ino };
    Some(((file, space), Lock { kind, range, owner, pid: record.pid }))
}
