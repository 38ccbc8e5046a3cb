//! ioctl numbers and argument structs of the 3FS mount (type byte `'h'`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What `GET_MAGIC_NUM` answers (`HF3FS_SUPER_MAGIC`).
pub const SUPER_MAGIC: u32 = 0x8f3f_5fff;
/// What `GET_IOCTL_VERSION` answers.
pub const IOCTL_VERSION: u32 = 1;
/// Most ranges in one `PUNCH_HOLE`.
pub const PUNCH_HOLE_MAX: usize = 1000;

/// `char[32]` out: the cluster's id.
pub const GET_MOUNT_NAME: u32 = 0x8020_6800;
/// `u32` out: length of the mount point's path.
pub const GET_PATH_OFFSET: u32 = 0x8004_6801;
/// `u32` out: [`SUPER_MAGIC`].
pub const GET_MAGIC_NUM: u32 = 0x8004_6802;
/// `u32` out: [`IOCTL_VERSION`].
pub const GET_IOCTL_VERSION: u32 = 0x8004_6803;
/// Removes the tree that the fd names.
pub const RECURSIVE_RM: u32 = 0x8004_680a;
/// Flushes, and makes length and attributes exact.
pub const FSYNC: u32 = 0x8004_680b;
/// [`HardlinkArg`] in.
pub const HARDLINK: u32 = 0x4108_680c;
/// [`PunchHoleArg`] in.
pub const PUNCH_HOLE: u32 = 0x7e90_680d;
/// [`MoveArg`] in.
pub const MOVE: u32 = 0x4218_680e;
/// [`RemoveArg`] in.
pub const REMOVE: u32 = 0x4110_680f;
/// [`RegisterArg`] in, on `3fs-virt/iovs`: as the link `name` to `target` there, for mounts that take no link since they are
/// read-only. Ours; 3FS has no such call.
pub const REGISTER: u32 = 0x4200_6820;
/// [`UnregisterArg`] in, on `3fs-virt/iovs`: as the removal of the link `name` there. Ours.
pub const UNREGISTER: u32 = 0x4100_6821;

/// Links the fd's file as `parent`/`name`.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HardlinkArg {
    /// Inode of the new link's directory.
    pub parent: u64,
    /// NUL-terminated.
    pub name: [u8; 255],
    /// Tail padding.
    pub pad: u8,
}

/// Removes the byte ranges `start[i]..end[i]`, `i < n`, of the fd's file.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PunchHoleArg {
    /// Ranges in use, at most [`PUNCH_HOLE_MAX`].
    pub n: i32,
    /// Padding.
    pub pad: u32,
    /// Ignored.
    pub flags: u64,
    /// First byte of each range.
    pub start: [u64; PUNCH_HOLE_MAX],
    /// First byte after each range.
    pub end: [u64; PUNCH_HOLE_MAX],
}

/// Renames `src_parent/src_name`; the fd must be `src_parent`.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MoveArg {
    /// Inode of the source's directory.
    pub src_parent: u64,
    /// NUL-terminated.
    pub src_name: [u8; 256],
    /// Inode of the target's directory.
    pub dst_parent: u64,
    /// NUL-terminated.
    pub dst_name: [u8; 256],
    /// Non-zero: the target is the trash.
    pub to_trash: u8,
    /// Tail padding.
    pub pad: [u8; 7],
}

/// Removes `parent/name`; the fd must be `parent`.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RemoveArg {
    /// Inode of the directory.
    pub parent: u64,
    /// NUL-terminated.
    pub name: [u8; 256],
    /// Non-zero: with all below it.
    pub recursive: u8,
    /// Tail padding.
    pub pad: [u8; 7],
}

/// Registers shared memory.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterArg {
    /// As the link's name would be, NUL-terminated.
    pub name: [u8; 256],
    /// As its target would be, NUL-terminated.
    pub target: [u8; 256],
}

/// Ends a registration.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnregisterArg {
    /// The name, NUL-terminated.
    pub name: [u8; 256],
}

const _: () = assert!(size_of::<RegisterArg>() == 512 && size_of::<UnregisterArg>() == 256);
const _: () = assert!(size_of::<HardlinkArg>() == 264 && size_of::<PunchHoleArg>() == 16016);
const _: () = assert!(size_of::<MoveArg>() == 536 && size_of::<RemoveArg>() == 272);
