//! The backing directory as a file system.
//!
//! Operations take what the kernel's request names and return what its reply needs; they know nothing of wire bytes.
//! Every operation that returns an [`Entry`](crate::types::Entry) takes one lookup on its node, which
//! [`Fs::forget`] gives back.
//!
//! The kernel checks permissions (`default_permissions`); the daemon acts with capabilities that pass every
//! check, and only creates as the caller.

mod append;
mod attrs;
mod backing;
mod dirs;
mod fd_cache;
mod folder_locks;
mod folders;
mod gone;
mod io;
mod kept;
pub mod locks;
mod names;
mod nodes;
mod opens;
mod space;
#[cfg(test)]
mod tests;
mod types;

pub use backing::BackingFile;
pub use fd_cache::FdCache;
pub use folders::Folders;
pub use kept::Keeping;
pub use space::Space;
pub use types::{DirEntry, Opened, SetAttr, SetTime, Statfs, Statx};

use crate::fuse::{Channel, Note};
use crate::mounts::Mounts;
use crate::state::SessionState;
use crate::types::{Errno, Ino, NodeId, Owner, Result};
use gone::Gone;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

/// The backing directory of one session as a file system.
pub struct Fs {
    channel: Arc<Channel>,
    read_only: bool,
    nodes: nodes::Nodes,
    opens: opens::Opens,
    dirs: dirs::Dirs,
    space: Mutex<Space>,
    folder: Arc<folders::Folder>,
    folders: OnceLock<Arc<Folders>>,
    gone: Gone,
    mounts: Arc<Mounts>,
}

impl Fs {
    /// Serves `backing`; `mounts` tells what processes see of it. What `state` holds of nodes and open files, from a predecessor, is taken over, with the fds in
    /// `keeping`.
    pub fn new(
        channel: Arc<Channel>,
        state: Arc<SessionState>,
        backing: OwnedFd,
        read_only: bool,
        fds: Arc<FdCache>,
        mut keeping: Keeping,
        mounts: Arc<Mounts>,
    ) -> Result<Fs> {
        let nodes = nodes::Nodes::new(state.clone(), backing, read_only, fds, keeping.fds.clone())?;
        let kept = keeping.return_to(&nodes);
        let opens = opens::Opens::new(state, channel.clone(), &nodes, keeping);
        opens.resume_kept(&nodes, kept);
        Ok(Fs {
            channel,
            read_only,
            folder: nodes.folder().clone(),
            folders: OnceLock::new(),
            nodes,
            opens,
            dirs: dirs::Dirs::default(),
            space: Mutex::default(),
            gone: Gone::default(),
            mounts,
        })
    }

    /// What the sessions of the daemon share; its own, for one that joined no others.
    fn folders(&self) -> &Arc<Folders> {
        self.folders.get_or_init(Arc::default)
    }

    fn writable(&self) -> Result<()> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// The node that the kernel knows under inode number `ino` (1 is the root, as in the ioctls of 3FS).
    pub fn node_of(&self, ino: Ino) -> Option<NodeId> {
        self.nodes.by_ino(ino)
    }

    /// An `O_PATH` fd of a node.
    pub fn path_fd(&self, node: NodeId) -> Result<Arc<OwnedFd>> {
        self.nodes.path_fd(node)
    }

    /// `(st_dev, st_ino)` of the backing inode: the key of locks.
    pub fn backing_key(&self, node: NodeId) -> Result<(u64, u64)> {
        self.nodes.key(node)
    }

    /// The backing file of an inode for ring I/O. `EBADF`: no regular file that the kernel knows and that is open in
    /// this session. `EACCES`: the process of `owner` has no open file description for that direction and could not open
    /// one, by the file's permissions or by its own mounts.
    /// `EROFS`: a write in a session that is read-only.
    pub fn ring_file(&self, ino: Ino, owner: &Owner, write: bool) -> Result<Arc<BackingFile>> {
        if write {
            self.writable()?;
        }
        let node = self.node_of(ino).ok_or(Errno::BADF)?;
        self.opens.find(node).ok_or(Errno::BADF)?.ring_file(&self.nodes, &self.mounts, owner, write)
    }

    /// Where a node lies, relative to the root. `ENOENT`: the kernel does not know, as of a file that was found by its
    /// handle. It was right a moment ago, and says where a file that has gone was.
    pub fn path_of(&self, node: NodeId) -> Result<PathBuf> {
        self.nodes.path_of(node)
    }

    /// Rings wrote to `file`: the kernel's attributes of it are stale, and its pages where it does not use the backing
    /// file's. Tells the kernel once until it asks again.
    pub fn written(&self, file: &BackingFile) {
        let told = self.opens.find(file.node).is_some_and(|open| open.told.swap(true, Ordering::AcqRel));
        if !told {
            self.invalidate(file.node);
        }
    }

    /// The kernel is about to be told of `node` as it is now: what rings write after this must be told anew.
    fn asked(&self, node: NodeId) {
        if let Some(open) = self.opens.find(node) {
            open.told.store(false, Ordering::Release);
        }
    }

    /// Makes the kernel ask again for attributes of `node`, and for data where it has pages of its own, now. The kernel may
    /// wait here for a page that another thread reads.
    pub fn invalidate(&self, node: NodeId) {
        let told = match self.opens.has_passthrough(node) {
            true => self.channel.forget_attributes(node),
            false => self.channel.forget_pages(node),
        };
        if let Err(error) = told {
            tracing::warn!(node = node.0, %error, "the kernel was not told of a change by a ring");
        }
    }

    /// What the kernel is to forget of `node` when its contents changed.
    pub fn stale(&self, node: NodeId) -> Note {
        if self.opens.has_passthrough(node) { Note::Attributes(node) } else { Note::Pages(node) }
    }
}
