//! Lets a group read and write all of a tree.

use crate::error::{Doing, Result, shown};
use crate::meter::Meter;
use crate::walk::{self, Visitor};
use crate::{open, sys};
use rustix::fs::{AtFlags, FileType, Gid, Statx};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

const DIRECTORY_BITS: u32 = 0o2070;
const FILE_BITS: u32 = 0o060;
const SET_ID_BITS: u32 = 0o6000;

/// Hands the tree to `group`. If its root is the group's already, that was done before: then only what belongs to another
/// group by now is handed over, and what the group's own members keep to themselves stays theirs. The root is last: a
/// walk that was cut off starts again.
pub fn give(root: impl AsFd, group: u32, meter: &mut Meter<'_>) -> Result<()> {
    let root = open::directory(root, c".").doing(|| "opening the tree".into())?;
    let Some(root) = root else { return Ok(()) };
    let found = open::of(&root).doing(|| "looking at the tree".into())?;
    let again = found.stx_gid == group && u32::from(found.stx_mode) & DIRECTORY_BITS == DIRECTORY_BITS;
    walk::walk(root, &mut Give { group, again, meter })
}

struct Give<'m, 'a> {
    group: u32,
    again: bool,
    meter: &'m mut Meter<'a>,
}

impl Give<'_, '_> {
    fn is_done(&self, found: &Statx) -> bool {
        self.again && found.stx_gid == self.group
    }

    /// The bits come first, so that whoever is cut off between the two does both again.
    fn hand_over(&self, fd: &OwnedFd, found: &Statx) -> rustix::io::Result<()> {
        let (mode, kind) = (u32::from(found.stx_mode) & 0o7777, open::kind(found));
        let wanted = match kind {
            FileType::Symlink => mode,
            FileType::Directory => mode | DIRECTORY_BITS,
            _ => mode | FILE_BITS,
        };
        if wanted != mode {
            sys::chmod(fd, wanted)?;
        }
        if found.stx_gid != self.group {
            rustix::fs::chownat(fd, c"", None, Some(Gid::from_raw(self.group)), AtFlags::EMPTY_PATH)?;
            // The kernel takes these bits away with the old group.
            if kind == FileType::RegularFile && wanted & SET_ID_BITS != 0 {
                sys::chmod(fd, wanted)?;
            }
        }
        Ok(())
    }
}

impl Visitor for Give<'_, '_> {
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>> {
        let looking = || format!("looking at {}", shown(name));
        let Some(found) = open::stat(dir, name).doing(looking)? else { return Ok(None) };
        let is_directory = open::kind(&found) == FileType::Directory;
        self.meter.entry(is_directory)?;
        if is_directory {
            return open::directory(dir, name).doing(|| format!("opening {}", shown(name)));
        }
        if !self.is_done(&found)
            && let Some((fd, found)) = open::node(dir, name).doing(looking)?
            && !self.is_done(&found)
            && open::kind(&found) != FileType::Directory
        {
            self.hand_over(&fd, &found).doing(|| format!("handing over {}", shown(name)))?;
        }
        Ok(None)
    }

    fn leave(&mut self, dir: &OwnedFd, _depth: usize) -> Result<()> {
        let found = open::of(dir).doing(|| "looking at a directory".into())?;
        if self.is_done(&found) {
            return Ok(());
        }
        self.hand_over(dir, &found).doing(|| "handing over a directory".into())
    }
}
