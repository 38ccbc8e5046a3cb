//! `O_PATH` fds of nodes. A million nodes cannot have one each (`RLIMIT_NOFILE`), so the daemon keeps those that were
//! used of late, and opens the others by their file handles.

use crate::types::NodeId;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

const SHARDS: usize = 16;

/// A node of a session.
type Key = (u32, NodeId);

/// `O_PATH` fds of nodes, shared by all sessions of the daemon so that their number is bounded.
pub struct FdCache {
    sessions: AtomicU32,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    capacity: usize,
    slots: Vec<Slot>,
    index: HashMap<Key, usize>,
    hand: usize,
}

struct Slot {
    key: Key,
    fd: Arc<OwnedFd>,
    used: bool,
}

impl FdCache {
    /// A cache of about `capacity` fds, and never more.
    pub fn new(capacity: usize) -> Arc<FdCache> {
        let shard = || Mutex::new(Shard { capacity: (capacity / SHARDS).max(1), ..Shard::default() });
        Arc::new(FdCache { sessions: AtomicU32::new(0), shards: std::array::from_fn(|_| shard()) })
    }

    /// Fds that are cached now.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| lock(s).slots.len()).sum()
    }

    /// Is nothing cached?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that no other session of this process has.
    pub(super) fn session(&self) -> u32 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        let mixed = (key.1.0 ^ (u64::from(key.0) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        lock(&self.shards[(mixed >> 60) as usize % SHARDS])
    }

    pub(super) fn get(&self, session: u32, node: NodeId) -> Option<Arc<OwnedFd>> {
        let mut shard = self.shard((session, node));
        let at = *shard.index.get(&(session, node))?;
        let slot = &mut shard.slots[at];
        slot.used = true;
        Some(slot.fd.clone())
    }

    pub(super) fn put(&self, session: u32, node: NodeId, fd: Arc<OwnedFd>) {
        // The victim's fd is closed after the lock is gone.
        let victim = self.shard((session, node)).put((session, node), fd);
        drop(victim);
    }

    pub(super) fn remove(&self, session: u32, node: NodeId) {
        let victim = self.shard((session, node)).remove((session, node));
        drop(victim);
    }

    /// Closes what the whole daemon has cached: fds ran out.
    pub(super) fn clear(&self) {
        self.retain(|_| false);
    }

    /// Closes what a session has cached.
    pub(super) fn end_session(&self, session: u32) {
        self.retain(|key| key.0 != session);
    }

    fn retain(&self, keep: impl Fn(Key) -> bool) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let capacity = shard.capacity;
            let old = std::mem::replace(&mut *shard, Shard { capacity, ..Shard::default() });
            let (kept, gone): (Vec<_>, Vec<_>) = old.slots.into_iter().partition(|slot| keep(slot.key));
            for slot in kept {
                shard.put(slot.key, slot.fd);
            }
            drop(shard);
            drop(gone);
        }
    }
}

impl Shard {
    fn put(&mut self, key: Key, fd: Arc<OwnedFd>) -> Option<Arc<OwnedFd>> {
        if let Some(at) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.slots[*at].fd, fd));
        }
        let slot = Slot { key, fd, used: false };
        if self.slots.len() < self.capacity {
            self.index.insert(key, self.slots.len());
            self.slots.push(slot);
            return None;
        }
        // The clock: whoever was used since the hand came by last stays for one more round.
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % self.slots.len();
        }
        let at = self.hand;
        self.hand = (at + 1) % self.slots.len();
        let victim = std::mem::replace(&mut self.slots[at], slot);
        self.index.remove(&victim.key);
        self.index.insert(key, at);
        Some(victim.fd)
    }

    fn remove(&mut self, key: Key) -> Option<Arc<OwnedFd>> {
        let at = self.index.remove(&key)?;
        let slot = self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.key, at);
        }
        self.hand = if self.hand < self.slots.len() { self.hand } else { 0 };
        Some(slot.fd)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
