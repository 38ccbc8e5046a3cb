//! What a tree takes up.

use crate::error::{Doing, Result, shown};
use crate::meter::Meter;
use crate::open;
use crate::walk::{self, Visitor};
use rustix::fs::{FileType, Statx};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of a block of `statx`.
const BLOCK: u128 = 512;

/// Parts that an inode is counted in: one of each of its names.
const PARTS: u128 = 1 << 32;

/// What a tree takes up on its file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    blocks: u128,
    inodes: u128,
}

impl Usage {
    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        rounded(self.blocks * BLOCK)
    }

    /// Inodes.
    pub fn inodes(&self) -> u64 {
        rounded(self.inodes)
    }

    /// Each name of an inode counts as its share of it, so that nothing needs to be remembered of those met before.
    fn add(&mut self, found: &Statx) {
        let share = PARTS / u128::from(if is_directory(found) { 1 } else { found.stx_nlink.max(1) });
        self.inodes += share;
        self.blocks += share * u128::from(found.stx_blocks);
    }
}

fn rounded(parts: u128) -> u64 {
    u64::try_from((parts + PARTS / 2) / PARTS).unwrap_or(u64::MAX)
}

fn is_directory(found: &Statx) -> bool {
    open::kind(found) == FileType::Directory
}

/// Counts into `usage` what is there, its root included. What was counted stands also after an error.
pub fn count(root: impl AsFd, meter: &mut Meter<'_>, usage: &mut Usage) -> Result<()> {
    let root = open::directory(root, c".").doing(|| "opening the tree".into())?;
    let Some(root) = root else { return Ok(()) };
    usage.add(&open::of(&root).doing(|| "looking at the tree".into())?);
    walk::walk(root, &mut Count { meter, usage })
}

struct Count<'m, 'a> {
    meter: &'m mut Meter<'a>,
    usage: &'m mut Usage,
}

impl Visitor for Count<'_, '_> {
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>> {
        let Some(found) = open::stat(dir, name).doing(|| format!("looking at {}", shown(name)))? else {
            return Ok(None);
        };
        self.meter.entry(is_directory(&found))?;
        self.usage.add(&found);
        if !is_directory(&found) {
            return Ok(None);
        }
        open::directory(dir, name).doing(|| format!("opening {}", shown(name)))
    }

    fn leave(&mut self, _dir: &OwnedFd, _depth: usize) -> Result<()> {
        Ok(())
    }
}
