//! The kernel's side of the protocol: `linux/fuse.h`, version 7.45. Names are those of the header without `fuse_` and
//! `FUSE_`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version of the protocol.
pub const KERNEL_VERSION: u32 = 7;
/// The newest minor version whose structs are here.
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// The oldest minor version that is served (Linux 5.4).
pub const OLDEST_MINOR_VERSION: u32 = 31;

/// Declares wire structs with the size that the header gives them.
macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident: $size:literal { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs)] // the header's own field names
        pub struct $name { $(pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
        impl Default for $name {
            fn default() -> Self { <$name as zerocopy::FromZeros>::new_zeroed() }
        }
    )*};
}

wire! {
    /// Starts every request. `total_extlen` counts 8-byte units of extensions at the end.
    InHeader: 40 { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16, }
    /// Starts every reply; `error` is 0 or `-errno`, of a notification its code.
    OutHeader: 16 { len: u32, error: i32, unique: u64, }

    /// `INIT`, as it was before 7.36.
    InitIn: 16 { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// What `INIT` adds when it has the flag `INIT_EXT`.
    InitInExt: 48 { flags2: u32, unused: [u32; 11], }
    /// Answer to `INIT`.
    InitOut: 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }

    /// Attributes.
    Attr: 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Answer to what resolves or makes a name.
    EntryOut: 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    /// Answer to `GETATTR` and `SETATTR`.
    AttrOut: 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// `FORGET`.
    ForgetIn: 8 { nlookup: u64, }
    /// `BATCH_FORGET`, before its items.
    BatchForgetIn: 8 { count: u32, dummy: u32, }
    /// One item of `BATCH_FORGET`.
    ForgetOne: 16 { nodeid: u64, nlookup: u64, }
    /// `GETATTR`.
    GetattrIn: 16 { getattr_flags: u32, dummy: u32, fh: u64, }
    /// `SETATTR`.
    SetattrIn: 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `MKNOD`, before the name.
    MknodIn: 16 { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// `MKDIR`, before the name.
    MkdirIn: 8 { mode: u32, umask: u32, }
    /// `RENAME`, before both names.
    RenameIn: 8 { newdir: u64, }
    /// `RENAME2`, before both names.
    Rename2In: 16 { newdir: u64, flags: u32, padding: u32, }
    /// `LINK`, before the new name.
    LinkIn: 8 { oldnodeid: u64, }
    /// `OPEN` and `OPENDIR`.
    OpenIn: 8 { flags: u32, open_flags: u32, }
    /// `CREATE` and `TMPFILE`, before the name.
    CreateIn: 16 { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// Answer to `OPEN` and `OPENDIR`; follows an `EntryOut` for `CREATE`.
    OpenOut: 16 { fh: u64, open_flags: u32, backing_id: i32, }
    /// `RELEASE` and `RELEASEDIR`.
    ReleaseIn: 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// `FLUSH`.
    FlushIn: 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    /// `READ`, `READDIR` and `READDIRPLUS`.
    ReadIn: 40 { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// `WRITE`, before the data.
    WriteIn: 40 { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// Answer to `WRITE` and `COPY_FILE_RANGE`.
    WriteOut: 8 { size: u32, padding: u32, }
    /// Answer to `STATFS`.
    StatfsOut: 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// `FSYNC` and `FSYNCDIR`.
    FsyncIn: 16 { fh: u64, fsync_flags: u32, padding: u32, }
    /// `SETXATTR`, before name and value.
    SetxattrIn: 8 { size: u32, flags: u32, }
    /// What `SETXATTR` adds with `SETXATTR_EXT`.
    SetxattrInExt: 8 { setxattr_flags: u32, padding: u32, }
    /// `GETXATTR` (before the name) and `LISTXATTR`.
    GetxattrIn: 8 { size: u32, padding: u32, }
    /// Answer to `GETXATTR` and `LISTXATTR` of size 0.
    GetxattrOut: 8 { size: u32, padding: u32, }
    /// A lock: the last byte is included.
    FileLock: 24 { start: u64, end: u64, kind: u32, pid: u32, }
    /// `GETLK`, `SETLK` and `SETLKW`.
    LkIn: 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32, }
    /// Answer to `GETLK`.
    LkOut: 24 { lk: FileLock, }
    /// `ACCESS`.
    AccessIn: 8 { mask: u32, padding: u32, }
    /// `INTERRUPT`.
    InterruptIn: 8 { unique: u64, }
    /// `IOCTL`, before its data.
    IoctlIn: 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    /// Answer to `IOCTL`, before its data.
    IoctlOut: 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    /// `FALLOCATE`.
    FallocateIn: 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// `LSEEK`.
    LseekIn: 24 { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// Answer to `LSEEK`.
    LseekOut: 8 { offset: u64, }
    /// `COPY_FILE_RANGE` and `COPY_FILE_RANGE_64`.
    CopyFileRangeIn: 56 {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// Answer to `COPY_FILE_RANGE_64`.
    CopyFileRangeOut: 8 { bytes_copied: u64, }
    /// `STATX`.
    StatxIn: 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    /// A time of `STATX`.
    SxTime: 16 { tv_sec: i64, tv_nsec: u32, reserved: i32, }
    /// Attributes of `STATX`.
    Statx: 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64,
        size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// Answer to `STATX`.
    StatxOut: 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx, }
    /// One item of `READDIR`, before its name.
    Dirent: 24 { ino: u64, off: u64, namelen: u32, kind: u32, }

    /// Body of `NOTIFY_INVAL_INODE`.
    NotifyInvalInodeOut: 24 { ino: u64, off: i64, len: i64, }
    /// Body of `NOTIFY_INVAL_ENTRY`, before the name and its NUL.
    NotifyInvalEntryOut: 16 { parent: u64, namelen: u32, flags: u32, }
    /// Argument of `FUSE_DEV_IOC_BACKING_OPEN`.
    BackingMap: 16 { fd: i32, flags: u32, padding: u64, }
}

/// Opcodes.
#[allow(missing_docs)] // the header's own names
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// Flags of `INIT`, both halves in one word.
#[allow(missing_docs)] // the header's own names
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// Bit of `unique`: the request was read before, by somebody who did not answer (`FUSE_UNIQUE_RESEND`).
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// Codes of notifications.
#[allow(missing_docs)] // the header's own names
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const RESEND: i32 = 7;
    /// In the flags of [`INVAL_ENTRY`]: only its validity ends.
    pub const EXPIRE_ONLY: u32 = 1;
}

/// `OpenOut.open_flags`.
#[allow(missing_docs)] // the header's own names
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// `SetattrIn.valid`.
#[allow(missing_docs)] // the header's own names
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `GetattrIn.getattr_flags`: `fh` is valid.
pub const GETATTR_FH: u32 = 1 << 0;
/// `OpenIn.open_flags`, `CreateIn.open_flags`: drop the set-id bits, the open truncates.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `ReleaseIn.release_flags`: also drop the `flock` locks of the owner.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `WriteIn.write_flags`: pages of a mapping.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `WriteIn.write_flags`: drop the set-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `LkIn.lk_flags`: a `flock` lock, not a POSIX one.
pub const LK_FLOCK: u32 = 1 << 0;
/// `FsyncIn.fsync_flags`: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `SetxattrInExt.setxattr_flags`: drop the set-gid bit, the ACL takes it away from the caller.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `IoctlIn.flags`: a 32-bit caller on a 64-bit kernel.
pub const IOCTL_COMPAT: u32 = 1 << 0;
/// `IoctlIn.flags`: the daemon may ask for other memory of the caller; never granted to ordinary mounts.
pub const IOCTL_UNRESTRICTED: u32 = 1 << 1;

/// Shortest buffer with which `/dev/fuse` may be read (`FUSE_MIN_READ_BUFFER`).
pub const MIN_READ_BUFFER: usize = 8192;

/// Bytes that an item of a directory takes on the wire: names are padded to 8.
pub const fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}
