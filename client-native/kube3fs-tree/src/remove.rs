//! Removes what is in a directory, at any depth.
//!
//! It never goes deeper than one directory: what is further down is moved up to the top first. So each directory is
//! visited once, nothing is remembered, and the kernel holds no chain of directories for us. Only where there is no room
//! for a name at the top does it go down, until it has made some.

use crate::error::{Doing, Failure, Result, shown};
use crate::listing::Listing;
use crate::meter::Meter;
use crate::open;
use crate::place::DEEPEST;
use rustix::fs::{AtFlags, FileType, RenameFlags};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

/// Empties `root`, which stays. What cannot be removed stays too, and is the error, when all else is gone.
pub fn empty(root: impl AsFd, meter: &mut Meter<'_>) -> Result<()> {
    let top = open::directory(root, c".").doing(|| "opening the tree".into())?;
    let Some(top) = top else { return Ok(()) };
    let mut remover = Remover { top: &top, meter, moved: seed(), failed: None };
    let mut listing = Listing::default();
    loop {
        let before = remover.meter.tally;
        remover.failed = None;
        while let Some(entry) = listing.next(&top).doing(|| "listing a directory".into())? {
            if !remover.gone(&top, &entry.name, entry.is_directory)? {
                remover.clear(&entry.name)?;
            }
        }
        // Names may have come meanwhile, ours and others'.
        listing.rewind();
        if remover.meter.tally == before {
            return remover.failed.map_or(Ok(()), Err);
        }
    }
}

/// Names of what is moved up: not those of whoever filled the tree, if a guess can do that.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("kube3fs-tree")
}

struct Remover<'m, 'a> {
    top: &'m OwnedFd,
    meter: &'m mut Meter<'a>,
    moved: u64,
    /// The first trouble since the top was listed.
    failed: Option<Failure>,
}

impl Remover<'_, '_> {
    /// Removes an entry of `dir`. False: it is a directory with something in it, or cannot be removed.
    fn gone(&mut self, dir: &OwnedFd, name: &CStr, is_directory: bool) -> Result<bool> {
        let remove = |flags| rustix::fs::unlinkat(dir, name, flags);
        let mut removed = Err(Errno::ISDIR);
        if !is_directory {
            removed = remove(AtFlags::empty());
        }
        if matches!(removed, Err(Errno::ISDIR | Errno::PERM)) {
            removed = match remove(AtFlags::REMOVEDIR) {
                Err(Errno::NOTDIR) if is_directory => remove(AtFlags::empty()),
                Err(Errno::NOTDIR) => removed,
                other => other,
            };
        }
        match removed {
            Ok(()) => self.meter.entry(false)?,
            Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(false),
            Err(errno) => {
                self.fail(errno, format!("removing {}", shown(name)));
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Empties and removes the directory `name` of the top. Where nothing can be moved up it goes on below.
    fn clear(&mut self, name: &CStr) -> Result<()> {
        let (mut above, mut dir, mut name) = (None, self.opened(self.top, name)?, name.to_owned());
        for _ in 0..DEEPEST {
            let Some(here) = dir.take() else { return Ok(()) };
            let Some(below) = self.clear_out(&here)? else { break };
            dir = self.opened(&here, &below)?;
            above = Some(here);
            name = below;
        }
        self.gone(above.as_ref().unwrap_or(self.top), &name, true)?;
        Ok(())
    }

    /// Removes what is in `dir`, or moves it up. Returns a directory for which there is no room above.
    fn clear_out(&mut self, dir: &OwnedFd) -> Result<Option<CString>> {
        let mut stuck = None;
        let mut listing = Listing::default();
        while let Some(entry) = listing.next(dir).doing(|| "listing a directory".into())? {
            if !self.gone(dir, &entry.name, entry.is_directory)? && !self.moved_up(dir, &entry.name)? {
                stuck = Some(entry.name);
            }
        }
        Ok(stuck)
    }

    /// Moves a directory up to the top. False: there is no room.
    fn moved_up(&mut self, dir: &OwnedFd, name: &CStr) -> Result<bool> {
        // A file that cannot be removed needs no place at the top.
        let Some(found) = open::stat(dir, name).doing(|| format!("looking at {}", shown(name)))? else {
            return Ok(true);
        };
        if open::kind(&found) != FileType::Directory {
            return Ok(true);
        }
        loop {
            self.moved = self.moved.wrapping_add(1);
            let up = format!("{:016x}", self.moved);
            match rustix::fs::renameat_with(dir, name, self.top, &up, RenameFlags::NOREPLACE) {
                Ok(()) => self.meter.entry(true)?,
                Err(Errno::EXIST) => continue,
                Err(Errno::NOENT) => {}
                Err(Errno::NOSPC | Errno::DQUOT | Errno::MLINK) => return Ok(false),
                Err(errno) => self.fail(errno, format!("moving {} up", shown(name))),
            }
            return Ok(true);
        }
    }

    fn opened(&self, dir: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>> {
        open::directory(dir, name).doing(|| format!("opening {}", shown(name)))
    }

    fn fail(&mut self, errno: Errno, doing: String) {
        self.failed.get_or_insert(Failure { errno, doing });
    }
}
