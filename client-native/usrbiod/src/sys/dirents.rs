//! Reading a directory as the kernel writes it.

use super::last_errno;
use crate::types::Result;
use std::os::fd::{AsFd, AsRawFd};

/// One record of `getdents64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// Inode number.
    pub ino: u64,
    /// Where the next one begins.
    pub next: u64,
    /// `DT_*`.
    pub kind: u8,
    /// Name, without NUL.
    pub name: &'a [u8],
    /// Bytes of the record.
    pub len: usize,
}

/// Fills `buf` with records of the open directory `dir`; 0 at its end.
pub fn read(dir: impl AsFd, buf: &mut [u8]) -> Result<usize> {
    let dir = dir.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    let rc = unsafe { libc::syscall(libc::SYS_getdents64, dir, buf.as_mut_ptr(), buf.len()) };
    usize::try_from(rc).map_err(|_| last_errno())
}

/// The first record of `bytes`: `d_ino`, `d_off`, `d_reclen`, `d_type`, name with NUL. `None` at the end.
pub fn parse(bytes: &[u8]) -> Option<Dirent<'_>> {
    let word = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = bytes.get(19..len)?.split(|b| *b == 0).next()?;
    Some(Dirent { ino: word(0)?, next: word(8)?, kind: bytes[18], name, len })
}
