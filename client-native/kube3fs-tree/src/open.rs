//! Opening and looking: one name at a time, relative to an open directory. `None`: it is not there, or not what was
//! wanted, any more; whoever owns the tree may rename and replace what was listed a moment ago.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// What the walks look at of a node.
const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Never above where it starts, never through a link, never onto another mount.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Times that an open is tried that a lease or an interrupted look-up stands in the way of.
const TRIES: u32 = 1000;

/// Opens a directory of `dir`.
pub fn directory(dir: impl AsFd, name: &CStr) -> rustix::io::Result<Option<OwnedFd>> {
    open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a regular file of `dir` for reading. Of anything else nothing happens: a device cannot be opened on these
/// mounts, and of what else may be there the fd is given back.
pub fn file(dir: impl AsFd, name: &CStr) -> rustix::io::Result<Option<(OwnedFd, Statx)>> {
    let Some(fd) = open(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)? else {
        return Ok(None);
    };
    let found = of(&fd)?;
    Ok((kind(&found) == FileType::RegularFile).then_some((fd, found)))
}

/// An fd that only names the node `name` of `dir`, which may be a link.
pub fn node(dir: impl AsFd, name: &CStr) -> rustix::io::Result<Option<(OwnedFd, Statx)>> {
    let Some(fd) = open(dir, name, OFlags::PATH)? else { return Ok(None) };
    let found = of(&fd)?;
    Ok(Some((fd, found)))
}

/// What `name` in `dir` is.
pub fn stat(dir: impl AsFd, name: &CStr) -> rustix::io::Result<Option<Statx>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    gone(rustix::fs::statx(dir, name, flags, MASK))
}

/// What the node behind `fd` is.
pub fn of(fd: impl AsFd) -> rustix::io::Result<Statx> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, MASK)
}

/// The type of a node.
pub fn kind(found: &Statx) -> FileType {
    FileType::from_raw_mode(found.stx_mode.into())
}

/// `None` for what is not there: removed, renamed, or replaced by something of another type.
fn gone<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::STALE) => {
            Ok(None)
        }
        Err(errno) => Err(errno),
    }
}

fn open(dir: impl AsFd, name: &CStr, flags: OFlags) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    gone(retried(|| rustix::fs::openat2(&dir, name, flags, Mode::empty(), BENEATH)))
}

/// `EAGAIN`: somebody renamed a directory meanwhile, or usrbiod has a lease on the file, which the try breaks.
fn retried<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 1..TRIES {
        match call() {
            Err(Errno::AGAIN) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
    call()
}
