//! Arguments and results of the file operations.

use crate::types::{Attr, Entry};

/// A time that `setattr` is to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Omit,
    /// The time of the call.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

/// What `setattr` is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits (the type is ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Last access.
    pub atime: SetTime,
    /// Last change of data.
    pub mtime: SetTime,
    /// The open file that `ftruncate` was called on.
    pub fh: Option<u64>,
    /// Clear set-id bits because the caller may not keep them (`FATTR_KILL_SUIDGID`).
    pub kill_suidgid: bool,
}

/// An open file or directory, as the kernel must be told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    /// File handle; never 0, never reused.
    pub fh: u64,
    /// The kernel reads and writes the backing file itself, under this id (`FOPEN_PASSTHROUGH`).
    pub backing_id: Option<u32>,
    /// No page cache for this open file (`FOPEN_DIRECT_IO`, with `FOPEN_PARALLEL_DIRECT_WRITES`). Never with `backing_id`.
    pub direct_io: bool,
}

/// One entry of a directory.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// Inode number as `stat` shows it.
    pub ino: u64,
    /// Where the next entry begins: the offset to go on from after this one.
    pub next: u64,
    /// `DT_*`.
    pub kind: u8,
    /// Name, without NUL.
    pub name: &'a [u8],
    /// With `plus`, for all but `.` and `..`: the node, on which one lookup is taken if the entry is accepted.
    pub entry: Option<Entry>,
}

/// What `statfs` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statfs {
    /// Size in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Size of a block.
    pub frsize: u32,
}

/// What `statx` answers beyond [`Attr`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statx {
    /// `STATX_*` that are valid.
    pub mask: u32,
    /// `STATX_ATTR_*` of the file.
    pub attributes: u64,
    /// `STATX_ATTR_*` that the file system knows.
    pub attributes_mask: u64,
    /// The ordinary attributes.
    pub attr: Attr,
    /// Birth, seconds and nanoseconds; valid with `STATX_BTIME`.
    pub btime: (i64, u32),
}
