//! Copies a tree, with owners, modes, times, extended attributes, holes and hard links, sharing blocks where the file
//! system can.
//!
//! The tree may be in use: a copy of it is what a backup program would see, not one moment. What goes or comes meanwhile
//! may be missing; each file ends where it ended when it was opened. Sockets and FIFOs are copied as names. Devices are
//! not, for they are the machine's and not the tree's, but for the marks that overlay file systems leave (0:0).

mod attributes;
mod data;
mod links;

use crate::error::{Doing, Failure, Result, shown};
use crate::meter::{Bounds, Meter, Tally};
use crate::place::Place;
use crate::walk::{self, Visitor};
use crate::{count, open};
use attributes::Attributes;
use links::Links;
use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// What a copy may come to over and above twice what was counted before it: then others write faster than we copy.
const SOME: Tally = Tally { entries: 1 << 16, directories: 1 << 16, bytes: 1 << 30 };

/// Times that a name is looked at that is something else each time.
const TRIES: u32 = 8;

/// Copies what is in `source` into `target`, an empty directory, and gives it the same attributes.
pub fn copy(source: impl AsFd, target: impl AsFd, meter: &mut Meter<'_>) -> Result<()> {
    let mut usage = count::Usage::default();
    count::count(&source, meter, &mut usage)?;
    let counted = Tally { bytes: usage.bytes(), ..meter.tally };
    meter.total = Some(counted);
    meter.tally = Tally::default();
    meter.bounds = Bounds {
        most: Tally {
            entries: counted.entries.saturating_mul(2).saturating_add(SOME.entries),
            directories: counted.directories.saturating_mul(2).saturating_add(SOME.directories),
            bytes: counted.bytes.saturating_mul(2).saturating_add(SOME.bytes),
        },
        ..meter.bounds
    };
    let source = open::directory(source, c".").doing(|| "opening the source".into())?;
    let target = open::directory(target, c".").doing(|| "opening the target".into())?;
    let (Some(source), Some(target)) = (source, target) else {
        return Err(Failure { errno: Errno::NOENT, doing: "opening source and target".into() });
    };
    let root = open::of(&source).doing(|| "looking at the source".into())?;
    let links = Links::new(&target)?;
    let mut copier =
        Copy { target: Place::new(target), entered: vec![Attributes::of(&root)], links: Some(links), meter };
    walk::walk(source, &mut copier)
}

struct Copy<'m, 'a> {
    target: Place,
    /// What the directories of the way looked like when they were entered, should they be lost.
    entered: Vec<Attributes>,
    links: Option<Links>,
    meter: &'m mut Meter<'a>,
}

/// What came of one name.
enum Done {
    /// It is copied, is there already, or is gone.
    Yes,
    /// It has become something else meanwhile.
    Changed,
    /// It is a directory, which is here.
    Into(OwnedFd),
}

impl Copy<'_, '_> {
    fn one(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Done> {
        let found = open::stat(dir, name).doing(|| format!("looking at {}", shown(name)))?;
        let Some(found) = found else { return Ok(Done::Yes) };
        if open::kind(&found) == FileType::Directory {
            return self.directory(dir, name);
        }
        if found.stx_nlink > 1 && self.links()?.made(&found, self.target.here(), name)? {
            return Ok(Done::Yes);
        }
        match open::kind(&found) {
            FileType::RegularFile => self.file(dir, name),
            FileType::Symlink => self.symlink(dir, name, &found),
            FileType::Fifo | FileType::Socket => self.special(dir, name, &found),
            FileType::CharacterDevice if (found.stx_rdev_major, found.stx_rdev_minor) == (0, 0) => {
                self.special(dir, name, &found)
            }
            _ => Ok(Done::Yes),
        }
    }

    fn links(&self) -> Result<&Links> {
        self.links
            .as_ref()
            .ok_or_else(|| Failure { errno: Errno::STALE, doing: "going on behind the end".into() })
    }

    /// Remembers the copy `name` of an inode that has more names.
    fn keep(&self, found: &Statx, name: &CStr) -> Result<()> {
        if found.stx_nlink > 1 { self.links()?.keep(found, self.target.here(), name) } else { Ok(()) }
    }

    fn directory(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Done> {
        let opened = open::directory(dir, name).doing(|| format!("opening {}", shown(name)))?;
        let Some(source) = opened else { return Ok(Done::Changed) };
        let found = open::of(&source).doing(|| format!("looking at {}", shown(name)))?;
        let here = self.target.here();
        if !is_new(rustix::fs::mkdirat(here, name, Mode::RWXU), name)? {
            return Ok(Done::Yes);
        }
        let target = open::directory(here, name).doing(|| format!("opening the copy of {}", shown(name)))?;
        let target = target
            .ok_or_else(|| Failure { errno: Errno::NOENT, doing: format!("making {}", shown(name)) })?;
        self.target.down(name, target)?;
        self.entered.push(Attributes::of(&found));
        Ok(Done::Into(source))
    }

    fn file(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Done> {
        let opened = open::file(dir, name).doing(|| format!("opening {}", shown(name)))?;
        let Some((source, found)) = opened else { return Ok(Done::Changed) };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(self.target.here(), name, flags, Mode::RUSR | Mode::WUSR);
        let target = match made {
            Err(Errno::EXIST) => return Ok(Done::Yes),
            other => other.doing(|| format!("making {}", shown(name)))?,
        };
        data::copy(&source, &target, &found, self.meter, &|| format!("copying {}", shown(name)))?;
        attributes::copy(&source, &target).doing(|| format!("copying the attributes of {}", shown(name)))?;
        self.keep(&found, name)?;
        Ok(Done::Yes)
    }

    fn symlink(&mut self, dir: &OwnedFd, name: &CStr, found: &Statx) -> Result<Done> {
        let target = match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Err(Errno::INVAL | Errno::NOENT) => return Ok(Done::Changed),
            other => other.doing(|| format!("reading the link {}", shown(name)))?,
        };
        if is_new(rustix::fs::symlinkat(&target, self.target.here(), name), name)? {
            self.named(dir, name, found)?;
        }
        Ok(Done::Yes)
    }

    fn special(&mut self, dir: &OwnedFd, name: &CStr, found: &Statx) -> Result<Done> {
        let made = rustix::fs::mknodat(self.target.here(), name, open::kind(found), Mode::RUSR, 0);
        if is_new(made, name)? {
            self.named(dir, name, found)?;
        }
        Ok(Done::Yes)
    }

    /// Finishes the copy of what is no file, unless that was another node than the one that was `found`.
    fn named(&self, dir: &OwnedFd, name: &CStr, found: &Statx) -> Result<()> {
        let given = Attributes::of(found).give_to_name(self.target.here(), name);
        given.doing(|| format!("copying the attributes of {}", shown(name)))?;
        let still = open::stat(dir, name).doing(|| format!("looking at {}", shown(name)))?;
        if still.is_some_and(|now| now.stx_ino == found.stx_ino) { self.keep(found, name) } else { Ok(()) }
    }

    fn up(&mut self) -> Result<()> {
        if self.target.up()? > 1 {
            return Err(Failure { errno: Errno::STALE, doing: "going up in the copy".into() });
        }
        Ok(())
    }
}

/// False: there is one already, for a name may be listed twice while others rename.
fn is_new(made: rustix::io::Result<()>, name: &CStr) -> Result<bool> {
    match made {
        Err(Errno::EXIST) => Ok(false),
        other => other.doing(|| format!("making {}", shown(name))).map(|()| true),
    }
}

impl Visitor for Copy<'_, '_> {
    fn entry(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>> {
        for _ in 0..TRIES {
            let done = self.one(dir, name)?;
            self.meter.entry(matches!(done, Done::Into(_)))?;
            match done {
                Done::Yes => return Ok(None),
                Done::Into(below) => return Ok(Some(below)),
                Done::Changed => {}
            }
        }
        Ok(None)
    }

    fn leave(&mut self, dir: &OwnedFd, depth: usize) -> Result<()> {
        if depth == 0
            && let Some(links) = self.links.take()
        {
            links.remove(self.target.here(), self.meter)?;
        }
        self.entered.pop();
        attributes::copy(dir, self.target.here()).doing(|| "copying the attributes of a directory".into())?;
        self.up()
    }

    fn lost(&mut self, levels: usize) -> Result<()> {
        for _ in 0..levels {
            if let Some(entered) = self.entered.pop() {
                entered.give(self.target.here()).doing(|| "giving a directory its attributes".into())?;
            }
            self.up()?;
        }
        Ok(())
    }
}
