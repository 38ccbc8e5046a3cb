//! The file system without a mount: requests as the kernel would make them, on a directory of this machine.
//!
//! They need root, as the daemon does (file handles, other users' files), and do nothing without.

mod append;
mod files;
mod folders;
mod names;
mod rings;
mod streams;
mod takeover;

use super::{FdCache, Fs, Keeping, Opened};
use crate::fuse::{Channel, Notifier};
use crate::mounts::Mounts;
use crate::state::SessionState;
use crate::state::records::HeaderRec;
use crate::types::{Caller, Entry, NodeId, Owner};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const USER: Caller = Caller { uid: 1234, gid: 5678, pid: 1 };
const TGID: u32 = 77;

/// Processes with rings, and what they see: the whole mount, the same read-only, a part of it.
const OWNERS: [(Owner, &str); 4] = [
    (process(1), "1 0 0:0 / /data rw - fuse.hf3fs s rw"),
    (process(9), "1 0 0:0 / /data rw - fuse.hf3fs s rw"),
    (process(READER), "1 0 0:0 / /data ro - fuse.hf3fs s rw"),
    (process(IN_PART), "1 0 0:0 /part /data rw - fuse.hf3fs s rw"),
];
const READER: u32 = 11;
const IN_PART: u32 = 12;

const fn process(tgid: u32) -> Owner {
    Owner { uid: 0, gid: 0, tgid, start: 1 }
}

const RDONLY: u32 = libc::O_RDONLY as u32;
const RDWR: u32 = libc::O_RDWR as u32;

/// A served directory, and the pipe that notifications to the kernel go to.
struct Bed {
    dir: tempfile::TempDir,
    state: Arc<SessionState>,
    fds: Arc<FdCache>,
    notes: OwnedFd,
    fs: Fs,
}

impl Bed {
    fn new() -> Bed {
        Bed::on(std::env::temp_dir(), 64)
    }

    fn on(place: PathBuf, cached_fds: usize) -> Bed {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir_in(place).unwrap();
        let state = Arc::new(SessionState::anonymous().unwrap());
        let fds = FdCache::new(cached_fds);
        let (fs, notes) = serve(&dir, &state, &fds, false);
        Bed { dir, state, fds, notes, fs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make(&self, name: &str) -> (Entry, Opened) {
        self.fs.create(NodeId::ROOT, &c(name), RDWR, 0o644, 0, &ROOT, TGID).unwrap()
    }

    /// Dies and comes back with nothing but the state.
    fn successor(self) -> Bed {
        let Bed { dir, state, fds, notes, fs } = self;
        drop((fs, notes));
        let (fs, notes) = serve(&dir, &state, &fds, false);
        Bed { dir, state, fds, notes, fs }
    }

    /// Notifications that the kernel would have got by now.
    fn notes(&self) -> usize {
        let mut buf = [0; 4096];
        match rustix::io::read(&self.notes, &mut buf) {
            // A header of 16 bytes and a body of 24.
            Ok(n) => n / 40,
            Err(_) => 0,
        }
    }
}

fn serve(
    dir: &tempfile::TempDir,
    state: &Arc<SessionState>,
    fds: &Arc<FdCache>,
    read_only: bool,
) -> (Fs, OwnedFd) {
    let (notes, kernel) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    let channel = Arc::new(Channel::new(kernel, 0, &HeaderRec::default(), &Notifier::default()).unwrap());
    let backing = File::open(dir.path()).unwrap().into();
    let keeping = Keeping::default();
    let mounts = Arc::new(Mounts::of(&OWNERS));
    (Fs::new(channel, state.clone(), backing, read_only, fds.clone(), keeping, mounts).unwrap(), notes)
}

fn c(name: &str) -> CString {
    CString::new(name).unwrap()
}

/// All names from `offset` on, `room` at a time, with what `between` does between two calls.
fn list(
    bed: &Bed,
    node: NodeId,
    fh: u64,
    plus: bool,
    room: usize,
    mut between: impl FnMut(usize),
) -> Vec<String> {
    let (mut names, mut offset) = (Vec::new(), 0);
    for round in 0.. {
        let mut left = room;
        let mut refused = false;
        bed.fs
            .readdir(node, fh, offset, plus, &mut |entry| {
                if left == 0 {
                    refused = true;
                    return false;
                }
                left -= 1;
                offset = entry.next;
                names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                if let Some(entry) = entry.entry {
                    bed.fs.forget(entry.node, 1);
                }
                true
            })
            .unwrap();
        if !refused {
            break;
        }
        between(round);
    }
    names
}

fn lookup(bed: &Bed, name: &CStr) -> Entry {
    bed.fs.lookup(NodeId::ROOT, name).unwrap()
}
