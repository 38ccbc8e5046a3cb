//! Open files: which handles the kernel has, and by what the daemon serves them.
//!
//! An inode that is open has one [`OpenNode`] for all its handles, since the kernel wants that too: every open of an
//! inode names the same passthrough id, or none does.

use super::backing::BackingFile;
use super::kept::{Keeping, key};
use super::nodes::{Nodes, index_of};
use crate::fuse::Channel;
use crate::mounts::Mounts;
use crate::state::SessionState;
use crate::state::records::{NodeRec, OpenRec};
use crate::types::{Errno, Ino, NodeId, Owner, Result};
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

const SHARDS: usize = 16;
const FILE: u32 = 1;
const DIRECTORY: u32 = 2;

/// Most files without a name that the peer keeps for a session: its fds are those of all sessions.
const MOST_KEPT: usize = 4096;

pub(super) struct Opens {
    state: Arc<SessionState>,
    channel: Arc<Channel>,
    generation: AtomicU32,
    keeping: Keeping,
    /// Nodes that are open without passthrough.
    without: AtomicUsize,
    /// Nodes of which the peer has an fd.
    kept: AtomicUsize,
    nodes: [RwLock<HashMap<NodeId, Arc<OpenNode>>>; SHARDS],
}

/// An inode that is open.
pub(super) struct OpenNode {
    pub node: NodeId,
    pub ino: Ino,
    /// Rings changed the file and the kernel was told; it has not asked again.
    pub told: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By index in the table of opens.
    handles: HashMap<u32, Handle>,
    passthrough: Passthrough,
    /// Files by [`slot`]: for reading, for writing, each with and without `O_DIRECT`.
    files: [Option<Arc<BackingFile>>; 4],
    /// Owners of rings whom the backing file system let open the file.
    allowed: Vec<(Owner, bool)>,
    /// It could be opened for writing.
    written: bool,
    /// The peer has an fd of it.
    kept: bool,
    /// The last handle is gone, and this is out of the map.
    dead: bool,
}

#[derive(Debug, Clone, Copy)]
struct Handle {
    uid: u32,
    tgid: u32,
    flags: OFlags,
}

#[derive(Debug, Clone, Copy, Default)]
enum Passthrough {
    #[default]
    Untried,
    Id(u32),
    /// Not possible, or not before the inode was opened without it.
    Without,
}

/// Who opens, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opener {
    pub uid: u32,
    pub tgid: u32,
    pub flags: OFlags,
}

fn slot(write: bool, direct: bool) -> usize {
    usize::from(write) | usize::from(direct) << 1
}

/// May a file opened with these flags be read (or written)?
pub(super) fn allows(flags: OFlags, write: bool) -> bool {
    match flags & OFlags::ACCMODE {
        OFlags::RDWR => true,
        OFlags::WRONLY => write,
        _ => !write,
    }
}

/// How the backing file is opened for a client that opens with `flags`, to find out whether it can be: that of a read-only
/// file system, or one that may not be changed (`chattr +i`, a running program), cannot be written.
fn access(flags: OFlags) -> OFlags {
    let access = if allows(flags, true) { OFlags::RDWR } else { OFlags::RDONLY };
    access | OFlags::NONBLOCK | flags & OFlags::APPEND
}

fn file_handle(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

impl Opens {
    /// What `state` holds is open; `nodes` gives inode numbers.
    pub fn new(state: Arc<SessionState>, channel: Arc<Channel>, nodes: &Nodes, keeping: Keeping) -> Opens {
        // Handles of a predecessor must not come back while a late request may still name one.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let generation = AtomicU32::new((now.as_nanos() >> 10) as u32);
        let (without, kept) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let opens = Opens { state, channel, generation, keeping, without, kept, nodes: Default::default() };
        for (index, rec) in opens.state.opens.iter().filter(|(_, rec)| rec.tag == FILE) {
            let Ok(open) = opens.open_node(NodeId(rec.node), nodes) else { continue };
            let mut inner = open.lock();
            let flags = OFlags::from_bits_retain(rec.flags);
            inner.handles.insert(index, Handle { uid: rec.uid, tgid: rec.tgid, flags });
            if matches!(inner.passthrough, Passthrough::Untried) {
                opens.set_passthrough(&mut inner, opens.backing_id(open.node));
            }
        }
        for (index, rec) in opens.state.nodes.iter().filter(|(_, rec)| rec.backing_id != 0) {
            // Registered by a predecessor that died before it opened the file.
            if opens.find(NodeId(u64::from(index) + 2)).is_none() {
                opens.set_backing_id(NodeId(u64::from(index) + 2), 0);
                let _ = opens.channel.backing_close(rec.backing_id);
            }
        }
        opens
    }

    fn shard(&self, node: NodeId) -> &RwLock<HashMap<NodeId, Arc<OpenNode>>> {
        &self.nodes[node.0 as usize % SHARDS]
    }

    /// The node, if it is open.
    pub fn find(&self, node: NodeId) -> Option<Arc<OpenNode>> {
        self.shard(node).read().unwrap_or_else(|e| e.into_inner()).get(&node).cloned()
    }

    fn open_node(&self, node: NodeId, nodes: &Nodes) -> Result<Arc<OpenNode>> {
        if let Some(found) = self.find(node) {
            return Ok(found);
        }
        let ino = Ino(nodes.ino(node)?);
        let mut shard = self.shard(node).write().unwrap_or_else(|e| e.into_inner());
        let new = || Arc::new(OpenNode { node, ino, told: AtomicBool::new(false), inner: Mutex::default() });
        Ok(shard.entry(node).or_insert_with(new).clone())
    }

    /// The passthrough id of an inode, 0 for none.
    fn backing_id(&self, node: NodeId) -> u32 {
        self.backing_id_field(node).map_or(0, |id| id.load(Ordering::Acquire))
    }

    fn set_backing_id(&self, node: NodeId, id: u32) {
        if let Some(field) = self.backing_id_field(node) {
            field.store(id, Ordering::Release);
        }
    }

    fn backing_id_field(&self, node: NodeId) -> Option<&AtomicU32> {
        self.state.nodes.field32(index_of(node)?, offset_of!(NodeRec, backing_id))
    }

    /// Opens `node`: the handle and, with passthrough, the backing id. `made` is the file as it was just created.
    pub fn open(
        &self,
        nodes: &Nodes,
        node: NodeId,
        opener: Opener,
        made: Option<OwnedFd>,
    ) -> Result<(u64, Option<u32>)> {
        loop {
            let open = self.open_node(node, nodes)?;
            let mut inner = open.lock();
            if inner.dead {
                continue;
            }
            let result = self.open_locked(nodes, &open, &mut inner, opener, made);
            if result.is_err() && inner.handles.is_empty() {
                self.close_node(&open, inner);
            }
            return result;
        }
    }

    fn open_locked(
        &self,
        nodes: &Nodes,
        open: &OpenNode,
        inner: &mut Inner,
        opener: Opener,
        made: Option<OwnedFd>,
    ) -> Result<(u64, Option<u32>)> {
        let write = allows(opener.flags, true);
        if matches!(inner.passthrough, Passthrough::Untried) {
            let id = self.register(nodes, open, opener.flags, made.as_ref())?;
            self.set_passthrough(inner, id);
            inner.written |= write && id != 0;
        }
        if write && !inner.written && matches!(inner.passthrough, Passthrough::Id(_)) {
            // The kernel would answer EIO for whatever the backing file system says.
            drop(nodes.reopen(open.node, access(opener.flags))?);
            inner.written = true;
        }
        let id = match inner.passthrough {
            Passthrough::Id(id) => Some(id),
            _ => None,
        };
        let mut unlinked = false;
        if id.is_none() && inner.files[slot(write, false)].is_none() {
            let held = nodes.fds.take()?;
            let fd = match made {
                Some(fd) => fd,
                None => open_file(nodes, open.node, write, false)?,
            };
            let file = BackingFile::new(fd, None, open.node, open.ino, held)?;
            unlinked = file.unlinked;
            inner.files[slot(write, false)] = Some(Arc::new(file));
        }
        let generation = self.next_generation();
        let rec = OpenRec {
            tag: FILE,
            generation,
            node: open.node.0,
            flags: opener.flags.bits(),
            uid: opener.uid,
            tgid: opener.tgid,
            ..OpenRec::default()
        };
        let index = self.state.opens.insert(&rec).ok_or(Errno::NFILE)?;
        inner.handles.insert(index, Handle { uid: opener.uid, tgid: opener.tgid, flags: opener.flags });
        if unlinked && !inner.kept {
            // Made without a name, or opened by a link in `/proc`.
            self.keep_locked(nodes, open, inner);
        }
        Ok((file_handle(index, generation), id))
    }

    /// Gives the kernel the backing file; its id, or 0. That it cannot take it (a stacked file system, an old kernel) is no error.
    fn register(&self, nodes: &Nodes, open: &OpenNode, flags: OFlags, made: Option<&OwnedFd>) -> Result<u32> {
        if !self.channel.passthrough() {
            return Ok(0);
        }
        let own;
        let fd = match made {
            Some(fd) => fd.as_fd(),
            None => {
                own = nodes.reopen(open.node, access(flags))?;
                own.as_fd()
            }
        };
        // The kernel writes with the credentials of the thread that registers.
        let writer = crate::sys::creds::Scope::writer()?;
        let id = self.channel.backing_open(fd);
        drop(writer);
        match id {
            Ok(id) => {
                self.set_backing_id(open.node, id);
                Ok(id)
            }
            Err(error) => {
                tracing::debug!(node = open.node.0, %error, "no passthrough for this file");
                Ok(0)
            }
        }
    }

    fn next_generation(&self) -> u32 {
        // 0 is left out, so that no handle is 0.
        loop {
            let generation = self.generation.fetch_add(1, Ordering::Relaxed);
            if generation != 0 {
                return generation;
            }
        }
    }

    /// Closes a handle; the node, if it was the last one and is without lookups, is the caller's to drop. A handle that
    /// is not open is no error. True: the peer had an fd of the node, and it was the last handle.
    pub fn release(&self, node: NodeId, fh: u64) -> bool {
        let Ok((index, _)) = self.rec(node, fh, FILE) else { return false };
        let Some(open) = self.find(node) else {
            self.state.opens.remove(index);
            return false;
        };
        let mut inner = open.lock();
        inner.handles.remove(&index);
        // Last: another open of this inode may get the index at once, and is in `handles` then.
        self.state.opens.remove(index);
        let last = inner.handles.is_empty() && !inner.dead;
        let kept = last && inner.kept;
        if last {
            self.close_node(&open, inner);
        }
        kept
    }

    fn set_passthrough(&self, inner: &mut Inner, id: u32) {
        inner.passthrough = if id == 0 { Passthrough::Without } else { Passthrough::Id(id) };
        if id == 0 {
            self.without.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Is a file open without passthrough?
    pub fn any_without_passthrough(&self) -> bool {
        self.without.load(Ordering::Acquire) != 0
    }

    /// Gives the peer an fd of `node` if it is open and nothing else would hold it after this process. False: no, or
    /// the peer had one.
    pub fn keep(&self, nodes: &Nodes, node: NodeId) -> bool {
        let Some(open) = self.find(node) else { return false };
        let mut inner = open.lock();
        let open_without = !inner.handles.is_empty() && matches!(inner.passthrough, Passthrough::Without);
        !inner.dead && open_without && !inner.kept && self.keep_locked(nodes, &open, &mut inner)
    }

    fn keep_locked(&self, nodes: &Nodes, open: &OpenNode, inner: &mut Inner) -> bool {
        if self.kept.fetch_add(1, Ordering::AcqRel) >= MOST_KEPT {
            self.kept.fetch_sub(1, Ordering::AcqRel);
            let session = &self.keeping.session;
            tracing::warn!(
                session,
                "more than {MOST_KEPT} open files have no name: node {} would not survive the end of this process",
                open.node.0
            );
            return false;
        }
        match open.file(inner, nodes, false, false) {
            Ok(file) => {
                self.keeping.keep(open.node, file.fd.as_fd());
                inner.kept = true;
            }
            Err(error) => {
                let session = &self.keeping.session;
                tracing::warn!(session, node = open.node.0, %error, "cannot be opened to be kept");
                self.kept.fetch_sub(1, Ordering::AcqRel);
            }
        }
        inner.kept
    }

    /// The peer's fd of `node` is not needed any more.
    pub fn unkeep(&self, node: NodeId) {
        if let Some(open) = self.find(node) {
            self.unkeep_locked(&open, &mut open.lock());
        }
    }

    fn unkeep_locked(&self, open: &OpenNode, inner: &mut Inner) {
        if std::mem::take(&mut inner.kept) {
            self.kept.fetch_sub(1, Ordering::AcqRel);
            self.keeping.forget(open.node);
        }
    }

    /// The peer has fds of `pinned`, from a predecessor. Those that are not open any more are let go.
    pub fn resume_kept(&self, nodes: &Nodes, pinned: Vec<NodeId>) {
        for node in pinned {
            if let Some(open) = self.find(node) {
                open.lock().kept = true;
                self.kept.fetch_add(1, Ordering::AcqRel);
            } else {
                nodes.unpin(node);
                self.keeping.forget(node);
            }
        }
    }

    /// Duplicates of the fds that the peer should have, by key.
    pub fn kept_fds(&self, nodes: &Nodes) -> Result<Vec<(String, OwnedFd)>> {
        let mut fds = Vec::new();
        for shard in &self.nodes {
            let all: Vec<_> = shard.read().unwrap_or_else(|e| e.into_inner()).values().cloned().collect();
            for open in all {
                let mut inner = open.lock();
                if inner.kept {
                    let file = open.file(&mut inner, nodes, false, false)?;
                    fds.push((key(open.node), rustix::io::fcntl_dupfd_cloexec(&file.fd, 0)?));
                }
            }
        }
        Ok(fds)
    }

    fn close_node(&self, open: &OpenNode, mut inner: MutexGuard<'_, Inner>) {
        inner.dead = true;
        let files = std::mem::take(&mut inner.files);
        for file in files.iter().flatten() {
            file.closed.store(true, Ordering::Release);
        }
        let passthrough = std::mem::take(&mut inner.passthrough);
        if let Passthrough::Without = passthrough {
            self.without.fetch_sub(1, Ordering::AcqRel);
        }
        self.unkeep_locked(open, &mut inner);
        if let Passthrough::Id(_) = passthrough {
            // Before it is closed: a successor must not name an id that the kernel gave to another file.
            self.set_backing_id(open.node, 0);
        }
        self.shard(open.node).write().unwrap_or_else(|e| e.into_inner()).remove(&open.node);
        drop(inner);
        if let Passthrough::Id(id) = passthrough
            && let Err(error) = self.channel.backing_close(id)
        {
            let session = &self.keeping.session;
            tracing::warn!(session, node = open.node.0, id, %error, "the kernel did not close a backing file");
        }
    }

    /// The record of handle `fh`. `EBADF`: it is not open on `node`.
    fn rec(&self, node: NodeId, fh: u64, tag: u32) -> Result<(u32, OpenRec)> {
        let index = fh as u32;
        let rec = self.state.opens.get(index).ok_or(Errno::BADF)?;
        let same = rec.tag == tag && rec.node == node.0 && file_handle(index, rec.generation) == fh;
        if same { Ok((index, rec)) } else { Err(Errno::BADF) }
    }

    /// The flags with which handle `fh` was opened.
    pub fn flags(&self, node: NodeId, fh: u64) -> Result<OFlags> {
        Ok(OFlags::from_bits_retain(self.rec(node, fh, FILE)?.1.flags))
    }

    /// The file behind handle `fh`, for that direction. `EBADF` where the handle does not allow it.
    pub fn file(&self, nodes: &Nodes, node: NodeId, fh: u64, write: bool) -> Result<Arc<BackingFile>> {
        if !allows(self.flags(node, fh)?, write) {
            return Err(Errno::BADF);
        }
        self.any_file(nodes, node, write)
    }

    /// The file of an open node, whoever has it open.
    pub fn any_file(&self, nodes: &Nodes, node: NodeId, write: bool) -> Result<Arc<BackingFile>> {
        let open = self.find(node).ok_or(Errno::BADF)?;
        let mut inner = open.lock();
        if inner.dead {
            return Err(Errno::BADF);
        }
        open.file(&mut inner, nodes, write, false)
    }

    /// Does `each` for every file that is open on `node`.
    pub fn for_files(&self, node: NodeId, each: impl Fn(&BackingFile)) {
        let Some(open) = self.find(node) else { return };
        open.lock().files.iter().flatten().for_each(|file| each(file));
    }

    /// Does the kernel read and write the file of `node` itself?
    pub fn has_passthrough(&self, node: NodeId) -> bool {
        self.backing_id(node) != 0
    }

    pub fn open_dir(&self, node: NodeId, opener: Opener) -> Result<u64> {
        let generation = self.next_generation();
        let rec = OpenRec {
            tag: DIRECTORY,
            generation,
            node: node.0,
            flags: opener.flags.bits(),
            uid: opener.uid,
            tgid: opener.tgid,
            ..OpenRec::default()
        };
        let index = self.state.opens.insert(&rec).ok_or(Errno::NFILE)?;
        Ok(file_handle(index, generation))
    }

    /// Is `fh` an open directory?
    pub fn check_dir(&self, node: NodeId, fh: u64) -> Result<()> {
        self.rec(node, fh, DIRECTORY).map(drop)
    }

    pub fn release_dir(&self, node: NodeId, fh: u64) {
        if let Ok((index, _)) = self.rec(node, fh, DIRECTORY) {
            self.state.opens.remove(index);
        }
    }
}

impl OpenNode {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn file(&self, inner: &mut Inner, nodes: &Nodes, write: bool, direct: bool) -> Result<Arc<BackingFile>> {
        // A file for both directions serves readers as well.
        let at = slot(write, direct);
        if let Some(file) = inner.files[at].as_ref().or(inner.files[at | slot(true, false)].as_ref()) {
            return Ok(file.clone());
        }
        let held = nodes.fds.take()?;
        let fd = open_file(nodes, self.node, write, false)?;
        let direct = direct.then(|| open_file(nodes, self.node, write, true)).transpose()?;
        let file = Arc::new(BackingFile::new(fd, direct, self.node, self.ino, held)?);
        inner.files[at] = Some(file.clone());
        Ok(file)
    }

    /// The file for a ring of `owner`: allowed by an open file description of the same process that has this direction,
    /// since the kernel has judged that. What others have open, or what the backing file system would let its user open,
    /// counts where the process sees the file on a mount of its own that allows it.
    pub fn ring_file(
        &self,
        nodes: &Nodes,
        mounts: &Mounts,
        owner: &Owner,
        write: bool,
    ) -> Result<Arc<BackingFile>> {
        let mut inner = self.lock();
        if inner.dead {
            return Err(Errno::BADF);
        }
        let mut allowed = inner.allowed.contains(&(*owner, write));
        let (mut by_user, mut direct) = (false, false);
        for handle in inner.handles.values().filter(|handle| allows(handle.flags, write)) {
            // Processes that cannot be seen are told apart by their user only.
            let same_process = handle.tgid == owner.tgid && (owner.tgid != 0 || handle.uid == owner.uid);
            let same_user = handle.uid == owner.uid;
            allowed |= same_process;
            by_user |= same_user;
            direct |= (same_process || same_user) && handle.flags.contains(OFlags::DIRECT);
        }
        if !allowed {
            check_mounts(nodes, self.node, mounts, owner, write)?;
            if !by_user {
                check_access(nodes, self.node, owner, write)?;
            }
            inner.allowed.push((*owner, write));
        }
        match self.file(&mut inner, nodes, write, direct) {
            // The file system has no O_DIRECT: the client could not have opened it so there.
            Err(Errno::INVAL) if direct => self.file(&mut inner, nodes, write, false),
            result => result,
        }
    }
}

/// Does the process of `owner` see the file, and may it change it there if it is to be written?
fn check_mounts(nodes: &Nodes, node: NodeId, mounts: &Mounts, owner: &Owner, write: bool) -> Result<()> {
    let view = mounts.seen_by_owner(owner).map_err(|_| Errno::ACCESS)?;
    if view.is_whole() {
        return Ok(());
    }
    let path = nodes.path_of(node).map_err(|_| Errno::ACCESS)?;
    let may = if write { view.may_change(&path).is_ok() } else { view.can_see(&path) };
    if may { Ok(()) } else { Err(Errno::ACCESS) }
}

/// Would the backing file system let `owner` open the file?
fn check_access(nodes: &Nodes, node: NodeId, owner: &Owner, write: bool) -> Result<()> {
    let fd = nodes.path_fd(node)?;
    let path = crate::sys::path::proc_path(&fd);
    let _scope = crate::sys::creds::Scope::unprivileged(owner.uid, owner.gid)?;
    let flags = if write { OFlags::WRONLY } else { OFlags::RDONLY } | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        Ok(_) => Ok(()),
        Err(Errno::PERM | Errno::ROFS | Errno::TXTBSY) => Err(Errno::ACCESS),
        Err(error) => Err(error),
    }
}

/// Opens a file for the daemon, which has permission anyway.
fn open_file(nodes: &Nodes, node: NodeId, write: bool, direct: bool) -> Result<OwnedFd> {
    let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    // Not to hang on a FIFO. With the flag, io_uring would answer EAGAIN on some file systems: it goes again.
    let fd = nodes.reopen(node, access | direct | OFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&fd, direct)?;
    Ok(fd)
}
