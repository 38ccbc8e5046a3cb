//! The names in a directory, a chunk at a time, from a place that can be found again.

use rustix::fs::{FileType, RawDir, SeekFrom};
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

/// Bytes that are read at once: about two hundred names.
const CHUNK: usize = 8 << 10;

/// A name that was found.
#[derive(Debug)]
pub struct Entry {
    /// The name, any bytes but `/`.
    pub name: CString,
    /// Whether it was a directory when it was listed, as far as the file system says so.
    pub is_directory: bool,
    /// The inode number that the directory has for it.
    inode: u64,
    /// Where the listing goes on behind it.
    behind: u64,
}

/// How far a directory was read.
#[derive(Debug, Default)]
pub struct Listing {
    read: VecDeque<Entry>,
    /// Where to go on, if `moved`.
    next: u64,
    /// The fd is not where to go on.
    moved: bool,
    /// What was met last. It is not met twice in turn: on ext4 names of one hash share a place, to which `park` returns.
    last: u64,
}

impl Listing {
    /// The next name, or `None` at the end. `dir` is the directory, or a new fd of it after `park`.
    pub fn next(&mut self, dir: impl AsFd) -> rustix::io::Result<Option<Entry>> {
        loop {
            if self.read.is_empty() {
                self.fill(&dir)?;
            }
            let Some(entry) = self.read.pop_front() else { return Ok(None) };
            let again = std::mem::replace(&mut self.moved, false) && entry.inode == self.last;
            if !again {
                self.last = entry.inode;
                return Ok(Some(entry));
            }
        }
    }

    /// Keeps the place but not the names that were read ahead, nor the fd's position.
    pub fn park(&mut self, at: &Entry) {
        self.read = VecDeque::new();
        self.next = at.behind;
        self.moved = true;
    }

    /// Starts again at the first name.
    pub fn rewind(&mut self) {
        *self = Self { moved: true, ..Self::default() };
    }

    fn fill(&mut self, dir: impl AsFd) -> rustix::io::Result<()> {
        if self.moved {
            rustix::fs::seek(&dir, SeekFrom::Start(self.next))?;
        }
        let mut chunk = [const { MaybeUninit::uninit() }; CHUNK];
        let mut raw = RawDir::new(dir, &mut chunk);
        while let Some(entry) = raw.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory itself was removed.
                Err(rustix::io::Errno::NOENT) => break,
                Err(errno) => return Err(errno),
            };
            if !is_dots(entry.file_name()) {
                self.read.push_back(Entry {
                    name: entry.file_name().to_owned(),
                    is_directory: entry.file_type() == FileType::Directory,
                    inode: entry.ino(),
                    behind: entry.next_entry_cookie(),
                });
            }
            if raw.is_buffer_empty() && !self.read.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
