//! Which copy an inode with several names has: as names in a directory of the copy itself, while it is made. So memory
//! does not grow with the number of links.

use crate::error::{Doing, Failure, Result, shown};
use crate::meter::Meter;
use crate::{open, remove};
use rustix::fs::{AtFlags, Mode, RenameFlags, Statx};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;

/// See the module.
pub struct Links {
    folder: OwnedFd,
    name: CString,
}

impl Links {
    /// Makes the directory in `target`, under a name that nobody will have chosen.
    pub fn new(target: &OwnedFd) -> Result<Self> {
        let name = format!(".kube3fs-links-{:016x}", RandomState::new().hash_one("kube3fs-tree"));
        let name = CString::new(name).unwrap_or_default();
        rustix::fs::mkdirat(target, &name, Mode::RWXU).doing(|| format!("making {}", shown(&name)))?;
        let opened = open::directory(target, &name).doing(|| format!("opening {}", shown(&name)))?;
        let folder = opened
            .ok_or_else(|| Failure { errno: Errno::NOENT, doing: format!("making {}", shown(&name)) })?;
        Ok(Self { folder, name })
    }

    /// Makes `name` in `dir` one more name of the copy of `found`, if that has one.
    pub fn made(&self, found: &Statx, dir: &OwnedFd, name: &CStr) -> Result<bool> {
        let first = key(found);
        match rustix::fs::linkat(&self.folder, &first, dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            // All names are taken, ours being one of them.
            Err(Errno::MLINK) => {
                let flags = RenameFlags::NOREPLACE;
                let moved = rustix::fs::renameat_with(&self.folder, &first, dir, name, flags);
                moved.doing(|| format!("linking {}", shown(name))).map(|()| true)
            }
            Err(errno) => Err(errno).doing(|| format!("linking {}", shown(name))),
        }
    }

    /// Remembers `name` in `dir` as the copy of `found`.
    pub fn keep(&self, found: &Statx, dir: &OwnedFd, name: &CStr) -> Result<()> {
        match rustix::fs::linkat(dir, name, &self.folder, key(found), AtFlags::empty()) {
            // What it was is gone, or of a kind that is not copied.
            Ok(()) | Err(Errno::EXIST | Errno::NOENT | Errno::MLINK) => Ok(()),
            Err(errno) => Err(errno).doing(|| format!("linking {}", shown(name))),
        }
    }

    /// Leaves nothing of itself in `target`.
    pub fn remove(self, target: &OwnedFd, meter: &mut Meter<'_>) -> Result<()> {
        let before = meter.tally;
        meter.bounds.most.entries = u64::MAX;
        remove::empty(&self.folder, meter)?;
        meter.tally = before;
        rustix::fs::unlinkat(target, &self.name, AtFlags::REMOVEDIR)
            .doing(|| format!("removing {}", shown(&self.name)))
    }
}

/// An inode, not to be taken for a later one of the same number.
fn key(found: &Statx) -> String {
    let (inode, born) = (found.stx_ino, found.stx_btime);
    format!("{inode:x}-{:x}.{:x}", born.tv_sec, born.tv_nsec)
}
