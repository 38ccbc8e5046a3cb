//! Advisory locks: POSIX byte ranges and BSD `flock`, over backing inodes.
//!
//! One table serves all sessions, so that pods which mount one directory see each other's locks. What a session holds
//! is also in its state file. New records are written before old ones are removed: a successor may find records of one
//! owner that overlap, never a gap; the request that was cut short comes again and puts that right.

mod file;
mod intervals;
mod ranges;
mod session;
#[cfg(test)]
mod tests;

use crate::state::SessionState;
use crate::state::records::LockRec;
use crate::types::{Errno, Result};
use file::{FileLocks, Sessions};
use session::SessionLocks;
pub use session::{MOST_LOCKS, MOST_OF_OWNER, MOST_WAITING};
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

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

    /// The smallest range that holds both.
    fn hull(&self, other: &ByteRange) -> ByteRange {
        ByteRange { start: self.start.min(other.start), end: self.end.max(other.end) }
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

type Key = (FileId, Space);

/// Owners that the search for a deadlock visits before it gives up and lets the request wait.
const DEADLOCK_OWNERS: usize = 64;
/// Locks that it looks at.
const DEADLOCK_STEPS: usize = 1024;

const SHARDS: usize = 64;

/// The locks of all sessions.
///
/// Every inode has a mutex of its own, so that one with many locks or waiters holds up nobody else; nothing is searched from
/// end to end. Mutexes are taken in this order: `blocked`, a file, a shard or what [`SessionLocks`] has.
pub struct LockTable {
    files: [Mutex<HashMap<Key, Arc<Mutex<FileLocks>>>>; SHARDS],
    sessions: RwLock<HashMap<u32, Arc<SessionLocks>>>,
    /// Where the owners of parked POSIX requests wait; `unique` tells the threads of one process apart. Only who has to wait
    /// takes it. An entry may be there for a moment longer than its request.
    blocked: Mutex<HashMap<LockOwner, HashMap<u64, Key>>>,
}

impl Default for LockTable {
    fn default() -> Self {
        LockTable {
            files: std::array::from_fn(|_| Mutex::default()),
            sessions: RwLock::default(),
            blocked: Mutex::default(),
        }
    }
}

impl Sessions for LockTable {
    fn find(&self, session: u32) -> Option<Arc<SessionLocks>> {
        self.sessions.read().unwrap_or_else(|e| e.into_inner()).get(&session).cloned()
    }
}

impl LockTable {
    /// Adds a session with the locks in its state, which holds them from now on.
    pub fn attach(&self, session: u32, state: Arc<SessionState>) {
        let own = Arc::new(SessionLocks::new(state));
        for (record, found) in own.state.locks.iter() {
            if let Some((key, lock)) = from_record(session, &found) {
                own.count_found(lock.owner);
                self.with_file(key, |file| file.enter(&lock, record));
            }
        }
        self.sessions.write().unwrap_or_else(|e| e.into_inner()).insert(session, own);
    }

    /// Drops the locks of a session that has ended and forgets its waiters. Not for a hand-over: the successor needs the
    /// records.
    pub fn detach(&self, session: u32) -> Vec<Answer> {
        let own = self.sessions.write().unwrap_or_else(|e| e.into_inner()).remove(&session);
        let Some(own) = own else { return Vec::new() };
        own.end();
        let keys = |shard: &Mutex<HashMap<Key, _>>| lock(shard).keys().copied().collect::<Vec<Key>>();
        let keys: Vec<Key> = self.files.iter().flat_map(keys).collect();
        let mut answers = Vec::new();
        for key in keys {
            let Some(file) = self.known(key) else { continue };
            let mut file = lock(&file);
            let (freed, waiters) = file.drop_session(session, &own);
            let granted = file.settle(key, freed, self);
            self.forget_empty(key, &mut file);
            drop(file);
            waiters.iter().for_each(|waiter| self.unblock(waiter.lock.owner, waiter.unique));
            answers.extend(self.granted(granted));
        }
        answers
    }

    /// A lock that `wanted` would have to wait for (`F_GETLK`).
    pub fn get(&self, file: FileId, space: Space, wanted: &Lock) -> Option<Lock> {
        let file = self.known((file, space))?;
        lock(&file).conflict(&in_space(space, wanted))
    }

    /// Locks without waiting. `EAGAIN`: somebody else holds a conflicting lock, and nothing has changed. `ENOLCK`: no room,
    /// or more than [`MOST_LOCKS`] or [`MOST_OF_OWNER`].
    pub fn set(&self, file: FileId, space: Space, wanted: &Lock) -> Result<Vec<Answer>> {
        let (key, wanted) = ((file, space), in_space(space, wanted));
        check(&wanted.range)?;
        let session = self.find(wanted.owner.session).ok_or(Errno::NOLCK)?;
        let granted = self.with_file(key, |file| {
            if file.conflict(&wanted).is_some() {
                return Err(Errno::AGAIN);
            }
            let freed = file.acquire(key, &wanted, &session)?;
            Ok(file.settle(key, freed, self))
        })?;
        Ok(self.granted(granted))
    }

    /// Locks, or parks the request until that is possible. `EDEADLK`: it never would be. `ENOLCK`: as for
    /// [`set`](Self::set), or more than [`MOST_WAITING`] wait.
    pub fn wait(&self, file: FileId, space: Space, wanted: &Lock, unique: u64) -> Result<Waited> {
        let (key, wanted) = ((file, space), in_space(space, wanted));
        check(&wanted.range)?;
        let session = self.find(wanted.owner.session).ok_or(Errno::NOLCK)?;
        let (parked, granted) = self.with_file(key, |file| {
            if file.conflict(&wanted).is_none() {
                let freed = file.acquire(key, &wanted, &session)?;
                return Ok((false, file.settle(key, freed, self)));
            }
            if session.park(unique, key)? {
                file.park(unique, &wanted);
            }
            // As `flock(2)` says: two holders of a shared lock that both want it exclusive would wait for ever.
            let freed = match space {
                Space::Posix => Vec::new(),
                Space::Flock => file.drop_owner(wanted.owner, &session),
            };
            Ok((true, file.settle(key, freed, self)))
        })?;
        let answers = self.granted(granted);
        if !parked {
            return Ok(Waited::Granted(answers));
        }
        let closes_circle = space == Space::Posix && self.block(key, &wanted, unique, &session);
        if closes_circle && self.cancel(wanted.owner.session, unique) {
            return Err(Errno::DEADLK);
        }
        Ok(Waited::Parked(answers))
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
        let Some(session) = self.find(owner.session).filter(|session| session.holds(owner)) else {
            return Ok(Vec::new());
        };
        let granted = self.with_file(key, |file| {
            let freed = file.unlock(key, owner, range, &session)?;
            Ok(file.settle(key, freed, self))
        })?;
        Ok(self.granted(granted))
    }

    /// Unlocks all that `owner` holds on `file` (`FUSE_FLUSH`, and `FUSE_RELEASE` with `FLOCK_UNLOCK`). An owner that never
    /// locked takes nothing that others hold.
    pub fn release_owner(&self, file: FileId, space: Space, owner: LockOwner) -> Vec<Answer> {
        let key = (file, space);
        let Some(session) = self.find(owner.session).filter(|session| session.holds(owner)) else {
            return Vec::new();
        };
        let Some(known) = self.known(key) else { return Vec::new() };
        let mut file = lock(&known);
        let freed = file.drop_owner(owner, &session);
        let granted = file.settle(key, freed, self);
        self.forget_empty(key, &mut file);
        drop(file);
        self.granted(granted)
    }

    /// Takes a parked request back (`FUSE_INTERRUPT`): true means reply `EINTR` to it; false that it does not wait here,
    /// and its answer is on its way or was given.
    pub fn cancel(&self, session: u32, unique: u64) -> bool {
        let Some(own) = self.find(session) else { return false };
        let Some(key) = own.waits_at(unique) else { return false };
        let Some(file) = self.known(key) else { return false };
        let mut file = lock(&file);
        let waiter = file.unpark(session, unique);
        if waiter.is_some() {
            own.unpark(unique);
        }
        self.forget_empty(key, &mut file);
        drop(file);
        if let Some(waiter) = &waiter {
            self.unblock(waiter.lock.owner, unique);
        }
        waiter.is_some()
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Arc<Mutex<FileLocks>>>> {
        let (FileId { dev, ino }, _) = key;
        lock(&self.files[(ino ^ (ino >> 6) ^ dev) as usize % SHARDS])
    }

    /// The locks of an inode that has any.
    fn known(&self, key: Key) -> Option<Arc<Mutex<FileLocks>>> {
        self.shard(&key).get(&key).cloned()
    }

    /// Does something with the locks of an inode.
    fn with_file<T>(&self, key: Key, work: impl FnOnce(&mut FileLocks) -> T) -> T {
        loop {
            let file = self.shard(&key).entry(key).or_default().clone();
            let mut file = lock(&file);
            if !file.dead {
                let result = work(&mut file);
                self.forget_empty(key, &mut file);
                return result;
            }
        }
    }

    fn forget_empty(&self, key: Key, file: &mut FileLocks) {
        if file.is_empty() && !file.dead {
            file.dead = true;
            self.shard(&key).remove(&key);
        }
    }

    /// The answers to requests that wait no more.
    fn granted(&self, granted: Vec<(Answer, LockOwner)>) -> Vec<Answer> {
        granted.iter().for_each(|(answer, owner)| self.unblock(*owner, answer.unique));
        granted.into_iter().map(|(answer, _)| answer).collect()
    }

    fn unblock(&self, owner: LockOwner, unique: u64) {
        let mut blocked = lock(&self.blocked);
        if let Some(waits) = blocked.get_mut(&owner) {
            waits.remove(&unique);
            if waits.is_empty() {
                blocked.remove(&owner);
            }
        }
    }

    /// Enters a POSIX request that waits among the blocked. True: it closes a circle.
    fn block(&self, key: Key, wanted: &Lock, unique: u64, session: &SessionLocks) -> bool {
        // Held while it is looked for, so that of two requests that close a circle the second finds the first.
        let mut blocked = lock(&self.blocked);
        blocked.entry(wanted.owner).or_default().insert(unique, key);
        if session.waits_at(unique).is_none() {
            // Granted meanwhile: who granted it may have looked for the entry before it was there.
            drop(blocked);
            self.unblock(wanted.owner, unique);
            return false;
        }
        self.is_deadlock(&blocked, key, wanted)
    }

    /// Does somebody that `wanted` waits for wait, in the end, for the owner of `wanted`? As in Linux, a process with
    /// several threads counts as waiting when one of them does.
    fn is_deadlock(&self, blocked: &HashMap<LockOwner, HashMap<u64, Key>>, key: Key, wanted: &Lock) -> bool {
        let mut seen = HashSet::new();
        let mut steps = 0;
        let mut todo = vec![(key, *wanted)];
        while let Some((key, waits_for)) = todo.pop() {
            let Some(file) = self.known(key) else { continue };
            let mut holders = Vec::new();
            let found = lock(&file).conflicts(&waits_for, |held| {
                steps += 1;
                if held.owner == wanted.owner {
                    return ControlFlow::Break(true);
                }
                if seen.len() < DEADLOCK_OWNERS && seen.insert(held.owner) {
                    holders.push(held.owner);
                }
                if steps < DEADLOCK_STEPS { ControlFlow::Continue(()) } else { ControlFlow::Break(false) }
            });
            if let Some(found) = found {
                return found;
            }
            for holder in holders {
                for (unique, key) in blocked.get(&holder).into_iter().flatten().take(DEADLOCK_OWNERS) {
                    let Some(file) = self.known(*key) else { continue };
                    // The request may have its lock by now.
                    let waits_for = lock(&file).waits_for(holder.session, *unique);
                    todo.extend(waits_for.map(|lock| (*key, lock)));
                }
            }
        }
        false
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
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
