//! What one session has in the lock table, and how much that may be.

use super::{Key, LockOwner};
use crate::state::SessionState;
use crate::types::{Errno, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Most locks that a session holds.
pub const MOST_LOCKS: u32 = 1 << 16;
/// Most locks that one owner (a process, an open file description) holds.
pub const MOST_OF_OWNER: u32 = 1 << 14;
/// Most requests of a session that wait for a lock.
pub const MOST_WAITING: usize = 1 << 12;

const SHARDS: usize = 16;

/// See the module. No lock in here is held while another one is taken, and none while anything is searched.
pub(super) struct SessionLocks {
    pub(super) state: Arc<SessionState>,
    held: AtomicU32,
    /// Locks that owners hold, on all files and in both spaces; only of those that hold any.
    owners: [Mutex<HashMap<u64, u32>>; SHARDS],
    /// Where a parked request waits, by `unique`.
    parked: Mutex<HashMap<u64, Key>>,
    /// It ends: nothing is added any more. Read with the file locked.
    gone: AtomicBool,
}

impl SessionLocks {
    pub(super) fn new(state: Arc<SessionState>) -> SessionLocks {
        SessionLocks {
            state,
            held: AtomicU32::new(0),
            owners: Default::default(),
            parked: Mutex::default(),
            gone: AtomicBool::new(false),
        }
    }

    fn of(&self, owner: LockOwner) -> MutexGuard<'_, HashMap<u64, u32>> {
        // The kernel's names of owners are encrypted pointers: every bit is as good as another.
        self.owners[owner.id as usize % SHARDS].lock().unwrap_or_else(|e| e.into_inner())
    }

    fn parked(&self) -> MutexGuard<'_, HashMap<u64, Key>> {
        self.parked.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has `owner` any lock?
    pub(super) fn holds(&self, owner: LockOwner) -> bool {
        self.held.load(Ordering::Acquire) != 0 && self.of(owner).contains_key(&owner.id)
    }

    /// Counts locks that a successor finds, however many they are.
    pub(super) fn count_found(&self, owner: LockOwner) {
        self.recount(owner, 1, 0);
    }

    /// Counts a change of what `owner` holds before it is made. `ENOLCK`: it would be too much, or the session has ended.
    pub(super) fn count(&self, owner: LockOwner, added: usize, removed: usize) -> Result<()> {
        let (added, removed) = (added as u32, removed as u32);
        if added > removed {
            let has = self.of(owner).get(&owner.id).copied().unwrap_or(0);
            let held = self.held.load(Ordering::Acquire);
            let more = added - removed;
            if has + more > MOST_OF_OWNER || held + more > MOST_LOCKS || self.gone.load(Ordering::SeqCst) {
                return Err(Errno::NOLCK);
            }
        }
        self.recount(owner, added, removed);
        Ok(())
    }

    /// Counts a change that is made in any case. `held` is exact after each; a thread that looks meanwhile may see both sums.
    pub(super) fn recount(&self, owner: LockOwner, added: u32, removed: u32) {
        let mut owners = self.of(owner);
        let count = owners.entry(owner.id).or_default();
        *count = (*count + added).saturating_sub(removed);
        if *count == 0 {
            owners.remove(&owner.id);
        }
        self.held.fetch_add(added, Ordering::AcqRel);
        self.held.fetch_sub(removed, Ordering::AcqRel);
    }

    /// Enters a request that is to wait. False: it waits already. `ENOLCK`: too many do, or the session has ended.
    pub(super) fn park(&self, unique: u64, key: Key) -> Result<bool> {
        let mut parked = self.parked();
        if self.gone.load(Ordering::SeqCst) {
            return Err(Errno::NOLCK);
        }
        if parked.contains_key(&unique) {
            return Ok(false);
        }
        if parked.len() >= MOST_WAITING {
            return Err(Errno::NOLCK);
        }
        parked.insert(unique, key);
        Ok(true)
    }

    pub(super) fn unpark(&self, unique: u64) {
        self.parked().remove(&unique);
    }

    /// Where a request waits.
    pub(super) fn waits_at(&self, unique: u64) -> Option<Key> {
        self.parked().get(&unique).copied()
    }

    /// Nothing is added from now on to a file that is locked after this.
    pub(super) fn end(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}
