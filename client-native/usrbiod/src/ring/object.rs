//! What a session has registered, as the workers see it.

use super::Files;
use super::engine::WATCHER;
use super::file::RingFile;
use super::job::Ring;
use super::sem::SubmitSem;
use super::shm::SharedMap;
use crate::fs::BackingFile;
use crate::metrics::SessionMetrics;
use crate::session::Limits;
use crate::state::SessionState;
use crate::types::{Ino, Owner};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use uuid::Uuid;

/// A data buffer.
pub(super) struct Iov {
    pub(super) id: Uuid,
    /// Requests must not cross multiples of it.
    pub(super) block: Option<u64>,
    pub(super) owner: Owner,
    pub(super) map: SharedMap,
    pub(super) fd: OwnedFd,
}

/// What the rings of a session share. Everything that a request needs is found without a lock, in caches that hold for
/// one `generation`.
pub(super) struct Core {
    pub(super) name: String,
    files: RwLock<Option<Arc<dyn Files>>>,
    pub(super) state: Arc<SessionState>,
    pub(super) metrics: Arc<SessionMetrics>,
    pub(super) limits: Limits,
    pub(super) read_only: bool,
    /// Submit semaphores by priority; without a shm directory there are none.
    pub(super) semaphores: Option<[SubmitSem; 3]>,
    /// Changes when an Iov or a rule does.
    pub(super) generation: AtomicU64,
    pub(super) iovs: RwLock<HashMap<Uuid, Arc<Iov>>>,
    pub(super) read_only_users: RwLock<HashSet<u32>>,
    /// Most urgent first.
    rings: RwLock<Arc<[Arc<Ring>]>>,
    /// How many `rings` are.
    pub(super) ring_count: AtomicU32,
    /// Nothing more is claimed, for good.
    pub(super) closing: AtomicBool,
    /// The thread that watches the semaphores.
    pub(super) home: AtomicU32,
    /// Workers that serve the session.
    pub(super) crew: Mutex<Vec<u32>>,
    /// Nothing more is claimed for now.
    pub(super) paused: AtomicBool,
    /// Rings that are not registered any more: their requests may still be in flight.
    leaving: Mutex<Vec<Weak<Ring>>>,
    files_in_use: Mutex<HashMap<Ino, Weak<RingFile>>>,
}

impl Core {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        name: String,
        files: Arc<dyn Files>,
        state: Arc<SessionState>,
        metrics: Arc<SessionMetrics>,
        limits: Limits,
        read_only: bool,
        semaphores: Option<[SubmitSem; 3]>,
    ) -> Core {
        Core {
            name,
            files: RwLock::new(Some(files)),
            state,
            metrics,
            limits,
            read_only,
            semaphores,
            generation: AtomicU64::new(1),
            iovs: RwLock::default(),
            read_only_users: RwLock::default(),
            rings: RwLock::new(Arc::new([])),
            ring_count: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            home: AtomicU32::new(WATCHER),
            crew: Mutex::default(),
            paused: AtomicBool::new(false),
            leaving: Mutex::default(),
            files_in_use: Mutex::default(),
        }
    }

    /// The rings, most urgent first.
    pub(super) fn rings(&self) -> Arc<[Arc<Ring>]> {
        self.rings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change_rings(&self, change: impl FnOnce(&mut Vec<Arc<Ring>>)) {
        let mut rings = self.rings.write().unwrap_or_else(PoisonError::into_inner);
        let mut list = rings.to_vec();
        change(&mut list);
        list.sort_by_key(|ring| ring.attrs.priority);
        self.ring_count.store(list.len() as u32, Ordering::Release);
        *rings = list.into();
    }

    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(super) fn closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Where files come from; `None` when the session is gone.
    pub(super) fn files(&self) -> Option<Arc<dyn Files>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The session is gone: drops all that may take long to drop. The threads hold the rest until they notice.
    pub(super) fn end(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.change_rings(Vec::clear);
        let files = self.files.write().unwrap_or_else(PoisonError::into_inner).take();
        let iovs = std::mem::take(&mut *self.iovs.write().unwrap_or_else(PoisonError::into_inner));
        drop((files, iovs));
    }

    pub(super) fn claims_nothing(&self) -> bool {
        self.closing() || self.paused.load(Ordering::SeqCst)
    }

    /// `ring` is not registered any more.
    pub(super) fn leaves(&self, ring: &Arc<Ring>) {
        let mut leaving = lock(&self.leaving);
        leaving.retain(|ring| ring.strong_count() > 0);
        leaving.push(Arc::downgrade(ring));
    }

    /// All rings of which something may run, also those that are not registered any more.
    pub(super) fn all_rings(&self) -> Vec<Arc<Ring>> {
        let left = lock(&self.leaving).iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        self.rings().iter().cloned().chain(left).collect()
    }

    /// The file with what all rings know about it.
    pub(super) fn ring_file(&self, ino: Ino, backing: Arc<BackingFile>) -> Arc<RingFile> {
        let mut files = lock(&self.files_in_use);
        if let Some(known) = files.get(&ino).and_then(Weak::upgrade)
            && Arc::ptr_eq(&known.backing, &backing)
        {
            return known;
        }
        if files.len() >= 1024 && files.len().is_power_of_two() {
            files.retain(|_, file| file.strong_count() > 0);
        }
        let file = Arc::new(RingFile::new(backing));
        files.insert(ino, Arc::downgrade(&file));
        file
    }
}

/// Data that a panicking thread held is still whole: all changes are single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
