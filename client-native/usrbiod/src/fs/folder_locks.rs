//! One daemon alone serves a folder: the locks and names of another would not be known here.
//!
//! The folder of each session is locked (`flock`, exclusively) through the very fd that the peer passed and keeps: so the lock
//! outlives this process, and the successor that gets the fd has it at once, also while the old daemon still runs.
//! The directories above it are locked shared, so that a folder inside a served one is taken as well. Nothing is ever
//! unlocked but by closing, since the fd's lock may be a successor's by then. Clients cannot meet these locks: theirs
//! are kept in the daemon's own table.

use super::folders::Folder;
use super::nodes::Key;
use crate::types::Errno;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What a daemon has locked.
#[derive(Default)]
pub(super) struct FolderLocks {
    held: HashMap<Key, Held>,
    given_up: bool,
}

struct Held {
    exclusive: bool,
    /// Holds it.
    _fd: OwnedFd,
}

impl FolderLocks {
    /// Locks what `folders` need, as far as nobody else has it, and lets go of the rest.
    pub fn update(&mut self, folders: &[Arc<Folder>]) {
        if self.given_up {
            return;
        }
        let mut wanted: BTreeMap<Key, bool> = BTreeMap::new();
        for folder in folders.iter().filter(|folder| folder.lockable) {
            wanted.insert(folder.root, true);
            for key in folder.above_on_device() {
                wanted.entry(*key).or_insert(false);
            }
        }
        self.held.retain(|key, _| wanted.contains_key(key));
        for (key, exclusive) in wanted {
            if self.has(key, exclusive) {
                continue;
            }
            // A shared lock of our own would be in the way.
            self.held.remove(&key);
            let mut fds = folders.iter().filter_map(|folder| match exclusive {
                true if folder.root == key => folder.dir.try_clone().ok(),
                false => folder.open_above(key),
                _ => None,
            });
            if let Some(fd) = fds.find(|fd| lock(fd, exclusive)) {
                self.held.insert(key, Held { exclusive, _fd: fd });
            }
        }
    }

    /// A successor has the folders from now on.
    pub fn give_up(&mut self) {
        self.held.clear();
        self.given_up = true;
    }

    /// Is all locked that `folder` needs?
    pub fn hold(&self, folder: &Folder) -> bool {
        let above = || folder.above_on_device().all(|key| self.has(*key, false));
        !folder.lockable || self.has(folder.root, true) && above()
    }

    fn has(&self, key: Key, exclusive: bool) -> bool {
        self.held.get(&key).is_some_and(|held| held.exclusive || !exclusive)
    }
}

/// False: somebody else has it. A file system that cannot lock is taken for unlocked.
fn lock(fd: impl AsFd, exclusive: bool) -> bool {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    rustix::fs::flock(fd, operation) != Err(Errno::WOULDBLOCK)
}

/// Are locks of `dir` this machine's own, so that no other node can be shut out?
pub(super) fn is_local(dir: &OwnedFd) -> bool {
    const EXT4: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const TMPFS: u32 = 0x0102_1994;
    const F2FS: u32 = 0xf2f5_2010;
    const ZFS: u32 = 0x2fc1_2fc1;
    const OVERLAYFS: u32 = 0x794c_7630;
    // The magic is a `long` whose upper half repeats the sign of the lower one on some file systems.
    let magic = rustix::fs::fstatfs(dir).map_or(0, |found| found.f_type as u32);
    matches!(magic, EXT4 | XFS | BTRFS | TMPFS | F2FS | ZFS | OVERLAYFS)
}

impl Folder {
    /// The directories above it on its own file system.
    fn above_on_device(&self) -> impl Iterator<Item = &Key> {
        self.above.iter().take_while(|key| key.0 == self.root.0)
    }

    /// The directory `key` above it.
    fn open_above(&self, key: Key) -> Option<OwnedFd> {
        let levels = self.above.iter().position(|above| *above == key)? + 1;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, "../".repeat(levels), flags, Mode::empty()).ok()?;
        let found = super::nodes::key_of(&rustix::fs::fstat(&fd).ok()?);
        (found == key).then_some(fd)
    }
}
