//! One thread of the pool.

use super::buffer::{ReplyBuffer, RequestBuffer};
use super::crew::{Face, Served};
use super::dispatch::{self, Done};
use super::pool::{Event, Shared};
use super::replay::Slot;
use super::request::{Op, Request};
use crate::types::{Errno, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use usrbio_wire::ioctl;

/// Requests of one session after which others get their turn.
const TURN: u32 = 64;
/// Longest wait for the next request of a session without sleeping. A caller that gets its answer usually asks again within
/// this time, and waking up costs as much.
const SPIN: Duration = Duration::from_micros(60);
/// A spin that took this long had its CPU taken away.
const STOLEN: Duration = Duration::from_micros(500);
/// So many requests in a row that were followed by another before they were served call a second worker. One alone is
/// mostly a `RELEASE` or `FORGET`, which nobody waits for, with the caller's next request behind it.
const BACKLOG: u32 = 4;
/// Reads and writes from this size on take long.
const LONG_IO: u32 = 64 << 10;

pub(super) struct Worker {
    shared: Arc<Shared>,
    face: Arc<Face>,
    request: RequestBuffer,
    reply: ReplyBuffer,
    spins: Spins,
    /// Requests in a row that were not the only one.
    backlog: u32,
}

/// What came of looking for a request.
enum Next {
    Request(usize),
    Nothing,
    Gone,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, face: Arc<Face>) -> Worker {
        let (request, reply) = Shared::buffers();
        Worker { shared, face, request, reply, spins: Spins::default(), backlog: 0 }
    }

    pub(super) fn run(&mut self) {
        if let Err(e) = crate::sys::creds::prepare_thread() {
            tracing::error!(errno = %e, "a FUSE worker cannot take other credentials; what it creates will be refused");
        }
        let mut next = None;
        loop {
            match next.take().unwrap_or_else(|| self.shared.wait()) {
                Event::Session(served) => next = self.serve(&served),
                Event::Action(number) => self.shared.act(number),
                Event::Tick => self.shared.tick(),
                Event::Nothing if self.shared.may_end() => return,
                Event::Nothing => (),
                Event::Stop => return,
            }
        }
    }

    /// Serves a session until it has nothing to do, or others wait; what else there is to do, if that was seen.
    fn serve(&mut self, served: &Arc<Served>) -> Option<Event> {
        if !self.shared.take_up(&self.face, served) {
            return None;
        }
        self.backlog = 0;
        let mut slot = served.journal.slot();
        let mut taken = 0;
        let next = loop {
            if served.closed.load(Ordering::SeqCst) || self.shared.stopping() {
                break None;
            }
            match self.next(served, taken > 0) {
                Next::Request(len) => self.handle(served, len, &mut slot),
                Next::Nothing => break None,
                Next::Gone => {
                    self.shared.unmounted(served);
                    break None;
                }
            }
            taken += 1;
            if taken % TURN == 0 {
                match self.shared.poll() {
                    Event::Nothing => (),
                    other => break Some(other),
                }
            }
        };
        drop(slot);
        self.shared.leave(&self.face, served);
        next
    }

    /// Looks for the next request, for a short while after an answer.
    fn next(&mut self, served: &Served, answered: bool) -> Next {
        match self.read(served) {
            Next::Request(len) => {
                if answered && Shared::has_duty(&self.face) {
                    self.backlog = if more_wait(served) { self.backlog + 1 } else { 0 };
                    if self.backlog >= BACKLOG {
                        self.shared.give_duty(&self.face, served);
                    }
                }
                return Next::Request(len);
            }
            Next::Nothing if answered && Shared::has_duty(&self.face) && self.spins.worth_it() => (),
            other => return other,
        }
        let begun = Instant::now();
        loop {
            rustix::thread::sched_yield();
            let found = self.read(served);
            let spent = begun.elapsed();
            if spent < SPIN && matches!(found, Next::Nothing) {
                continue;
            }
            self.spins.note(matches!(found, Next::Request(_)), spent);
            return found;
        }
    }

    fn read(&mut self, served: &Served) -> Next {
        loop {
            match served.session.channel.read(self.request.bytes()) {
                Ok(0) | Err(Errno::NODEV) => return Next::Gone,
                Ok(len) => return Next::Request(len),
                Err(Errno::AGAIN) => return Next::Nothing,
                // Interrupted, or a request that was aborted while it was copied.
                Err(Errno::INTR | Errno::NOENT) => (),
                Err(e) => {
                    let session = &served.session.config.name;
                    tracing::error!(errno = %e, session, "cannot read /dev/fuse; giving the session up");
                    return Next::Gone;
                }
            }
        }
    }

    fn handle(&mut self, served: &Served, len: usize, slot: &mut Slot<'_>) {
        let begun = Instant::now();
        let session = &served.session;
        let bytes = &self.request.bytes()[..len];
        let request = match Request::parse(bytes, served.setxattr_ext()) {
            Ok(request) => request,
            Err(malformed) => {
                tracing::warn!(session = session.config.name, len, "a malformed FUSE request");
                if let Some(unique) = malformed.unique {
                    let _ = session.channel.answer(unique, Err(malformed.errno));
                }
                return;
            }
        };
        self.face.by_steps.store(by_steps(&request), Ordering::Relaxed);
        self.shared.begin(&self.face, begun);
        if takes_long(&request.op) {
            self.shared.give_duty(&self.face, served);
        }
        let shared = &self.shared;
        let mut call = dispatch::Call {
            session,
            request: &request,
            body: self.reply.body(),
            journal: &served.journal,
            slot,
            answer: &|answers| shared.answer(answers),
        };
        let done = catch_unwind(AssertUnwindSafe(|| dispatch::handle(&mut call)));
        let done = done.unwrap_or_else(|_| {
            if !served.panicked.swap(true, Ordering::Relaxed) {
                let session = &session.config.name;
                tracing::error!(opcode = request.opcode, session, "a FUSE request made its handler panic");
            }
            Err(Errno::IO)
        });
        let sent = match done {
            Ok(Done::Reply(len)) => session.channel.reply(request.unique, &mut self.reply, len),
            Ok(Done::Silent) => Ok(()),
            Err(errno) => session.channel.answer(request.unique, Err(errno)),
        };
        slot.clear(&request);
        if let (Op::Readdir(arg) | Op::Readdirplus(arg), Ok(())) = (&request.op, &sent) {
            session.fs.read_dir_ahead(request.node, arg.fh);
        }
        Shared::end(&self.face);
        log_unsent(sent, &request, &session.config.name);
        session.metrics.fuse_requests.fetch_add(1, Ordering::Relaxed);
        session.metrics.fuse_latency.observe(begun.elapsed());
    }
}

/// A reply that the kernel refuses would leave its caller waiting for ever.
fn log_unsent(sent: Result<()>, request: &Request<'_>, session: &str) {
    match sent {
        Ok(()) | Err(Errno::NODEV | Errno::PERM) => (),
        Err(errno) => {
            tracing::error!(%errno, opcode = request.opcode, session, "the kernel refused a FUSE reply")
        }
    }
}

/// Are there more requests than the one just read?
fn more_wait(served: &Served) -> bool {
    let mut fds = [PollFd::new(&served.session.channel.fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
}

/// Shall others be called to the session before this is done?
fn takes_long(op: &Op<'_>) -> bool {
    match op {
        Op::Read(arg) => arg.size >= LONG_IO,
        Op::Write { arg, .. } => arg.size >= LONG_IO,
        Op::Fsync(_)
        | Op::Fsyncdir(_)
        | Op::Fallocate(_)
        | Op::CopyFileRange { .. }
        | Op::Ioctl { .. }
        | Op::Syncfs => true,
        _ => false,
    }
}

/// May it remove a tree, and wait at the gate between two steps of that?
fn by_steps(request: &Request<'_>) -> bool {
    match request.op {
        Op::Ioctl { arg, .. } => matches!(arg.cmd, ioctl::RECURSIVE_RM | ioctl::REMOVE),
        Op::Symlink { .. } => request.node.is_virtual(),
        Op::Rename { new_parent, .. } => new_parent.is_virtual(),
        _ => false,
    }
}

/// Decides whether to spin: yes while it pays; when it did not, now and then to find out whether it does again.
struct Spins {
    credit: u32,
    /// Do not spin at the next so many occasions.
    pause: u32,
}

impl Default for Spins {
    fn default() -> Spins {
        Spins { credit: 2, pause: 0 }
    }
}

impl Spins {
    const MOST: u32 = 4;
    const PAUSE: u32 = 16;
    const LONG_PAUSE: u32 = 1024;

    fn worth_it(&mut self) -> bool {
        let worth_it = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        worth_it
    }

    /// A spin found a request or did not, and ended after so long.
    fn note(&mut self, found: bool, spent: Duration) {
        if spent >= STOLEN {
            // The yield gave the CPU to somebody who has use for it and keeps it for his time slice, milliseconds,
            // while the request waits. A sleeper would have been woken at once.
            *self = Spins { credit: 0, pause: Self::LONG_PAUSE };
        } else if found {
            self.credit = (self.credit + 1).min(Self::MOST);
        } else {
            self.credit = self.credit.saturating_sub(1);
            self.pause = if self.credit == 0 { Self::PAUSE } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(spins: &mut Spins, occasions: u32, found: bool, spent: Duration) -> usize {
        let tried = |_: &u32| spins.worth_it().then(|| spins.note(found, spent)).is_some();
        (0..occasions).filter(tried).count()
    }

    #[test]
    fn spinning_stops_when_it_does_not_pay_and_is_tried_again_later() {
        let mut spins = Spins::default();
        assert_eq!(tries(&mut spins, 2, false, SPIN), 2);
        assert_eq!(tries(&mut spins, 2 * (Spins::PAUSE + 1), false, SPIN), 2);
        assert_eq!(tries(&mut spins, Spins::PAUSE + 10, true, Duration::ZERO), 10);
    }

    #[test]
    fn a_cpu_that_others_need_is_left_to_them_for_long() {
        let mut spins = Spins::default();
        assert_eq!(tries(&mut spins, Spins::LONG_PAUSE, true, STOLEN), 1);
        // A spin that only ended late, as happens on a virtual machine.
        assert_eq!(tries(&mut Spins::default(), 10, true, 3 * SPIN), 10);
    }
}
