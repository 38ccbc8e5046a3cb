//! One request: is it allowed, and what came of it. Everything is judged on a copy; results are as in the contract.

use super::file::{RingFile, Tick};
use super::holes;
use super::job::Ring;
use super::object::{Core, Iov};
use crate::metrics::Rejected;
use crate::types::{Errno, Ino};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use usrbio_wire::{Args, RingFlags};

/// Longer requests do not run in the worker: they would hold up the other rings.
const INLINE_MAX: u64 = 1 << 20;
/// Files that a ring remembers.
const FILES_MAX: usize = 1 << 16;

/// A request that may run.
pub(super) struct Request<'a> {
    pub(super) file: &'a Arc<RingFile>,
    pub(super) iov: &'a Arc<Iov>,
    /// Where in the Iov.
    pub(super) at: u64,
    pub(super) off: u64,
    pub(super) len: u64,
}

/// What became of it.
pub(super) enum Outcome {
    /// Answered.
    Done(Result<u64, Errno>),
    /// The rest has to wait for the disk.
    Start { len: u64, done: u64, direct: bool, background: bool },
}

/// Why a request is answered without I/O.
pub(super) type Refusal = (Errno, Rejected);

/// What a ring looked up, valid for one generation of its session.
#[derive(Default)]
pub(super) struct Caches {
    generation: u64,
    refuse_writes: bool,
    iovs: HashMap<[u8; 16], Arc<Iov>>,
    iov: Option<([u8; 16], Arc<Iov>)>,
    files: HashMap<Ino, Arc<RingFile>>,
    file: Option<(Ino, Arc<RingFile>)>,
}

impl Caches {
    /// Judges a request: writing allowed, file, buffer, in this order.
    pub(super) fn judge(&mut self, core: &Core, ring: &Ring, args: &Args) -> Result<Request<'_>, Refusal> {
        let generation = core.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.renew(core, ring, generation);
        }
        if self.refuse_writes {
            return Err((Errno::ROFS, Rejected::ReadOnly));
        }
        self.find_file(core, ring, args.file_iid)?;
        self.find_iov(core, ring, args.buf_id)?;
        let (Some((_, file)), Some((_, iov))) = (&self.file, &self.iov) else {
            return Err((Errno::IO, Rejected::File)); // both were just set
        };
        let (at, off, len) = (args.buf_off, args.file_off, args.io_len);
        if !inside(at, len, iov.map.len() as u64)
            || crosses_block(at, len, iov.block)
            || !inside(off, len, FILE_MAX)
        {
            return Err((Errno::INVAL, Rejected::Buffer));
        }
        if iov.map.poisoned() {
            return Err((Errno::ACCESS, Rejected::Buffer));
        }
        Ok(Request { file, iov, at, off, len })
    }

    fn renew(&mut self, core: &Core, ring: &Ring, generation: u64) {
        let users = core.read_only_users.read().unwrap_or_else(PoisonError::into_inner);
        self.refuse_writes = !ring.attrs.for_read && (core.read_only || users.contains(&ring.owner.uid));
        self.iovs.clear();
        self.iov = None;
        self.generation = generation;
    }

    fn find_file(&mut self, core: &Core, ring: &Ring, ino: Ino) -> Result<(), Refusal> {
        let usable = |file: &RingFile| !file.backing.closed.load(Ordering::Acquire);
        if self.file.as_ref().is_some_and(|(last, file)| *last == ino && usable(file)) {
            return Ok(());
        }
        if let Some(file) = self.files.get(&ino).filter(|file| usable(file)) {
            self.file = Some((ino, file.clone()));
            return Ok(());
        }
        self.files.remove(&ino);
        let files = core.files().ok_or((Errno::BADF, Rejected::File))?;
        let backing =
            files.ring_file(ino, &ring.owner, !ring.attrs.for_read).map_err(|error| match error {
                Errno::ACCESS | Errno::PERM => (error, Rejected::Permission),
                Errno::ROFS => (error, Rejected::ReadOnly),
                error => (error, Rejected::File),
            })?;
        let file = core.ring_file(ino, backing);
        if self.files.len() >= FILES_MAX {
            self.files.clear();
        }
        self.files.insert(ino, file.clone());
        self.file = Some((ino, file));
        Ok(())
    }

    fn find_iov(&mut self, core: &Core, ring: &Ring, id: [u8; 16]) -> Result<(), Refusal> {
        if self.iov.as_ref().is_some_and(|(last, _)| *last == id) {
            return Ok(());
        }
        if let Some(iov) = self.iovs.get(&id) {
            self.iov = Some((id, iov.clone()));
            return Ok(());
        }
        let iovs = core.iovs.read().unwrap_or_else(PoisonError::into_inner);
        // Somebody else's buffer is answered like none at all.
        let iov = iovs.get(&uuid::Uuid::from_bytes(id)).filter(|iov| may_use(ring, iov)).cloned();
        let iov = iov.ok_or((Errno::INVAL, Rejected::Buffer))?;
        self.iovs.insert(id, iov.clone());
        self.iov = Some((id, iov));
        Ok(())
    }

    /// Lets go of files that nobody has open any more, and of all Iovs if one of them may not be registered any more.
    pub(super) fn drop_closed(&mut self, core: &Core) {
        if core.generation.load(Ordering::Acquire) != self.generation {
            self.iovs.clear();
            self.iov = None;
        }
        self.files.retain(|_, file| !file.backing.closed.load(Ordering::Acquire));
        self.file.take_if(|(_, file)| file.backing.closed.load(Ordering::Acquire));
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        *self = Caches::default();
    }
}

fn may_use(ring: &Ring, iov: &Iov) -> bool {
    ring.owner.uid == iov.owner.uid || ring.owner.uid == 0
}

/// Offsets are signed in the kernel.
const FILE_MAX: u64 = i64::MAX as u64;

/// Is `at..at + len` a range of at least one byte below `end`?
fn inside(at: u64, len: u64, end: u64) -> bool {
    len > 0 && at.checked_add(len).is_some_and(|to| to <= end)
}

fn crosses_block(at: u64, len: u64, block: Option<u64>) -> bool {
    block.is_some_and(|block| at / block != (at + len - 1) / block)
}

/// Reads what is in memory, and says what has to be started for the rest. The result ends at the last data byte in the
/// request; bytes behind it stay as they are.
pub(super) fn read(request: &Request<'_>, flags: RingFlags, now: Tick) -> Outcome {
    let Request { file, iov, at, off, len } = *request;
    let dense = holes::dense_to(&file.backing, off + len);
    let mut want = len;
    if off + len > dense {
        let forbid = flags.contains(RingFlags::FORBID_READ_HOLES);
        match holes::visible(&file.backing.fd, off, len, forbid) {
            Ok(0) => return Outcome::Done(Ok(0)),
            Ok(bytes) => want = bytes,
            Err(error) => return Outcome::Done(Err(error)),
        }
    }
    // The last block of a file is read through the page cache: a direct read would write behind the result.
    let memory = iov.map.address(at, want).map_or(1, |p| p.addr());
    if want == len && file.can_go_direct(memory, off, want) {
        return Outcome::Start { len: want, done: 0, direct: true, background: false };
    }
    let wait = |done, background| Outcome::Start { len: want, done, direct: false, background };
    if want > INLINE_MAX {
        return wait(0, true);
    }
    if off + want <= dense && file.copy_hot(&iov.map, at, off, want, dense, now) {
        return Outcome::Done(Ok(want));
    }
    if file.may_block() {
        return wait(0, false);
    }
    match iov.map.read_at(at, want, &file.backing.fd, off, !file.backing.in_memory) {
        // A file in memory that is shorter now: there is no more to wait for.
        Ok(bytes) if bytes == want || file.backing.in_memory => Outcome::Done(Ok(bytes)),
        Ok(bytes) => wait(bytes, false),
        Err(Errno::AGAIN | Errno::INTR) => wait(0, false),
        Err(Errno::OPNOTSUPP) => {
            file.set_may_block();
            wait(0, false)
        }
        Err(error) => Outcome::Done(Err(error)),
    }
}

/// Writes through the page cache at once (faster than io_uring), or says that it has to be started.
pub(super) fn write(request: &Request<'_>) -> Outcome {
    let Request { file, iov, at, off, len } = *request;
    let memory = iov.map.address(at, len).map_or(1, |p| p.addr());
    let direct = file.can_go_direct(memory, off, len);
    if direct || len > INLINE_MAX {
        return Outcome::Start { len, done: 0, direct, background: !direct };
    }
    let mut done = 0;
    while done < len {
        match iov.map.write_at(at + done, len - done, &file.backing.fd, off + done) {
            Ok(0) => return Outcome::Done(Err(Errno::NODATA)),
            Ok(bytes) => done += bytes,
            Err(Errno::INTR) => {}
            Err(error) => return Outcome::Done(Err(error)),
        }
    }
    Outcome::Done(Ok(len))
}

/// The result word of a completion: what 3FS answers for the condition.
pub(super) fn result(answer: Result<u64, Errno>) -> i64 {
    match answer {
        Ok(bytes) => bytes as i64, // at most the length of an Iov
        Err(error) => -i64::from(wire_errno(error).raw_os_error()),
    }
}

fn wire_errno(error: Errno) -> Errno {
    match error {
        // The client's memory is gone.
        Errno::FAULT => Errno::ACCESS,
        Errno::DQUOT => Errno::NOSPC,
        Errno::INVAL
        | Errno::BADF
        | Errno::ACCESS
        | Errno::NODATA
        | Errno::ROFS
        | Errno::NOSPC
        | Errno::INTR
        | Errno::PERM
        | Errno::FBIG
        | Errno::NOMEM
        | Errno::ISDIR
        | Errno::OPNOTSUPP => error,
        _ => Errno::IO,
    }
}
