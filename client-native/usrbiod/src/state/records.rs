//! The records of a state file. All are plain bytes without padding.
//!
//! Each ends in `spare` bytes, which are zero. A later version may put a field there that means "not used" when it is zero,
//! and then counts [`VERSION`](Record::VERSION) up: a version that does not know the field takes over a state in which
//! it is zero everywhere, and refuses others. What cannot be said that way is a table of another [`KIND`](Record::KIND).

use std::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A record: plain bytes, a multiple of 8, the first `u32` of which is its tag (0 is free).
pub trait Record: FromBytes + IntoBytes + Immutable + Copy {
    /// Number of the table in the file's directory; never used again for another one.
    const KIND: u32;
    /// What messages call the table.
    const NAME: &str;
    /// Counts the meanings that were given to spare bytes and tags.
    const VERSION: u32;
    /// Records of a table that is made new.
    const CAPACITY: u32;
    /// The highest tag.
    const TAGS: u32;
    /// Where the spare bytes begin, which reach to the end.
    const SPARE: usize;
}

macro_rules! table {
    ($record:ty, $kind:literal, $name:literal, version: $version:literal, capacity: $capacity:expr, tags: $tags:literal) => {
        impl Record for $record {
            const KIND: u32 = $kind;
            const NAME: &str = $name;
            const VERSION: u32 = $version;
            const CAPACITY: u32 = $capacity;
            const TAGS: u32 = $tags;
            const SPARE: usize = offset_of!($record, spare);
        }
        const _: () = assert!(size_of::<$record>().is_multiple_of(8));
    };
}

table!(HeaderRec, 1, "header", version: 1, capacity: 1, tags: 1);
table!(ReplyRec, 2, "replies", version: 1, capacity: 256, tags: 3);
table!(ObjectRec, 3, "objects", version: 1, capacity: 1 << 16, tags: 2);
table!(OpenRec, 4, "opens", version: 1, capacity: 1 << 22, tags: 2);
table!(LockRec, 5, "locks", version: 1, capacity: 1 << 18, tags: 2);
table!(NodeRec, 6, "nodes", version: 1, capacity: 1 << 24, tags: 1);
table!(ConfRec, 7, "settings", version: 1, capacity: 1 << 16, tags: 2);

/// What was agreed for the whole session.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HeaderRec {
    /// 1.
    pub tag: u32,
    /// 1 after FUSE_INIT was answered.
    pub init_done: u32,
    /// Minor version of the FUSE protocol.
    pub fuse_minor: u32,
    /// `max_write` that was agreed.
    pub max_write: u32,
    /// INIT flags that were agreed, both halves.
    pub fuse_flags: u64,
    /// File names of the three submit semaphores in the shm directory, NUL-padded; empty before they are made.
    pub semaphores: [[u8; 64]; 3],
    /// Zero.
    pub spare: [u32; 10],
}

impl Default for HeaderRec {
    fn default() -> Self {
        HeaderRec {
            tag: 0,
            init_done: 0,
            fuse_minor: 0,
            max_write: 0,
            fuse_flags: 0,
            semaphores: [[0; 64]; 3],
            spare: [0; 10],
        }
    }
}

/// Longest file handle that is kept (`MAX_HANDLE_SZ` is 128; ext4, XFS, btrfs and tmpfs need 8 to 40).
pub const HANDLE_MAX: usize = 80;

/// An inode that the kernel knows.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NodeRec {
    /// 1.
    pub tag: u32,
    /// FUSE passthrough backing id, 0 for none. Every open of the inode must name the same one.
    pub backing_id: u32,
    /// References that the kernel holds.
    pub nlookup: u64,
    /// Inode number of the backing file.
    pub ino: u64,
    /// Device of the backing file.
    pub dev: u64,
    /// Type of the file handle.
    pub handle_type: i32,
    /// Bytes of the file handle in use; 0: the file system has none, a successor cannot find the node again.
    pub handle_len: u32,
    /// The file handle (`name_to_handle_at`).
    pub handle: [u8; HANDLE_MAX],
    /// Zero.
    pub spare: [u32; 6],
}

/// An open file or directory.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OpenRec {
    /// 1 for a file, 2 for a directory.
    pub tag: u32,
    /// High half of the FUSE file handle, so that a handle is never reused.
    pub generation: u32,
    /// The node.
    pub node: u64,
    /// `open(2)` flags.
    pub flags: u32,
    /// Who opened it.
    pub uid: u32,
    /// The process that opened it; 0 when it could not be seen.
    pub tgid: u32,
    /// Zero.
    pub spare: [u32; 5],
}

/// A lock that is held.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LockRec {
    /// 1 for POSIX, 2 for BSD (`flock`).
    pub tag: u32,
    /// `F_RDLCK` or `F_WRLCK`.
    pub kind: u32,
    /// Device of the backing file.
    pub dev: u64,
    /// Inode of the backing file.
    pub ino: u64,
    /// The kernel's name for the owner.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, `OFFSET_MAX` for all.
    pub end: u64,
    /// What `F_GETLK` reports.
    pub pid: u32,
    /// Zero.
    pub spare: [u32; 5],
}

/// A registered Iov or ring.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ObjectRec {
    /// 1 for an Iov, 2 for a ring.
    pub tag: u32,
    /// Owner.
    pub uid: u32,
    /// Owner's group.
    pub gid: u32,
    /// Owner's process.
    pub tgid: u32,
    /// Owner's start time.
    pub start: u64,
    /// A ring's `sqeTail` after its last publish, stored before the ring's own word. One aligned word with the next, so
    /// that both change together.
    pub journal_sq: u32,
    /// Its `cqeHead`, likewise.
    pub journal_cq: u32,
    /// Bytes of the file that were mapped at registration.
    pub len: u64,
    /// Stable number: the inode number in `iovs` is made from it.
    pub number: u32,
    /// Bytes of the name in use.
    pub name_len: u32,
    /// Bytes of the target in use.
    pub target_len: u32,
    /// The name in `3fs-virt/iovs`.
    pub name: [u8; 256],
    /// The link's target.
    pub target: [u8; 512],
    /// Zero.
    pub spare: [u32; 19],
}

const _: () = assert!(offset_of!(ObjectRec, journal_sq).is_multiple_of(8));

/// A setting of `set-conf` that is not at its default.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfRec {
    /// 1 for a user's, 2 for the session's.
    pub tag: u32,
    /// The user, for a user's.
    pub uid: u32,
    /// Bytes of the key in use.
    pub key_len: u32,
    /// Bytes of the value in use.
    pub value_len: u32,
    /// The key.
    pub key: [u8; 72],
    /// The value.
    pub value: [u8; 40],
    /// Zero.
    pub spare: [u32; 4],
}

/// What became of a request, noted before its reply is written.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReplyRec {
    /// 0 for none, 1: about to be executed, 2: executed, 3: held by a worker that executes nothing.
    pub tag: u32,
    /// The FUSE opcode.
    pub opcode: u32,
    /// The request's `unique`.
    pub unique: u64,
    /// The node that the reply names, for those that name one.
    pub node: u64,
    /// The file handle that the reply names.
    pub fh: u64,
    /// To tell a done one from one that is to do: inode of what a rename moves, length of what is appended to.
    pub ino: u64,
    /// When it was begun, `CLOCK_REALTIME_COARSE` in ns.
    pub begun: u64,
    /// How the file handle was opened: `FOPEN_*` flags, and the backing id in the high half.
    pub opened: u64,
    /// 0 or the errno it was answered with.
    pub errno: u32,
    /// Zero.
    pub spare: [u32; 9],
}
