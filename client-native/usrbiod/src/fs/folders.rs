//! Folders that several sessions serve: two pods of a node with one claim, or a folder and one inside it.
//!
//! What one session changes, the kernel of another must not go on showing from its cache. Telling that kernel would wait for
//! locks which its own clients hold while they wait for this daemon, so it may keep nothing: names and attributes are
//! given to a session without validity as long as another one that may write serves a part of its folder. A session
//! that is alone, or beside readers only, loses nothing.
//!
//! When such a session comes, the others' kernels still keep what they were given before. It is served at once, and its
//! changes wait until all of that is too old ([`Folder::settled`]). Sessions that are resumed come back one by one: each is
//! taken for one that has company for as long, and none waits for another.

use super::Fs;
use super::append::Appends;
use super::folder_locks::{FolderLocks, is_local};
use super::nodes::Key;
use crate::types::{Errno, NodeId, Result};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant};

/// Seconds for which the kernel may keep names and attributes where nobody else of this daemon changes them: so old may
/// be what it shows of changes that others make in the folder.
const VALID: u32 = 1;
/// After this long the kernel keeps nothing that was given with [`VALID`]: that, its ticks, and an answer on its way.
const EXPIRED: Duration = Duration::from_millis(VALID as u64 * 1000 + 500);
/// A daemon that was killed may hold its folder for a moment longer.
const ENDING: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(10);
/// Deeper than any path.
const DEEPEST: usize = 4096;

/// The folders of all sessions of a daemon.
#[derive(Default)]
pub struct Folders {
    all: Mutex<All>,
    pub(super) appends: Appends,
}

#[derive(Default)]
struct All {
    folders: Vec<Arc<Folder>>,
    locks: FolderLocks,
}

/// The folder of one session.
pub(super) struct Folder {
    pub(super) root: Key,
    /// The fd that the session was given.
    pub(super) dir: OwnedFd,
    /// The directories above it, nearest first.
    pub(super) above: Vec<Key>,
    /// Other daemons can be kept from serving it.
    pub(super) lockable: bool,
    read_only: bool,
    fs: OnceLock<Weak<Fs>>,
    /// Others serve a part of it.
    accompanied: AtomicBool,
    others: RwLock<Vec<Arc<Folder>>>,
    /// Another session may change what this one shows.
    shared: AtomicBool,
    /// Until when the kernel of this session may show what it was given before it was shared.
    kept_until: Mutex<Option<Instant>>,
    born: Instant,
    /// Resumed a short while ago: others may come back yet.
    young: AtomicBool,
    /// Changes wait until then, if there is anything to wait for.
    unsettled: AtomicBool,
    settled_at: Mutex<Option<Instant>>,
}

impl Folder {
    /// The folder behind `root`, as yet alone.
    pub fn new(root: &OwnedFd, key: Key, read_only: bool) -> Result<Folder> {
        Ok(Folder {
            root: key,
            dir: root.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?,
            above: above(root, key)?,
            lockable: is_local(root) && !rustix::fs::fcntl_getfl(root)?.contains(OFlags::PATH),
            read_only,
            fs: OnceLock::new(),
            accompanied: AtomicBool::new(false),
            others: RwLock::default(),
            shared: AtomicBool::new(false),
            kept_until: Mutex::default(),
            born: Instant::now(),
            young: AtomicBool::new(false),
            unsettled: AtomicBool::new(false),
            settled_at: Mutex::default(),
        })
    }

    /// Seconds for which the kernel may keep names and attributes.
    pub fn valid(&self) -> u32 {
        if self.is_shared() || self.is_young() { 0 } else { VALID }
    }

    /// May another session of this daemon change what this one shows?
    pub fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Acquire)
    }

    fn is_young(&self) -> bool {
        if !self.young.load(Ordering::Acquire) {
            return false;
        }
        let young = self.born.elapsed() < EXPIRED;
        self.young.store(young, Ordering::Release);
        young
    }

    /// Is there nothing that a change would have to wait for?
    pub fn is_settled(&self) -> bool {
        !self.unsettled.load(Ordering::Acquire)
    }

    /// Returns when the kernels of others show nothing any more that was true before this session came: before a change.
    pub fn settled(&self) {
        if self.is_settled() {
            return;
        }
        let until = *lock(&self.settled_at);
        if let Some(until) = until {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        let mut now = lock(&self.settled_at);
        if *now == until {
            *now = None;
            self.unsettled.store(false, Ordering::Release);
        }
    }

    /// The other sessions that serve a part of this folder.
    fn others(&self) -> Vec<Arc<Fs>> {
        if !self.accompanied.load(Ordering::Acquire) {
            return Vec::new();
        }
        let others = self.others.read().unwrap_or_else(|e| e.into_inner());
        others.iter().filter_map(|other| other.fs.get()?.upgrade()).collect()
    }

    /// Has it a part in common with `other`?
    fn overlaps(&self, other: &Folder) -> bool {
        self.root == other.root || self.above.contains(&other.root) || other.above.contains(&self.root)
    }

    /// Takes note of who else is there now.
    fn meet(&self, others: Vec<Arc<Folder>>, now: Instant) {
        let shared = others.iter().any(|other| !other.read_only);
        if shared && !self.is_shared() {
            let mut kept = lock(&self.kept_until);
            *kept = kept.map(|_| now + EXPIRED);
        } else if !shared {
            *lock(&self.kept_until) = Some(now);
        }
        self.shared.store(shared, Ordering::Release);
        self.accompanied.store(!others.is_empty(), Ordering::Release);
        *self.others.write().unwrap_or_else(|e| e.into_inner()) = others;
    }

    /// Lets changes wait for the kernels of the others.
    fn settle(&self, now: Instant) {
        let others = self.others.read().unwrap_or_else(|e| e.into_inner());
        // Both were there before: what the kernel of one was given then, it could not keep.
        let others = others.iter().filter(|other| !(self.is_young() && other.is_young()));
        let kept = others.filter_map(|other| *lock(&other.kept_until)).max();
        if let Some(until) = kept.filter(|until| *until > now) {
            *lock(&self.settled_at) = Some(until);
            self.unsettled.store(true, Ordering::Release);
        }
    }
}

impl Folders {
    /// Adds a session, for as long as `fs` lives. `resumed`: its kernel may show what a predecessor gave it. `EADDRINUSE`:
    /// another daemon serves the folder, or one above it or in it; a session that is resumed goes on all the same.
    pub fn join(self: &Arc<Folders>, fs: Fs, resumed: bool) -> Result<Arc<Fs>> {
        let fs = Arc::new_cyclic(|weak| {
            // Nobody has seen this folder yet, so that it is the first to set these.
            let _ = fs.folder.fs.set(weak.clone());
            let _ = fs.folders.set(self.clone());
            fs
        });
        if resumed {
            *lock(&fs.folder.kept_until) = Some(Instant::now());
            fs.folder.young.store(true, Ordering::Release);
        }
        let deadline = Instant::now() + ENDING;
        while !self.enter(&fs.folder, resumed) {
            if Instant::now() > deadline {
                return Err(Errno::ADDRINUSE);
            }
            std::thread::sleep(AGAIN);
        }
        Ok(fs)
    }

    /// Adds a folder. False: another daemon serves it, and nothing has changed.
    fn enter(&self, folder: &Arc<Folder>, resumed: bool) -> bool {
        let mut all = self.all();
        all.folders.push(folder.clone());
        let All { folders, locks } = &mut *all;
        locks.update(folders);
        let entered = resumed || locks.hold(folder);
        if !entered {
            folders.pop();
            locks.update(folders);
        }
        meet(folders);
        entered
    }

    /// A successor serves all of them from now on.
    pub fn give_up(&self) {
        self.all().locks.give_up();
    }

    /// Takes the folder of a session that has ended out.
    pub(super) fn leave(&self, folder: &Arc<Folder>) {
        let mut all = self.all();
        let All { folders, locks } = &mut *all;
        folders.retain(|other| !Arc::ptr_eq(other, folder));
        locks.update(folders);
        folder.meet(Vec::new(), Instant::now());
        meet(folders);
    }

    fn all(&self) -> MutexGuard<'_, All> {
        lock(&self.all)
    }
}

/// Lets all of them know of each other.
fn meet(all: &[Arc<Folder>]) {
    let now = Instant::now();
    for folder in all {
        let others = all.iter().filter(|other| !Arc::ptr_eq(other, folder) && folder.overlaps(other));
        folder.meet(others.cloned().collect(), now);
    }
    all.iter().for_each(|folder| folder.settle(now));
}

impl Fs {
    /// The other sessions that serve a part of its folder, each with its own node of the inode `key`.
    pub(super) fn elsewhere(&self, key: Key) -> Vec<(Arc<Fs>, NodeId)> {
        let others = self.folder.others().into_iter();
        others.filter_map(|fs| fs.nodes.by_key(key).map(|node| (fs, node))).collect()
    }

    /// Is there a file open without passthrough, here or in another session of the folder?
    pub(super) fn any_without_passthrough(&self) -> bool {
        let without = |fs: &Fs| fs.opens.any_without_passthrough();
        without(self) || self.folder.others().iter().any(|fs| without(fs))
    }

    /// Returns when a change may be made: what other sessions' kernels kept of the folder from before this session came
    /// is forgotten.
    pub fn settled(&self) {
        self.folder.settled();
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        if let Some(folders) = self.folders.get() {
            folders.leave(&self.folder);
        }
    }
}

/// The directories above `dir`, up to where this process sees no more.
fn above(dir: &OwnedFd, key: Key) -> Result<Vec<Key>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut keys = Vec::new();
    let mut below = key;
    let mut at = rustix::fs::openat(dir, c"..", flags, Mode::empty())?;
    while keys.len() < DEEPEST {
        let key = super::nodes::key_of(&rustix::fs::fstat(&at)?);
        if key == below {
            break;
        }
        keys.push(key);
        below = key;
        at = rustix::fs::openat(at.as_fd(), c"..", flags, Mode::empty())?;
    }
    Ok(keys)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
