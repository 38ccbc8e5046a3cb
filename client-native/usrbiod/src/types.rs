//! Words that every part of the daemon shares.

pub use rustix::io::Errno;
use std::time::Duration;
pub use usrbio_wire::Ino;

/// What an operation answers: a value, or the errno that the caller sees.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

/// A node id of the FUSE protocol: the daemon's name for an inode that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the mount (`FUSE_ROOT_ID`).
    pub const ROOT: NodeId = NodeId(1);

    /// Does this name something under `3fs-virt`? Those ids are also the inode numbers that 3FS's own tools know
    /// by their top four bits.
    pub fn is_virtual(self) -> bool {
        self.0 & 0xf000_0000_0000_0000 != 0
    }
}

/// The uid and gid of a caller whom the kernel does not name: requests on a mount that may be mapped into user namespaces,
/// except those that create something (`FUSE_INVALID_UIDGID`).
pub const UNKNOWN_ID: u32 = u32::MAX;

/// Who asks, as FUSE names the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// File system user id, or [`UNKNOWN_ID`].
    pub uid: u32,
    /// File system group id, or [`UNKNOWN_ID`].
    pub gid: u32,
    /// The *thread* that called, in the daemon's pid namespace; 0 when it cannot be seen from there.
    pub pid: u32,
}

/// The process behind a [`Caller`]: what owns Iovs and rings, and what must be alive for them to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// File system user id at registration.
    pub uid: u32,
    /// File system group id at registration.
    pub gid: u32,
    /// Thread group id; 0 when the process cannot be seen.
    pub tgid: u32,
    /// Start time of the process in clock ticks since boot (`/proc/PID/stat`, field 22), so that a reused pid is
    /// not taken for it.
    pub start: u64,
}

impl Owner {
    /// May `self` use and remove what `owner` registered? Its user and root may, and the same process.
    pub fn may_manage(&self, owner: &Owner) -> bool {
        let same_process = self.tgid != 0 && (self.tgid, self.start) == (owner.tgid, owner.start);
        self.uid == 0 || self.uid == owner.uid || same_process
    }
}

/// Attributes of a file, as FUSE and `statx` have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr {
    /// Inode number that `stat` shows.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Last access, seconds and nanoseconds.
    pub atime: (i64, u32),
    /// Last change of data.
    pub mtime: (i64, u32),
    /// Last change of the inode.
    pub ctime: (i64, u32),
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Preferred I/O size.
    pub blksize: u32,
    /// Seconds for which the kernel may keep these, and the name that they were found by.
    pub valid: u32,
}

/// A name that was resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its node.
    pub node: NodeId,
    /// Its attributes.
    pub attr: Attr,
}

/// Requests that do not come to an end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hung {
    /// How many.
    pub requests: u64,
    /// Age of the oldest.
    pub oldest: Duration,
}

impl Hung {
    /// Requests older than this hang.
    pub const AFTER: Duration = Duration::from_secs(5);

    /// Requests of that age, if they hang.
    pub fn add(&mut self, requests: u64, age: Duration) {
        if requests > 0 && age >= Hung::AFTER {
            self.requests += requests;
            self.oldest = self.oldest.max(age);
        }
    }

    /// Both together.
    pub fn and(self, other: Hung) -> Hung {
        Hung { requests: self.requests + other.requests, oldest: self.oldest.max(other.oldest) }
    }
}
