//! Where a walk is in a tree: an open directory, and the way back up.
//!
//! A walk never asks the kernel for `..`, which could be anywhere by now, and takes long far down. It keeps directories of
//! the way open: the upper [`KEPT`], the last one or two [`STRIDE`]s, and one of each stride between. When it comes back
//! to a stride that is not open, it goes down that again by name, from the open directory above, and looks whether each is
//! the directory that it was. Whoever moves directories meanwhile makes it lose some, and it goes on above them.

use crate::error::{Doing, Failure, Result};
use crate::open;
use rustix::fs::{FlockOperation, Statx};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

/// Directories of the way that always stay open.
pub const KEPT: usize = 64;

/// Of the directories further down one of this many stays open, in any case.
const STRIDE: usize = 128;

/// Directories within one another that a walk goes down. An open directory keeps all those above it in the kernel's
/// memory, a good KiB each, and their names are kept here.
pub const DEEPEST: usize = 32 << 10;

/// Open directories at most: for the limit of a process.
pub const MOST_OPEN: usize = KEPT + 2 * STRIDE + DEEPEST / STRIDE;

/// From this depth on walks of all processes take turns, see [`take_turns`].
const DEEP: usize = 1 << 10;

static TURNS: OnceLock<OwnedFd> = OnceLock::new();

/// Has walks that go deep wait for one another by a lock on the file `lock`: together they could hold more of the
/// kernel's memory than there is.
pub fn take_turns(lock: OwnedFd) {
    // Only the first counts, and there is only one.
    let _ = TURNS.set(lock);
}

/// See the module.
#[derive(Debug)]
pub struct Place {
    /// Where it is.
    here: OwnedFd,
    /// The directories above, from the root on.
    above: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    fd: Option<OwnedFd>,
    identity: Identity,
    /// What was gone into from here.
    into: CString,
}

/// Which directory it is.
type Identity = (u32, u32, u64);

impl Place {
    /// At the root of a tree.
    pub fn new(root: OwnedFd) -> Self {
        Self { here: root, above: Vec::new() }
    }

    /// The directory where it is.
    pub fn here(&self) -> &OwnedFd {
        &self.here
    }

    /// Directories above.
    pub fn depth(&self) -> usize {
        self.above.len()
    }

    /// Does the directory where it is stay open, whatever is below it?
    pub fn is_kept(&self) -> bool {
        self.depth() < KEPT
    }

    /// Goes into a directory that was opened here, under this name.
    pub fn down(&mut self, name: &CStr, below: OwnedFd) -> Result<()> {
        let depth = self.depth();
        if depth >= DEEPEST {
            let doing = format!("going down more than {DEEPEST} directories");
            return Err(Failure { errno: Errno::LOOP, doing });
        }
        if depth == DEEP
            && let Some(turns) = TURNS.get()
        {
            rustix::fs::flock(turns, FlockOperation::LockExclusive).doing(|| "waiting for a turn".into())?;
        }
        if depth.is_multiple_of(STRIDE) {
            self.close_stride_before(depth);
        }
        let identity = identity(&open::of(&self.here).doing(|| "looking at a directory".into())?);
        let here = std::mem::replace(&mut self.here, below);
        self.above.push(Level { fd: Some(here), identity, into: name.to_owned() });
        Ok(())
    }

    /// Goes up, and says how many directories: one, or more when those are not where they were. At the root: none.
    pub fn up(&mut self) -> Result<usize> {
        let before = self.depth();
        let Some(level) = self.above.pop() else { return Ok(0) };
        self.here = match level.fd {
            Some(open) => open,
            None => self.go_down_again(level.identity)?,
        };
        Ok(before - self.depth())
    }

    /// Opens the directories of a stride again, the last of which is `wanted`, and leaves the way at the last that is
    /// still there.
    fn go_down_again(&mut self, wanted: Identity) -> Result<OwnedFd> {
        let wanted_depth = self.depth();
        let open_at = self.above.iter().rposition(|level| level.fd.is_some()).unwrap_or(0);
        for depth in open_at..wanted_depth {
            let level = &self.above[depth];
            let found = match &level.fd {
                Some(fd) => open::directory(fd, &level.into).doing(|| "going down again".into())?,
                None => None,
            };
            let expected = self.above.get(depth + 1).map_or(wanted, |below| below.identity);
            let found = match found {
                Some(fd)
                    if identity(&open::of(&fd).doing(|| "looking at a directory".into())?) == expected =>
                {
                    fd
                }
                _ => {
                    self.above.truncate(depth + 1);
                    break;
                }
            };
            match self.above.get_mut(depth + 1) {
                Some(below) => below.fd = Some(found),
                None => return Ok(found),
            }
        }
        let last = self.above.pop().and_then(|level| level.fd);
        last.ok_or_else(|| Failure { errno: Errno::STALE, doing: "going up".into() })
    }

    /// Of the stride before the last one only the first stays open.
    fn close_stride_before(&mut self, depth: usize) {
        let Some(first) = depth.checked_sub(2 * STRIDE) else { return };
        for level in &mut self.above[(first + 1).max(KEPT)..first + STRIDE] {
            level.fd = None;
        }
    }
}

fn identity(found: &Statx) -> Identity {
    (found.stx_dev_major, found.stx_dev_minor, found.stx_ino)
}
