//! ioctls of the mount, and what tests of them need.

use super::served::Served;
use rustix::io::Errno;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// It failed with that error.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: std::io::Result<T>, errno: Errno) {
    let error = result.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{error}");
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// An ioctl with a buffer of the size that its number says.
pub fn call(fd: impl AsFd, cmd: u32, arg: &mut [u8]) -> Result<(), Errno> {
    assert_eq!(arg.len(), (cmd >> 16 & 0x3fff) as usize);
    // SAFETY: the kernel reads or writes at most the bytes that the number says, which `arg` has.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), cmd.into(), arg.as_mut_ptr()) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// An ioctl without an argument, as the Python client makes it.
pub fn call_without(fd: impl AsFd, cmd: u32) -> Result<(), Errno> {
    // SAFETY: the daemon answers no bytes, so that the kernel has nothing to write to address 0.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), cmd.into(), 0) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

/// What the call that just failed left.
pub fn last_errno() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap())
}

/// What an ioctl answers.
pub fn number(fd: impl AsFd, cmd: u32) -> u32 {
    let mut out = [0; 4];
    call(fd, cmd, &mut out).unwrap();
    u32::from_ne_bytes(out)
}

/// A name, NUL-padded.
pub fn field<const N: usize>(name: &str) -> [u8; N] {
    let mut field = [0; N];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}

/// Inode number of what the path names itself.
pub fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// A new file in the mount, and the directories above it.
pub fn make_file(served: &Served, path: &str) -> PathBuf {
    let at = served.at(path);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(&at, "x").unwrap();
    at
}
