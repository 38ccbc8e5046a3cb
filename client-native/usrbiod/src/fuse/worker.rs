//! One thread of the pool.

use super::buffer::{ReplyBuffer, RequestBuffer};
use super::dispatch::{self, Done};
use super::pool::{Event, Face, Served, Shared};
use super::replay::Slot;
use super::request::{Op, Request};
use crate::types::{Errno, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Requests of one session after which others get their turn.
const TURN: u32 = 64;
/// Longest wait for the next request of a session without sleeping. A caller that gets its answer usually asks again within
/// this time, and waking up costs as much.
const SPIN: Duration = Duration::from_micros(40);
/// Reads and writes from this size on take long.
const LONG_IO: u32 = 64 << 10;

pub(super) struct Worker {
    shared: Arc<Shared>,
    face: Arc<Face>,
    request: RequestBuffer,
    reply: ReplyBuffer,
    spins: Spins,
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
        Worker { shared, face, request, reply, spins: Spins::default() }
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
        self.shared.take_up(&self.face, served);
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
                if answered && Shared::has_duty(&self.face) && more_wait(served) {
                    self.shared.give_duty(&self.face, served);
                }
                return Next::Request(len);
            }
            Next::Nothing if answered && Shared::has_duty(&self.face) && self.spins.worth_it() => (),
            other => return other,
        }
        let until = Instant::now() + SPIN;
        loop {
            rustix::thread::sched_yield();
            match self.read(served) {
                Next::Nothing if Instant::now() < until => (),
                found => {
                    self.spins.note(matches!(found, Next::Request(_)));
                    return found;
                }
            }
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

/// Decides whether to spin: yes while it pays; when it did not, now and then to find out whether it does again.
struct Spins {
    credit: u32,
    skipped: u32,
}

impl Default for Spins {
    fn default() -> Spins {
        Spins { credit: 2, skipped: 0 }
    }
}

impl Spins {
    const MOST: u32 = 4;
    const PROBE: u32 = 16;

    fn worth_it(&mut self) -> bool {
        self.skipped += 1;
        let worth_it = self.credit > 0 || self.skipped > Self::PROBE;
        if worth_it {
            self.skipped = 0;
        }
        worth_it
    }

    fn note(&mut self, found: bool) {
        self.credit = if found { (self.credit + 1).min(Self::MOST) } else { self.credit.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spinning_stops_when_it_does_not_pay_and_is_tried_again_later() {
        let mut spins = Spins::default();
        for _ in 0..2 {
            assert!(spins.worth_it());
            spins.note(false);
        }
        let tries = (0..34).filter(|_| {
            let tried = spins.worth_it();
            if tried {
                spins.note(false);
            }
            tried
        });
        assert_eq!(tries.count(), 2);
        spins.note(true);
        assert!(spins.worth_it());
    }
}
