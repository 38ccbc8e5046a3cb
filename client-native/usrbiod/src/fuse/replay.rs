//! What a successor must know of requests that were begun and whose reply was perhaps never written.
//!
//! The kernel gives such requests again, with bit 63 of `unique` set. Doing them twice would be wrong: a second `MKDIR`
//! answers `EEXIST` to a caller whose first and only call succeeded. So each worker notes in a [`ReplyRec`] of its own
//! what it is about to do (tag 1) and what came of it (tag 2), and clears it (tag 3) after the reply is written. Every
//! step is one store of the tag after its fields: a successor sees the step done or not done.

use super::abi::UNIQUE_RESEND;
use super::request::{Op, Request};
use crate::state::SessionState;
use crate::state::records::ReplyRec;
use crate::types::{Errno, Result};
use rustix::time::ClockId;
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use usrbio_wire::ioctl;

const BEGUN: u32 = 1;
const DONE: u32 = 2;
const IDLE: u32 = 3;

/// The records of one session.
pub struct Journal {
    state: Arc<SessionState>,
    /// Records of this process that no worker uses now.
    idle: Mutex<Vec<u32>>,
    /// What a predecessor left, by `unique` without the resend bit.
    left: Mutex<HashMap<u64, (u32, ReplyRec)>>,
    left_len: AtomicUsize,
}

/// What a predecessor noted about a request that has come again.
#[derive(Debug, Clone, Copy)]
pub enum Earlier {
    /// It was begun; whether it was done must be seen from its effects.
    Begun(ReplyRec),
    /// It was done, with this outcome.
    Done(ReplyRec),
}

impl Journal {
    /// The records in `state`, with what a predecessor left there.
    pub fn new(state: Arc<SessionState>) -> Journal {
        let mut left = HashMap::new();
        let mut idle = Vec::new();
        for (index, record) in state.replies.iter() {
            if !matches!(record.tag, BEGUN | DONE) {
                idle.push(index);
                continue;
            }
            // Two of one request: one process noted that it began, its successor what came of it.
            let unique = record.unique & !UNIQUE_RESEND;
            match left.insert(unique, (index, record)) {
                // Two that began it: an append was not there yet when it was begun again.
                Some((other, known))
                    if known.tag == DONE || known.tag == record.tag && newer(&known, &record) =>
                {
                    left.insert(unique, (other, known));
                    state.replies.remove(index);
                }
                Some((other, _)) => state.replies.remove(other),
                None => (),
            }
        }
        let left_len = AtomicUsize::new(left.len());
        Journal { state, idle: Mutex::new(idle), left: Mutex::new(left), left_len }
    }

    fn left(&self) -> MutexGuard<'_, HashMap<u64, (u32, ReplyRec)>> {
        self.left.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What a predecessor noted about a request that has come again. It stays noted until [`Slot::clear`].
    pub fn earlier(&self, request: &Request<'_>) -> Option<Earlier> {
        if !request.is_resent() || self.left_len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let (_, record) = self.left().get(&(request.unique & !UNIQUE_RESEND)).copied()?;
        match record.tag {
            // The kernel counts `unique` up for the life of the mount, so another opcode can only be a damaged record.
            _ if record.opcode != request.opcode => None,
            BEGUN => Some(Earlier::Begun(record)),
            _ => Some(Earlier::Done(record)),
        }
    }

    /// Drops what a predecessor noted about a request.
    fn forget(&self, unique: u64) {
        let mut left = self.left();
        if let Some((index, _)) = left.remove(&(unique & !UNIQUE_RESEND)) {
            self.state.replies.remove(index);
            self.left_len.store(left.len(), Ordering::Relaxed);
        }
    }

    /// A record for a worker, for as long as it serves this session.
    pub fn slot(&self) -> Slot<'_> {
        let idle = self.idle.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let record = ReplyRec { tag: IDLE, ..ReplyRec::default() };
        let index = idle.or_else(|| self.state.replies.insert(&record)).or_else(|| {
            // Replies that were written just before a crash leave records which nobody asks for. The oldest gives way.
            let oldest = self.left().iter().min_by_key(|(_, (_, r))| r.begun).map(|(unique, _)| *unique)?;
            self.forget(oldest);
            self.state.replies.insert(&record)
        });
        Slot { journal: self, index, unique: None }
    }
}

/// The record of one worker. Without one (the table is full) nothing is noted.
pub struct Slot<'a> {
    journal: &'a Journal,
    index: Option<u32>,
    unique: Option<u64>,
}

impl Slot<'_> {
    fn set(&self, offset: usize, value: u64) {
        if let Some(field) = self.index.and_then(|index| self.journal.state.replies.field(index, offset)) {
            field.store(value, Ordering::Relaxed);
        }
    }

    fn set32(&self, offset: usize, value: u32, order: Ordering) {
        if let Some(field) = self.index.and_then(|index| self.journal.state.replies.field32(index, offset)) {
            field.store(value, order);
        }
    }

    fn tag(&self, tag: u32) {
        self.set32(offset_of!(ReplyRec, tag), tag, Ordering::Release);
    }

    /// Notes that `request` is about to be done. `before`: inode number of what a rename moves, or length of what is
    /// appended to.
    pub fn begin(&mut self, request: &Request<'_>, before: u64) {
        self.name(request);
        self.set(offset_of!(ReplyRec, ino), before);
        self.set(offset_of!(ReplyRec, begun), now());
        self.tag(BEGUN);
    }

    /// Is something noted of the request that is being served?
    pub fn has_begun(&self) -> bool {
        self.unique.is_some()
    }

    fn name(&mut self, request: &Request<'_>) {
        self.unique = Some(request.unique);
        self.set32(offset_of!(ReplyRec, opcode), request.opcode, Ordering::Relaxed);
        self.set(offset_of!(ReplyRec, unique), request.unique);
    }

    /// Notes what became of `request`: what a reply from the note needs.
    pub fn done(&mut self, request: &Request<'_>, result: Result<Outcome>) {
        if self.unique.is_none() {
            self.name(request);
            self.set(offset_of!(ReplyRec, begun), 0);
        }
        let errno = result.err().map_or(0, |e| e.raw_os_error() as u32);
        let outcome = result.unwrap_or_default();
        self.set32(offset_of!(ReplyRec, errno), errno, Ordering::Relaxed);
        self.set(offset_of!(ReplyRec, node), outcome.node);
        self.set(offset_of!(ReplyRec, fh), outcome.fh);
        self.set(offset_of!(ReplyRec, opened), outcome.opened);
        self.tag(DONE);
    }

    /// The reply was written: nothing needs to be known of the request any more.
    pub fn clear(&mut self, request: &Request<'_>) {
        if self.unique.take().is_some() {
            self.tag(IDLE);
        }
        if request.is_resent() && self.journal.left_len.load(Ordering::Relaxed) > 0 {
            self.journal.forget(request.unique);
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let Some(index) = self.index else { return };
        if self.unique.is_some() {
            self.tag(IDLE);
        }
        self.journal.idle.lock().unwrap_or_else(|e| e.into_inner()).push(index);
    }
}

/// What a reply names, so that it can be given again without doing the work again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The node, 0 for none.
    pub node: u64,
    /// The file handle, 0 for none.
    pub fh: u64,
    /// `FOPEN_*` flags, and the backing id in the high half; of a write, its bytes.
    pub opened: u64,
}

fn newer(one: &ReplyRec, other: &ReplyRec) -> bool {
    (one.begun, one.ino) > (other.begun, other.ino)
}

/// What a record says: the errno, or what the reply named.
pub fn recorded(record: &ReplyRec) -> Result<Outcome> {
    match record.errno {
        0 => Ok(Outcome { node: record.node, fh: record.fh, opened: record.opened }),
        errno @ 1..4096 => Err(Errno::from_raw_os_error(errno as i32)),
        _ => Err(Errno::IO),
    }
}

/// Must a successor know that this was begun? True for what shows when it is done twice; appends note that themselves,
/// with the length of the file.
pub fn is_journaled(op: &Op<'_>) -> bool {
    match op {
        Op::Symlink { .. }
        | Op::Mknod { .. }
        | Op::Mkdir { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::Link { .. }
        | Op::Open(_)
        | Op::Opendir(_)
        | Op::Create { .. }
        | Op::Tmpfile(_)
        | Op::Setxattr { .. }
        | Op::Removexattr { .. } => true,
        Op::Ioctl { arg, .. } => {
            let named =
                matches!(arg.cmd, ioctl::RECURSIVE_RM | ioctl::HARDLINK | ioctl::MOVE | ioctl::REMOVE);
            named || matches!(arg.cmd, ioctl::REGISTER | ioctl::UNREGISTER)
        }
        _ => false,
    }
}

/// The clock of inode times, in ns.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::abi::op;
    use crate::types::{Caller, NodeId};

    fn request(unique: u64, opcode: u32) -> Request<'static> {
        let caller = Caller { uid: 1, gid: 1, pid: 1 };
        Request { unique, node: NodeId::ROOT, caller, opcode, op: Op::Statfs }
    }

    fn state() -> Arc<SessionState> {
        Arc::new(SessionState::anonymous().unwrap())
    }

    /// As a crash does it: the records stay as they are.
    fn crash(slot: Slot<'_>) {
        std::mem::forget(slot);
    }

    #[test]
    fn a_successor_finds_what_was_begun_and_what_was_done() {
        let state = state();
        let old = Journal::new(state.clone());
        let outcome = Outcome { node: 7, fh: 8, opened: 9 };
        let (mut a, mut b, mut c) = (old.slot(), old.slot(), old.slot());
        a.begin(&request(2, op::RENAME), 44);
        b.begin(&request(4, op::CREATE), 0);
        b.done(&request(4, op::CREATE), Ok(outcome));
        c.begin(&request(6, op::MKDIR), 0);
        c.done(&request(6, op::MKDIR), Err(Errno::EXIST));
        c.clear(&request(6, op::MKDIR));
        [a, b, c].into_iter().for_each(crash);

        let new = Journal::new(state.clone());
        let again = |unique, opcode| new.earlier(&request(unique | UNIQUE_RESEND, opcode));
        assert!(matches!(again(2, op::RENAME), Some(Earlier::Begun(r)) if r.ino == 44 && r.begun > 0));
        let Some(Earlier::Done(record)) = again(4, op::CREATE) else { panic!("it was done") };
        assert_eq!(recorded(&record), Ok(outcome));
        assert!(again(6, op::MKDIR).is_none(), "its reply was written");
        assert!(new.earlier(&request(4, op::CREATE)).is_none(), "not resent");
        assert!(again(4, op::OPEN).is_none(), "another operation");
    }

    #[test]
    fn what_was_left_stays_until_its_request_is_answered() {
        let state = state();
        let old = Journal::new(state.clone());
        let mut slot = old.slot();
        slot.begin(&request(4, op::UNLINK), 0);
        crash(slot);
        let again = request(4 | UNIQUE_RESEND, op::UNLINK);

        // The second one dies as well, before it answers.
        let second = Journal::new(state.clone());
        assert!(second.earlier(&again).is_some());
        crash(second.slot());
        let third = Journal::new(state.clone());
        let mut slot = third.slot();
        assert!(third.earlier(&again).is_some());
        slot.clear(&again);
        assert!(third.earlier(&again).is_none());
        drop(slot);
        assert_eq!(state.replies.iter().filter(|(_, r)| r.tag != IDLE).count(), 0);
    }

    #[test]
    fn an_outcome_counts_more_than_a_beginning() {
        let state = state();
        let record = |tag| ReplyRec { tag, opcode: op::MKDIR, unique: 4, node: 9, ..ReplyRec::default() };
        for tag in [BEGUN, DONE, BEGUN] {
            state.replies.insert(&record(tag)).unwrap();
        }
        let journal = Journal::new(state.clone());
        let again = request(4 | UNIQUE_RESEND, op::MKDIR);
        assert!(matches!(journal.earlier(&again), Some(Earlier::Done(_))));
        journal.forget(4);
        assert_eq!(state.replies.iter().count(), 0);
    }

    #[test]
    fn of_two_beginnings_the_later_one_counts() {
        for lengths in [[3, 9], [9, 3]] {
            let state = state();
            for (place, length) in lengths.into_iter().enumerate() {
                let unique = 4 | if place == 0 { 0 } else { UNIQUE_RESEND };
                let record =
                    ReplyRec { tag: BEGUN, opcode: op::WRITE, unique, ino: length, ..ReplyRec::default() };
                state.replies.insert(&record).unwrap();
            }
            let journal = Journal::new(state.clone());
            let again = request(4 | UNIQUE_RESEND, op::WRITE);
            assert!(matches!(journal.earlier(&again), Some(Earlier::Begun(record)) if record.ino == 9));
            assert_eq!(state.replies.iter().count(), 1);
        }
    }

    #[test]
    fn a_full_table_gives_up_its_oldest_leftover() {
        let state = state();
        for i in 0..256u64 {
            let record = ReplyRec { tag: BEGUN, unique: i, begun: i + 1, ..ReplyRec::default() };
            state.replies.insert(&record).unwrap();
        }
        let journal = Journal::new(state.clone());
        let slot = journal.slot();
        assert!(slot.index.is_some());
        let left: Vec<_> = journal.left().keys().copied().collect();
        assert!(!left.contains(&0) && left.contains(&1));
    }
}
