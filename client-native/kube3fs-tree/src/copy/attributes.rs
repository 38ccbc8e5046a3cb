//! Owners, modes, times and extended attributes.

use crate::open;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Statx, StatxTimestamp, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

/// What the node plugin writes at the root of a volume or snapshot. A copy gets its own.
const OURS: &[u8] = b"trusted.kube3fs.";

/// Limits of Linux: bytes of a list of names, and of a value.
const MOST: usize = 64 << 10;

/// What a node looks like, but for its extended attributes.
#[derive(Clone, Debug)]
pub struct Attributes {
    owner: u32,
    group: u32,
    mode: Mode,
    is_symlink: bool,
    times: Timestamps,
}

impl Attributes {
    /// Of what was found.
    pub fn of(found: &Statx) -> Self {
        Self {
            owner: found.stx_uid,
            group: found.stx_gid,
            mode: Mode::from_raw_mode(u32::from(found.stx_mode) & 0o7777),
            is_symlink: open::kind(found) == FileType::Symlink,
            times: Timestamps {
                last_access: time(found.stx_atime),
                last_modification: time(found.stx_mtime),
            },
        }
    }

    /// Gives them to what is open. The mode comes after the owner, a change of which takes bits away.
    pub fn give(&self, to: &OwnedFd) -> Result<()> {
        self.give_owner(to)?;
        rustix::fs::futimens(to, &self.times)
    }

    fn give_owner(&self, to: &OwnedFd) -> Result<()> {
        rustix::fs::fchown(to, Some(Uid::from_raw(self.owner)), Some(Gid::from_raw(self.group)))?;
        rustix::fs::fchmod(to, self.mode)
    }

    /// Gives them to `name` in `dir`, which nobody else can reach, so that it is what we made.
    pub fn give_to_name(&self, dir: &OwnedFd, name: &CStr) -> Result<()> {
        let (owner, group) = (Uid::from_raw(self.owner), Gid::from_raw(self.group));
        rustix::fs::chownat(dir, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        if !self.is_symlink {
            rustix::fs::chmodat(dir, name, self.mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(dir, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Copies all attributes from one open node to another. Times come last: all else changes them.
pub fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let found = Attributes::of(&open::of(from)?);
    found.give_owner(to)?;
    for name in names(from)? {
        if name.to_bytes().starts_with(OURS) {
            continue;
        }
        match get(from, &name).and_then(|value| rustix::fs::fsetxattr(to, &name, &value, XattrFlags::empty()))
        {
            Err(Errno::NODATA) => {} // removed meanwhile
            // Labels and the like, which the machine may give but not take.
            Err(_) if name.to_bytes().starts_with(b"security.") => {}
            other => other?,
        }
    }
    rustix::fs::futimens(to, &found.times)
}

fn names(of: &OwnedFd) -> Result<Vec<CString>> {
    let mut list = [0; 512];
    let list = match rustix::fs::flistxattr(of, &mut list) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => list[..length].to_vec(),
        Err(Errno::RANGE) => {
            let mut list = vec![0; MOST];
            let length = rustix::fs::flistxattr(of, &mut list)?;
            list.truncate(length);
            list
        }
        Err(errno) => return Err(errno),
    };
    Ok(list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|n| CString::new(n).ok())
        .collect())
}

fn get(of: &OwnedFd, name: &CStr) -> Result<Vec<u8>> {
    let mut value = vec![0; MOST];
    let length = rustix::fs::fgetxattr(of, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}

fn time(at: StatxTimestamp) -> Timespec {
    Timespec { tv_sec: at.tv_sec, tv_nsec: at.tv_nsec.into() }
}
