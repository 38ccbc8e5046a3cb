//! A tree from its root down, each directory after what is in it.

use crate::error::{Doing, Result};
use crate::listing::Listing;
use crate::place::Place;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

/// What is done on the way. Directories are given as fds: their names may be others' by now.
pub trait Visitor {
    /// A name in `dir`. Returns the directory that it is, opened, if the walk is to go into it.
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>>;

    /// All of `dir`, which lies `depth` directories below the root, was walked.
    fn leave(&mut self, dir: &OwnedFd, depth: usize) -> Result<()>;

    /// The last `levels` directories were left without an end, as somebody has moved them.
    fn lost(&mut self, _levels: usize) -> Result<()> {
        Ok(())
    }
}

/// Walks the tree below `root`.
pub fn walk(root: OwnedFd, visitor: &mut impl Visitor) -> Result<()> {
    let mut place = Place::new(root);
    let mut above: Vec<Listing> = Vec::new();
    let mut listing = Listing::default();
    loop {
        if let Some(entry) = listing.next(place.here()).doing(|| "listing a directory".into())? {
            if let Some(below) = visitor.entry(place.here(), &entry.name)? {
                if !place.is_kept() {
                    listing.park(&entry);
                }
                place.down(&entry.name, below)?;
                above.push(std::mem::take(&mut listing));
            }
            continue;
        }
        visitor.leave(place.here(), place.depth())?;
        if place.depth() == 0 {
            return Ok(());
        }
        let levels = place.up()?;
        if levels > 1 {
            visitor.lost(levels - 1)?;
        }
        above.truncate(place.depth() + 1);
        listing = above.pop().unwrap_or_default();
    }
}
