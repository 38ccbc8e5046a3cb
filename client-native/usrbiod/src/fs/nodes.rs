//! Which inode a node id means, and fds of it.
//!
//! A node is known by its file handle, which contains a generation: an inode number that comes back after an unlink is
//! another node. Where there is no handle (the file system has none, or the file lies on another device that is mounted
//! beneath the root), the node keeps an fd, which keeps the inode's number taken as well; a successor cannot
//! find such a node again and answers `ESTALE`, unless the peer kept an fd of it. With such an fd it needs no handle.

use super::fd_cache::FdCache;
use super::folders::Folder;
use crate::budget::{Held, Share};
use crate::state::SessionState;
use crate::state::records::{HANDLE_MAX, NodeRec};
use crate::sys::handle::FileHandle;
use crate::sys::path::proc_path;
use crate::types::{Attr, Errno, Ino, NodeId, Result};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use zerocopy::FromZeros;

const SHARDS: usize = 16;

/// Inode numbers from here to `MADE_UP_END` are made up, for files whose own number could be taken for
/// another one's.
const MADE_UP: u64 = 1 << 59;
const MADE_UP_END: u64 = 1 << 60;

/// Device and inode number of a backing file.
pub(super) type Key = (u64, u64);

pub(super) struct Nodes {
    state: Arc<SessionState>,
    /// The served directory, as given.
    pub root: Arc<OwnedFd>,
    /// The same, opened for reading: what handles are opened on.
    pub mount: OwnedFd,
    root_key: Key,
    /// The newest node of each inode.
    by_key: [Mutex<HashMap<Key, u32>>; SHARDS],
    made_up: RwLock<HashMap<u64, Key>>,
    pinned: RwLock<HashMap<NodeId, (Arc<OwnedFd>, Held)>>,
    /// What the session may have of the daemon's fds.
    pub fds: Share,
    cache: Arc<FdCache>,
    session: u32,
    folder: Arc<Folder>,
}

/// A live node: its record and its index in the table.
pub(super) fn index_of(node: NodeId) -> Option<u32> {
    node.0.checked_sub(2).and_then(|i| u32::try_from(i).ok())
}

fn node_at(index: u32) -> NodeId {
    NodeId(u64::from(index) + 2)
}

pub(super) fn key_of(stat: &Stat) -> Key {
    (stat.st_dev, stat.st_ino)
}

impl Nodes {
    pub fn new(
        state: Arc<SessionState>,
        root: OwnedFd,
        read_only: bool,
        cache: Arc<FdCache>,
        fds: Share,
    ) -> Result<Nodes> {
        let root_key = key_of(&rustix::fs::fstat(&root)?);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mount = rustix::fs::openat(&root, c".", flags, Mode::empty())?;
        let folder = Arc::new(Folder::new(&root, root_key, read_only)?);
        let nodes = Nodes {
            state,
            root: Arc::new(root),
            mount,
            root_key,
            by_key: Default::default(),
            made_up: RwLock::default(),
            pinned: RwLock::default(),
            fds,
            session: cache.session(),
            cache,
            folder,
        };
        for (index, rec) in nodes.state.nodes.iter() {
            let key = (rec.dev, rec.ino);
            // Of two nodes with one inode number, the one whose handle still opens is the newer.
            let older = nodes.shard(key).insert(key, index);
            if let Some(older) = older {
                let keep = if nodes.open_rec(&rec, OFlags::PATH).is_ok() { index } else { older };
                nodes.shard(key).insert(key, keep);
            }
            nodes.note_made_up(key);
        }
        Ok(nodes)
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, HashMap<Key, u32>> {
        let at = (key.1 ^ (key.1 >> 7) ^ key.0) as usize % SHARDS;
        self.by_key[at].lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The inode number that clients see.
    fn shown_ino(&self, key: Key) -> u64 {
        if key == self.root_key {
            return 1;
        }
        if key.0 == self.root_key.0 && key.1 > 1 && key.1 < MADE_UP {
            return key.1;
        }
        let mut hash = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ key.1;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        MADE_UP | ((hash ^ (hash >> 31)) & (MADE_UP - 1))
    }

    fn note_made_up(&self, key: Key) {
        let shown = self.shown_ino(key);
        if (MADE_UP..MADE_UP_END).contains(&shown) {
            self.made_up.write().unwrap_or_else(|e| e.into_inner()).insert(shown, key);
        }
    }

    /// The inode number that clients see of a node.
    pub fn ino(&self, node: NodeId) -> Result<u64> {
        Ok(self.shown_ino(self.key(node)?))
    }

    /// The inode number that clients see of inode `ino` on the device of the root.
    pub fn ino_in_root(&self, ino: u64) -> u64 {
        self.shown_ino((self.root_key.0, ino))
    }

    pub fn attr(&self, stat: &Stat) -> Attr {
        Attr {
            ino: self.shown_ino(key_of(stat)),
            size: stat.st_size.cast_unsigned(),
            blocks: stat.st_blocks.cast_unsigned(),
            atime: (stat.st_atime, stat.st_atime_nsec as u32),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as u32),
            mode: stat.st_mode,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u32,
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            valid: self.folder.valid(),
        }
    }

    /// The node that the kernel knows by inode number `ino`.
    pub fn by_ino(&self, ino: Ino) -> Option<NodeId> {
        let key = match ino.0 {
            1 => return Some(NodeId::ROOT),
            shown @ MADE_UP..MADE_UP_END => {
                *self.made_up.read().unwrap_or_else(|e| e.into_inner()).get(&shown)?
            }
            own => (self.root_key.0, own),
        };
        self.shard(key).get(&key).copied().map(node_at)
    }

    pub fn key(&self, node: NodeId) -> Result<Key> {
        if node == NodeId::ROOT {
            return Ok(self.root_key);
        }
        let rec = self.rec(node)?;
        Ok((rec.dev, rec.ino))
    }

    fn rec(&self, node: NodeId) -> Result<NodeRec> {
        index_of(node).and_then(|i| self.state.nodes.get(i)).ok_or(Errno::STALE)
    }

    /// The node of `name` in `dir`, with one more lookup.
    pub fn lookup(&self, dir: impl AsFd, name: &CStr) -> Result<(NodeId, Stat)> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statat(&dir, name, flags)?;
        let key = key_of(&stat);
        let known = self.shard(key).contains_key(&key);
        if known {
            // Both calls must mean the node that we know; otherwise the name was replaced between them, or the
            // inode number is used again.
            let handle = self.handle_for(key, &dir, name)?;
            if let Some(node) = self.take(key, handle.as_ref()) {
                return Ok((node, stat));
            }
        }
        self.lookup_new(dir, name)
    }

    /// As [`lookup`](Self::lookup), for a name whose inode is most likely not known.
    pub fn lookup_new(&self, dir: impl AsFd, name: &CStr) -> Result<(NodeId, Stat)> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.with_room(|| rustix::fs::openat(&dir, name, flags, Mode::empty()))?;
        self.adopt(fd)
    }

    /// The node of the inode behind the `O_PATH` fd `fd`, with one more lookup.
    pub fn adopt(&self, fd: OwnedFd) -> Result<(NodeId, Stat)> {
        let (node, stat, new) = self.identify(&fd)?;
        if new && self.handle_is_kept(node) {
            self.cache.put(self.session, node, Arc::new(fd));
        } else if new {
            self.pin_new(node, fd)?;
        }
        Ok((node, stat))
    }

    /// The node of the inode behind an fd of any kind, which stays the caller's; with one more lookup.
    pub fn adopt_open(&self, fd: impl AsFd) -> Result<(NodeId, Stat)> {
        let (node, stat, new) = self.identify(&fd)?;
        if new && !self.handle_is_kept(node) {
            let fd = rustix::io::fcntl_dupfd_cloexec(&fd, 0)?;
            self.pin_new(node, fd)?;
        }
        Ok((node, stat))
    }

    /// A node without a handle keeps an fd. `ENFILE`: the session has as many as it may; the node goes again.
    fn pin_new(&self, node: NodeId, fd: OwnedFd) -> Result<()> {
        let held = self.fds.take().inspect_err(|_| self.forget(node, 1, || false))?;
        self.pinned.write().unwrap_or_else(|e| e.into_inner()).insert(node, (Arc::new(fd), held));
        Ok(())
    }

    fn handle_is_kept(&self, node: NodeId) -> bool {
        node == NodeId::ROOT || self.rec(node).is_ok_and(|rec| rec.handle_len != 0)
    }

    fn identify(&self, fd: impl AsFd) -> Result<(NodeId, Stat, bool)> {
        let stat = rustix::fs::fstat(&fd)?;
        let key = key_of(&stat);
        let handle = self.handle_for(key, &fd, c"")?;
        let mut shard = self.shard(key);
        if let Some(node) = self.take_in(&shard, key, handle.as_ref()) {
            return Ok((node, stat, false));
        }
        let mut rec = NodeRec { tag: 1, nlookup: 1, ino: key.1, dev: key.0, ..NodeRec::new_zeroed() };
        if let Some(handle) = &handle {
            rec.handle_type = handle.kind();
            rec.handle_len = handle.bytes().len() as u32;
            rec.handle[..handle.bytes().len()].copy_from_slice(handle.bytes());
        }
        let index = self.state.nodes.insert(&rec).ok_or(Errno::NFILE)?;
        shard.insert(key, index);
        drop(shard);
        self.note_made_up(key);
        Ok((node_at(index), stat, true))
    }

    /// The handle of a file that is to be known by it.
    fn handle_for(&self, key: Key, dir: impl AsFd, name: &CStr) -> Result<Option<FileHandle>> {
        if key.0 != self.root_key.0 || key == self.root_key {
            return Ok(None);
        }
        Ok(FileHandle::of(dir, name)?.filter(|h| h.bytes().len() <= HANDLE_MAX))
    }

    fn take(&self, key: Key, handle: Option<&FileHandle>) -> Option<NodeId> {
        self.take_in(&self.shard(key), key, handle)
    }

    /// One more lookup on the known node of `key`, if it is still the one that `handle` names.
    fn take_in(&self, shard: &HashMap<Key, u32>, key: Key, handle: Option<&FileHandle>) -> Option<NodeId> {
        if key == self.root_key {
            return Some(NodeId::ROOT);
        }
        let index = *shard.get(&key)?;
        let rec = self.state.nodes.get(index)?;
        if handle_of(&rec).as_ref() != handle {
            return None;
        }
        if handle.is_none() && !self.is_pinned(node_at(index)) {
            return None;
        }
        self.state.nodes.field(index, offset_of!(NodeRec, nlookup))?.fetch_add(1, Ordering::AcqRel);
        Some(node_at(index))
    }

    fn is_pinned(&self, node: NodeId) -> bool {
        self.pinned.read().unwrap_or_else(|e| e.into_inner()).contains_key(&node)
    }

    fn pinned(&self, node: NodeId) -> Option<Arc<OwnedFd>> {
        self.pinned.read().unwrap_or_else(|e| e.into_inner()).get(&node).map(|(fd, _)| fd.clone())
    }

    /// From now on `node` is found by `fd`, which the peer kept. False: it is an fd of something else.
    pub fn pin(&self, node: NodeId, fd: OwnedFd) -> bool {
        let same = node != NodeId::ROOT
            && self.rec(node).is_ok_and(|rec| {
                rustix::fs::fstat(&fd).is_ok_and(|stat| key_of(&stat) == (rec.dev, rec.ino))
            });
        if same {
            let held = self.fds.take_anyway(1);
            self.pinned.write().unwrap_or_else(|e| e.into_inner()).insert(node, (Arc::new(fd), held));
        }
        same
    }

    /// A node that has a handle is found by that again.
    pub fn unpin(&self, node: NodeId) {
        if self.handle_is_kept(node) {
            let fd = self.pinned.write().unwrap_or_else(|e| e.into_inner()).remove(&node);
            drop(fd);
        }
    }

    /// The folder that they are in.
    pub fn folder(&self) -> &Arc<Folder> {
        &self.folder
    }

    /// The newest node of an inode.
    pub fn by_key(&self, key: Key) -> Option<NodeId> {
        self.shard(key).get(&key).copied().map(node_at)
    }

    /// `nlookup` lookups less. A node without any goes, unless `in_use` says that it is open.
    pub fn forget(&self, node: NodeId, nlookup: u64, in_use: impl FnOnce() -> bool) {
        let Some(index) = index_of(node) else { return };
        let Some(rec) = self.state.nodes.get(index) else { return };
        let key = (rec.dev, rec.ino);
        let mut shard = self.shard(key);
        let Some(count) = self.state.nodes.field(index, offset_of!(NodeRec, nlookup)) else { return };
        let left = count.load(Ordering::Acquire).saturating_sub(nlookup);
        count.store(left, Ordering::Release);
        if left != 0 || in_use() {
            return;
        }
        let newest = shard.get(&key) == Some(&index);
        if newest {
            shard.remove(&key);
        }
        // Under the shard's lock: once the record is free, its number may come back for another inode.
        self.cache.remove(self.session, node);
        let pinned = self.pinned.write().unwrap_or_else(|e| e.into_inner()).remove(&node);
        let shown = self.shown_ino(key);
        if newest && (MADE_UP..MADE_UP_END).contains(&shown) {
            self.made_up.write().unwrap_or_else(|e| e.into_inner()).remove(&shown);
        }
        self.state.nodes.remove(index);
        drop(shard);
        drop(pinned);
    }

    /// An `O_PATH` fd of a node.
    pub fn path_fd(&self, node: NodeId) -> Result<Arc<OwnedFd>> {
        if node == NodeId::ROOT {
            return Ok(self.root.clone());
        }
        if let Some(fd) = self.cache.get(self.session, node) {
            return Ok(fd);
        }
        let rec = self.rec(node)?;
        if let Some(fd) = self.pinned(node) {
            return Ok(fd);
        }
        let fd = Arc::new(self.open_rec(&rec, OFlags::PATH | OFlags::NOFOLLOW)?);
        let key = (rec.dev, rec.ino);
        let shard = self.shard(key);
        if self.rec(node).is_ok_and(|now| handle_of(&now) == handle_of(&rec)) {
            self.cache.put(self.session, node, fd.clone());
        }
        drop(shard);
        Ok(fd)
    }

    /// See [`Fs::path_of`](super::Fs::path_of).
    pub fn path_of(&self, node: NodeId) -> Result<PathBuf> {
        let path = |fd: &OwnedFd| rustix::fs::readlink(proc_path(fd), Vec::new());
        let (root, own) = (path(&self.root)?, path(&*self.path_fd(node)?)?);
        let path = |bytes| Path::new(OsStr::from_bytes(bytes));
        path(own.to_bytes()).strip_prefix(path(root.to_bytes())).map(Path::to_owned).map_err(|_| Errno::NOENT)
    }

    /// Opens the inode of a node anew. `flags` without `O_CREAT`.
    pub fn reopen(&self, node: NodeId, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if node == NodeId::ROOT {
            return self.with_room(|| rustix::fs::openat(&self.mount, c".", flags, Mode::empty()));
        }
        let rec = self.rec(node)?;
        match self.pinned(node) {
            Some(fd) => self.with_room(|| rustix::fs::open(proc_path(&fd), flags, Mode::empty())),
            None => self.open_rec(&rec, flags),
        }
    }

    fn open_rec(&self, rec: &NodeRec, flags: OFlags) -> Result<OwnedFd> {
        let handle = handle_of(rec).ok_or(Errno::STALE)?;
        self.with_room(|| handle.open(&self.mount, flags))
    }

    /// Runs `open`; when fds ran out, once more without the cache of the daemon.
    pub fn with_room<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(Errno::MFILE) => {
                self.cache.clear();
                open()
            }
            result => result,
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.cache.end_session(self.session);
    }
}

fn handle_of(rec: &NodeRec) -> Option<FileHandle> {
    FileHandle::new(rec.handle_type, rec.handle.get(..rec.handle_len as usize)?)
}
