//! File handles: names of inodes that outlive fds, renames and this process.

use super::last_errno;
use crate::types::{Errno, Result};
use rustix::fs::OFlags;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `MAX_HANDLE_SZ`.
const ROOM: usize = 128;

/// A file handle, as the kernel made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FileHandle {
    len: u32,
    kind: i32,
    bytes: [u8; ROOM],
}

impl FileHandle {
    /// A handle from its stored parts; `None` when it is too long to be one, or empty.
    pub fn new(kind: i32, bytes: &[u8]) -> Option<FileHandle> {
        let mut handle = FileHandle { len: u32::try_from(bytes.len()).ok()?, kind, bytes: [0; ROOM] };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (!bytes.is_empty()).then_some(handle)
    }

    /// The handle's type.
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// The handle's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..(self.len as usize).min(ROOM)]
    }

    /// The handle of `name` in `dir` (a symbolic link is not followed), or of `dir` itself when `name` is empty. `None`: the
    /// file system has no handles.
    pub fn of(dir: impl AsFd, name: &CStr) -> Result<Option<FileHandle>> {
        let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        let mut handle = FileHandle { len: ROOM as u32, kind: 0, bytes: [0; ROOM] };
        let mut mount = 0;
        // SAFETY: `FileHandle` has the layout of `struct file_handle` with `len` bytes of room after it, which is
        // what `len` tells the kernel; `name` ends with NUL; `mount` is an int.
        let rc = unsafe {
            let handle: *mut FileHandle = &mut handle;
            libc::name_to_handle_at(dir.as_fd().as_raw_fd(), name.as_ptr(), handle.cast(), &mut mount, flags)
        };
        if rc == 0 {
            return Ok(Some(handle));
        }
        match last_errno() {
            Errno::OPNOTSUPP | Errno::OVERFLOW => Ok(None),
            error => Err(error),
        }
    }

    /// Opens the inode, on the mount that `mount` (not an `O_PATH` fd) lies on. `ESTALE`: it is gone.
    pub fn open(&self, mount: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        let mut handle = *self;
        let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
        // SAFETY: the layout is that of `struct file_handle`, `len <= ROOM` bytes follow the two words.
        let fd = unsafe {
            let handle: *mut FileHandle = &mut handle;
            libc::open_by_handle_at(mount.as_fd().as_raw_fd(), handle.cast(), flags)
        };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the kernel just made this fd, nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
