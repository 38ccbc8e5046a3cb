//! The `3fs-virt` tree and the ioctls of the mount.
//!
//! The tree is how clients of 3FS ask for what POSIX has no call for: a link in `iovs` registers shared memory, one in
//! `set-conf` sets a key, one in `rm-rf` removes a tree. The same is behind some ioctls. What changes files on such
//! an order is done [as the caller](as_caller), since the kernel has not checked it.

mod as_caller;
mod conf;
mod handles;
mod ioctl;
mod nodes;
mod orders;
mod paths;
mod reach;
mod remove_tree;
mod tree;

pub use conf::UserConf;

use crate::clients::ClientWatch;
use crate::fs::Fs;
use crate::fuse::Channel;
use crate::mounts::Mounts;
use crate::ring::SessionRings;
use crate::state::SessionState;
use crate::types::{Attr, Caller, Entry, Errno, NodeId, Result};
use handles::Handles;
use nodes::Virtual;
use orders::Slots;
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the tree. It is found in every directory of the volume, since any may be the root of a container's mount, and
/// listed in none.
pub const TREE_NAME: &CStr = c"3fs-virt";

/// What the virtual tree stands on.
pub struct Parts {
    /// The session's name, for log lines.
    pub session: String,
    /// The cluster's id: `GET_MOUNT_NAME`.
    pub cluster: String,
    /// Where clients see the mount.
    pub mount_point: PathBuf,
    /// The session refuses every change.
    pub read_only: bool,
    /// Links to `mv:` are orders, wherever they are made.
    pub orders: bool,
    /// Carries notifications to the kernel.
    pub channel: Arc<Channel>,
    /// Where handles of `iovs` outlive the process.
    pub state: Arc<SessionState>,
    /// The backing directory.
    pub fs: Arc<Fs>,
    /// What processes see of the mount.
    pub mounts: Arc<Mounts>,
    /// What `iovs` shows.
    pub rings: Arc<SessionRings>,
    /// What users set by `set-conf`.
    pub conf: Arc<UserConf>,
    /// Watches the processes that own Iovs and rings.
    pub clients: Arc<ClientWatch>,
}

/// An ioctl as FUSE brings it.
#[derive(Debug, Clone, Copy)]
pub struct Ioctl<'a> {
    /// What the fd refers to.
    pub node: NodeId,
    /// FUSE file handle.
    pub fh: u64,
    /// The number.
    pub cmd: u32,
    /// `FUSE_IOCTL_*`.
    pub flags: u32,
    /// The argument's bytes, `in_size` of them.
    pub input: &'a [u8],
    /// Most bytes that may be answered.
    pub out_size: u32,
}

/// The virtual tree of one session.
///
/// No answer of it may be cached by the kernel: entry and attribute timeouts are 0. What a user sees depends on who
/// asks, and a key of `set-conf` must be settable twice.
pub struct Virt {
    parts: Parts,
    handles: Handles,
    slots: Slots,
    /// Times of everything in the tree.
    since: (i64, u32),
}

impl Virt {
    /// The tree over `parts`. After a take-over it watches again what `parts.rings` holds, and drops what lost its process.
    pub fn new(parts: Parts) -> Virt {
        for object in parts.rings.list() {
            parts.clients.watch(&object.owner);
        }
        for uid in parts.conf.read_only_users() {
            parts.rings.set_user_read_only(uid, true);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Virt {
            handles: Handles::new(Virtual::Iovs.node(), parts.state.clone()),
            slots: Slots::default(),
            since: (now.as_secs() as i64, now.subsec_nanos()),
            parts,
        }
    }

    /// Does `name` in `parent` belong to the virtual tree, whatever the backing directory has? For such names, and for nodes that are
    /// [virtual](NodeId::is_virtual), requests come here; those without a function here answer `EPERM` (setattr, create,
    /// mkdir, mknod, rmdir, link, rename from).
    pub fn owns(parent: NodeId, name: &CStr) -> bool {
        parent.is_virtual() || parent == NodeId::ROOT && name == TREE_NAME
    }

    /// Is it a name that nothing can be given? What has it in the backing directory, below its root, goes before the tree.
    pub fn is_reserved(name: &CStr) -> bool {
        name == TREE_NAME
    }

    /// Resolves a name: [`TREE_NAME`] in a directory of the volume, or anything below.
    pub fn lookup(&self, parent: NodeId, name: &CStr, caller: &Caller) -> Result<Entry> {
        if !parent.is_virtual() && name == TREE_NAME {
            return Ok(Virtual::Tree.directory(parent, self.since));
        }
        let name = name.to_str().map_err(|_| Errno::NOENT)?;
        match Virtual::of(parent).ok_or(Errno::NOENT)? {
            Virtual::Tree => self.directory_named(Virtual::place(parent), name),
            Virtual::Iovs => self.iov_named(name, caller),
            Virtual::GetConf => self.value_named(name, caller),
            // What was made there was an order, and is done.
            Virtual::RmRf | Virtual::SetConf => Err(Errno::NOENT),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Attributes of a virtual node.
    pub fn getattr(&self, node: NodeId, caller: &Caller) -> Result<Attr> {
        let entry = match Virtual::of(node).ok_or(Errno::NOENT)? {
            Virtual::Semaphore(priority) => self.semaphore(priority)?.0,
            Virtual::Object(number) => self.object(&self.object_numbered(number, caller)?),
            Virtual::Value(key) => self.value(key, caller)?.0,
            Virtual::Order => self.order(0, caller),
            directory => directory.directory(Virtual::place(node), self.since),
        };
        Ok(entry.attr)
    }

    /// Target of a virtual link.
    pub fn readlink(&self, node: NodeId, caller: &Caller) -> Result<Vec<u8>> {
        match Virtual::of(node).ok_or(Errno::NOENT)? {
            Virtual::Semaphore(priority) => self.semaphore(priority).map(|(_, target)| target.into_bytes()),
            Virtual::Object(number) => Ok(self.object_numbered(number, caller)?.target.into_bytes()),
            Virtual::Value(key) => self.value(key, caller).map(|(_, value)| value.into_bytes()),
            Virtual::Order => Err(Errno::NOENT),
            _ => Err(Errno::INVAL),
        }
    }

    /// Registers an Iov or ring, sets a key, or removes a tree: whatever a link in that directory asks for.
    pub fn symlink(&self, parent: NodeId, name: &CStr, target: &CStr, caller: &Caller) -> Result<Entry> {
        match Virtual::of(parent) {
            Some(Virtual::Iovs) => self.register(name, target, caller),
            Some(Virtual::SetConf) => {
                self.takes_orders(parent, caller)?;
                self.set_key(name, target, caller)
            }
            Some(Virtual::RmRf) => {
                self.takes_orders(parent, caller)?;
                self.remove_by_link(target, caller)
            }
            _ => Err(Errno::PERM),
        }
    }

    /// Is this target, given to a link outside the tree, an order to rename (`mv:`)? Only where the volume is to take
    /// such orders: whoever unpacks an archive would carry out its author's.
    pub fn is_move_order(&self, target: &CStr) -> bool {
        self.parts.orders && target.to_bytes().starts_with(orders::MOVE_PREFIX)
    }

    /// Drops a registration.
    pub fn unlink(&self, parent: NodeId, name: &CStr, caller: &Caller) -> Result<()> {
        match Virtual::of(parent) {
            Some(Virtual::Iovs) => self.unregister(name, caller),
            _ => Err(Errno::PERM),
        }
    }

    /// Opens a virtual directory; the file handle.
    pub fn opendir(&self, node: NodeId, caller: &Caller) -> Result<u64> {
        match Virtual::of(node).ok_or(Errno::NOENT)? {
            Virtual::Iovs => self.handles.open(&crate::clients::owner_of(caller)),
            other if other.is_directory() => Ok(0),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Everything in a virtual directory that `caller` may see, without `.` and `..`. `fh` is noted as used for listing.
    pub fn readdir(&self, node: NodeId, fh: u64, caller: &Caller) -> Result<Vec<(CString, Entry)>> {
        match Virtual::of(node).ok_or(Errno::NOENT)? {
            Virtual::Tree => Ok(self.directories(Virtual::place(node))),
            Virtual::Iovs => {
                self.handles.listed(fh);
                Ok(self.iovs_of(caller))
            }
            Virtual::GetConf => self.values(caller),
            Virtual::RmRf | Virtual::SetConf => Ok(Vec::new()),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Closes a handle of [`opendir`](Self::opendir).
    pub fn releasedir(&self, node: NodeId, fh: u64) {
        if Virtual::of(node) == Some(Virtual::Iovs)
            && let Some(uid) = self.handles.close(fh)
        {
            self.parts.clients.unseen_gone(uid);
        }
    }

    /// `EROFS` for who may not change files.
    fn check_writable(&self, caller: &Caller) -> Result<()> {
        let refused = self.parts.read_only || self.parts.conf.read_only(caller.uid);
        if refused { Err(Errno::ROFS) } else { Ok(()) }
    }
}
