//! Structs and offsets of a ring in shared memory, byte for byte as 3FS has them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Inode number as `stat` reports it on the mount: the name of a file in a request.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Default,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Ino(pub u64);

/// Arguments of one request (`IoArgs` of 3FS).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Args {
    /// UUID of the Iov, bytes in text order.
    pub buf_id: [u8; 16],
    /// Where in the Iov, in bytes.
    pub buf_off: u64,
    /// The file.
    pub file_iid: Ino,
    /// Where in the file, in bytes.
    pub file_off: u64,
    /// How much, in bytes.
    pub io_len: u64,
    /// The caller's own; daemons answer with the copy in the [`Sqe`].
    pub userdata: u64,
}

/// Submission-queue entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sqe {
    /// Argument slot of the request.
    pub index: i32,
    /// Unused.
    pub pad: u32,
    /// Comes back in the [`Cqe`].
    pub userdata: u64,
}

/// Completion-queue entry, also the `struct hf3fs_cqe` of the C interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cqe {
    /// Argument slot of the request that this answers.
    pub index: i32,
    /// Never written.
    pub reserved: i32,
    /// Bytes moved, or `-errno`.
    pub result: i64,
    /// From the [`Sqe`].
    pub userdata: u64,
}

/// The four index words at the start of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Next SQ slot that the client fills.
    SqeHead = 0,
    /// SQ slots before it are the client's again; written by the daemon.
    SqeTail = 4,
    /// Next CQ slot that the daemon fills.
    CqeHead = 8,
    /// Next CQE that the client takes.
    CqeTail = 12,
}

/// Ring flags (`HF3FS_IOR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingFlags(pub u64);

impl RingFlags {
    /// `HF3FS_IOR_ALLOW_READ_UNCOMMITTED`: a read may see data that is not committed on every replica.
    pub const ALLOW_READ_UNCOMMITTED: RingFlags = RingFlags(1);
    /// `HF3FS_IOR_FORBID_READ_HOLES`: a hole before data is an error (`ENODATA`), not zeros.
    pub const FORBID_READ_HOLES: RingFlags = RingFlags(2);

    /// Are all bits of `other` set?
    pub fn contains(self, other: RingFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

pub(crate) const INDEX_WORDS_LEN: usize = 16;
pub(crate) const ARGS_LEN: usize = size_of::<Args>();
pub(crate) const CQE_LEN: usize = size_of::<Cqe>();
pub(crate) const SQE_LEN: usize = size_of::<Sqe>();
/// `sizeof(sem_t)` of glibc on 64-bit Linux.
pub(crate) const SEM_LEN: usize = 32;
/// 3FS leaves a page free behind the semaphore; sizes must agree, so do we.
pub(crate) const SLACK_LEN: usize = 4096;

const _: () = assert!(ARGS_LEN == 56 && CQE_LEN == 24 && SQE_LEN == 16);
