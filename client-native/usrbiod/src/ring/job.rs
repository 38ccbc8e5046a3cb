//! A ring and its execution: claim what is due, execute, publish in order.

use super::exec::{self, Caches, Outcome};
use super::file::{RingFile, Tick};
use super::io::{Io, Op};
use super::object::{Core, lock};
use super::sem;
use super::shm::{RingMap, SharedMap};
use crate::metrics::{Latency, Rejected};
use crate::state::records::ObjectRec;
use crate::types::{Errno, Owner, Result};
use std::collections::VecDeque;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use usrbio_wire::{Cqe, Geometry, RingAttrs, RingFault, ServerRing, Slot, Sqe};

/// Requests claimed in one turn: other rings of the session may wait that long.
const TURN: u32 = 128;
/// Bytes moved in one turn, about.
const TURN_BYTES: u64 = 4 << 20;
/// Completions shown at once. Fewer keep a spinning client busy while the rest is executed; more cost fewer stores.
const PUBLISH: u32 = 32;

/// A moment as the workers see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) tick: Tick,
}

/// A registered ring.
pub(super) struct Ring {
    pub(super) core: Arc<Core>,
    /// Index of its record in the session's state.
    pub(super) number: u32,
    pub(super) attrs: RingAttrs,
    pub(super) owner: Owner,
    pub(super) fd: OwnedFd,
    map: Arc<SharedMap>,
    geometry: Geometry,
    /// 0, or the number of the worker that attends it.
    pub(super) attended: AtomicU32,
    /// How long it lately was idle between two turns, in µs.
    pub(super) pause_us: AtomicU32,
    /// When it became idle, in ns of the workers' clock.
    pub(super) idle_from: AtomicU64,
    /// Not registered any more.
    pub(super) closed: AtomicBool,
    state: Mutex<RingState>,
}

struct RingState {
    ring: ServerRing<RingMap>,
    caches: Caches,
    /// Claimed and not staged, in order; the first one's number is `first`.
    pending: VecDeque<Pending>,
    first: u64,
    in_flight: u32,
    /// Completions written behind `cqeHead`.
    staged: u32,
    /// Published since the client's semaphore was posted.
    unposted: bool,
    /// Requests that io_depth lets go and that are not claimed yet.
    owed: u32,
    /// When a part of a batch was first seen.
    partial_since: Option<Instant>,
    /// When the oldest request that is not published was claimed.
    claimed_at: Option<Instant>,
    /// Written since the last publish.
    dirty: Vec<Arc<RingFile>>,
    stopped: bool,
    tally: Tally,
}

struct Pending {
    sqe: Sqe,
    result: Option<i64>,
}

#[derive(Default)]
struct Tally {
    requests: u64,
    bytes: u64,
}

/// Why a ring is served no more.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Fault(#[from] RingFault),
    #[error("its shared memory was truncated")]
    MemoryGone,
}

/// What a ring wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// A turn.
    Work,
    /// A look at this time: a part of a batch is to be taken then.
    Later(Instant),
    /// Nothing until its client posts.
    Nothing,
}

/// What a turn did.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Turn {
    /// Claimed or published something.
    pub(super) worked: bool,
    /// Requests that wait for the disk.
    pub(super) in_flight: u32,
    /// When a part of a batch is to be taken.
    pub(super) deadline: Option<Instant>,
}

impl Ring {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        core: &Arc<Core>,
        number: u32,
        attrs: RingAttrs,
        owner: Owner,
        fd: OwnedFd,
        map: Arc<SharedMap>,
        geometry: Geometry,
        (sq_tail, cq_head): (Slot, Slot),
    ) -> Ring {
        let ring = ServerRing::new(RingMap::new(&map), geometry, sq_tail, cq_head);
        let state = RingState {
            ring,
            caches: Caches::default(),
            pending: VecDeque::new(),
            first: 0,
            in_flight: 0,
            staged: 0,
            unposted: false,
            owed: 0,
            partial_since: None,
            claimed_at: None,
            dirty: Vec::new(),
            stopped: false,
            tally: Tally::default(),
        };
        Ring {
            core: core.clone(),
            number,
            attrs,
            owner,
            fd,
            map,
            geometry,
            attended: AtomicU32::new(0),
            pause_us: AtomicU32::new(u32::MAX),
            idle_from: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }

    /// The client may wait for something that the daemon's predecessor completed.
    pub(super) fn restore(&self) {
        lock(&self.state).ring.restore();
        self.post();
    }

    fn post(&self) {
        sem::post(&self.map, self.geometry.sem_at());
    }

    /// Is there something to do? Cheap where there is nothing: two loads.
    pub(super) fn demand(&self, now: Instant) -> Demand {
        // Whoever holds the lock attends the ring and sees for itself.
        let Ok(mut state) = self.state.try_lock() else { return Demand::Nothing };
        if state.stopped || self.done_for() || (state.owed == 0 && !state.ring.has_published()) {
            return Demand::Nothing;
        }
        match state.let_go(self, now) {
            Ok(_) if state.owed > 0 => Demand::Work,
            Ok(None) => Demand::Nothing,
            Ok(Some(at)) => Demand::Later(at),
            // The next turn finds it too, and stops the ring.
            Err(_) => Demand::Work,
        }
    }

    fn done_for(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.core.claims_nothing()
    }

    /// Requests that wait for the disk.
    pub(super) fn in_flight(&self) -> u32 {
        lock(&self.state).in_flight
    }

    /// Requests that wait for the disk, and since when the oldest one that is not published does; `None`: a worker is at it.
    pub(super) fn waiting(&self) -> Option<(u32, Option<Instant>)> {
        let state = self.state.try_lock().ok()?;
        Some((state.in_flight, state.claimed_at))
    }

    /// Takes note of a request that waited for the disk; the next turn publishes it.
    pub(super) fn complete(&self, op: &Op, answer: Result<u64>) {
        let mut state = lock(&self.state);
        let answer = if op.iov.map.poisoned() { Err(Errno::ACCESS) } else { answer };
        state.in_flight -= 1;
        if op.write && op.done > 0 {
            state.wrote(&op.file);
        }
        state.tally.bytes += answer.unwrap_or(0);
        let index = (op.seq - state.first) as usize;
        if let Some(pending) = state.pending.get_mut(index) {
            pending.result = Some(exec::result(answer));
        }
    }

    /// One turn: claims what is due, executes it, publishes what is done and in order.
    pub(super) fn turn(self: &Arc<Self>, io: &mut Io, now: Now, claim: bool) -> Turn {
        let mut state = lock(&self.state);
        if state.stopped {
            return Turn { in_flight: state.in_flight, ..Turn::default() };
        }
        let turn = state.turn(self, io, now, claim);
        turn.unwrap_or_else(|stop| {
            state.stop(self, &stop);
            Turn { in_flight: state.in_flight, ..Turn::default() }
        })
    }

    /// Forgets all files and Iovs: nobody attends the ring, and it was idle for long.
    pub(super) fn forget(&self) {
        lock(&self.state).caches.clear();
    }

    /// Forgets files that nobody has open and Iovs that are not registered, unless the ring is having a turn.
    pub(super) fn drop_closed(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            state.caches.drop_closed(&self.core);
        }
    }
}

impl RingState {
    fn turn(&mut self, ring: &Arc<Ring>, io: &mut Io, now: Now, claim: bool) -> Result<Turn, Stop> {
        let mut deadline = None;
        let mut claimed = 0;
        if claim && !ring.done_for() {
            deadline = self.let_go(ring, now.instant)?;
            claimed = self.claim(ring, io, now)?;
        }
        self.stage_done();
        self.publish(ring);
        let published = std::mem::take(&mut self.unposted);
        if published {
            ring.post();
        }
        if ring.map.poisoned() {
            return Err(Stop::MemoryGone);
        }
        if claimed == 0 && self.in_flight == 0 && ring.done_for() {
            self.caches.clear();
        }
        self.count(ring);
        Ok(Turn { worked: claimed > 0 || published, in_flight: self.in_flight, deadline })
    }

    /// Applies the rules of `io_depth` to what is newly published. Answers when to look again at a part of a batch.
    fn let_go(&mut self, ring: &Ring, now: Instant) -> Result<Option<Instant>, Stop> {
        let fresh = self.ring.published()?.saturating_sub(self.owed);
        let depth = ring.attrs.io_depth;
        if depth == 0 || fresh == 0 {
            self.owed += fresh;
            self.partial_since = None;
            return Ok(None);
        }
        let batch = depth.unsigned_abs();
        let part = fresh % batch;
        self.owed += fresh - part;
        // A positive depth takes whole batches, however long that takes.
        if part == 0 || depth > 0 {
            self.partial_since = None;
            return Ok(None);
        }
        let timeout = Duration::from_millis(u64::from(ring.attrs.timeout_ms));
        let due = *self.partial_since.get_or_insert(now) + timeout;
        if now < due {
            return Ok(Some(due));
        }
        self.partial_since = None;
        self.owed += part;
        Ok(None)
    }

    fn claim(&mut self, ring: &Arc<Ring>, io: &mut Io, now: Now) -> Result<u32, Stop> {
        let mut claimed = 0;
        let mut bytes = 0;
        while self.owed > 0 && claimed < TURN && bytes < TURN_BYTES && io.has_room() && !ring.done_for() {
            let (sqe, args) = match self.ring.claim() {
                Ok(request) => request,
                Err(fault) => {
                    self.stage_done();
                    self.publish(ring);
                    ring.post();
                    return Err(fault.into());
                }
            };
            self.owed -= 1;
            claimed += 1;
            self.claimed_at.get_or_insert(now.instant);
            let result = self.execute(ring, &args, io, now.tick);
            bytes = args.io_len.saturating_add(bytes);
            match result {
                Some(result) if self.pending.is_empty() => self.stage(&sqe, result),
                result => self.pending.push_back(Pending { sqe, result }),
            }
            if self.staged >= PUBLISH {
                self.publish(ring);
            }
        }
        Ok(claimed)
    }

    /// The result, unless it has to wait for the disk.
    #[inline]
    fn execute(&mut self, ring: &Arc<Ring>, args: &usrbio_wire::Args, io: &mut Io, now: Tick) -> Option<i64> {
        self.tally.requests += 1;
        let request = match self.caches.judge(&ring.core, ring, args) {
            Ok(request) => request,
            Err((error, why)) => {
                ring.core.metrics.rejected[why as usize].fetch_add(1, Ordering::Relaxed);
                return Some(exec::result(Err(error)));
            }
        };
        let write = !ring.attrs.for_read;
        let outcome = if write { exec::write(&request) } else { exec::read(&request, ring.attrs.flags, now) };
        match outcome {
            Outcome::Done(answer) => {
                let answer = if request.iov.map.poisoned() { Err(Errno::ACCESS) } else { answer };
                if write && !self.dirty.last().is_some_and(|last| Arc::ptr_eq(last, request.file)) {
                    let file = request.file.clone();
                    self.wrote(&file);
                }
                self.tally.bytes += answer.unwrap_or(0);
                Some(exec::result(answer))
            }
            Outcome::Start { len, done, direct, background } => {
                let seq = self.first + self.pending.len() as u64;
                let (file, iov) = (request.file.clone(), request.iov.clone());
                let (at, off) = (request.at, request.off);
                io.start(Op {
                    ring: ring.clone(),
                    seq,
                    file,
                    iov,
                    at,
                    off,
                    len,
                    done,
                    write,
                    direct,
                    background,
                });
                self.in_flight += 1;
                None
            }
        }
    }

    fn wrote(&mut self, file: &Arc<RingFile>) {
        if !self.dirty.iter().any(|known| Arc::ptr_eq(known, file)) {
            self.dirty.push(file.clone());
        }
    }

    fn stage(&mut self, sqe: &Sqe, result: i64) {
        let cqe = Cqe { index: sqe.index, reserved: 0, result, userdata: sqe.userdata };
        self.ring.stage(self.staged, &cqe);
        self.staged += 1;
        // Staged requests count too: `first` is the number of the first pending one.
        self.first += 1;
    }

    fn stage_done(&mut self) {
        while let Some(Pending { sqe, result: Some(result) }) = self.pending.front() {
            let (sqe, result) = (*sqe, *result);
            self.pending.pop_front();
            self.stage(&sqe, result);
        }
    }

    /// Shows the staged completions. The journal word is the commit: a successor takes the positions from there, stores them
    /// into the ring again and goes on, so that no request is answered twice or never. It never reads them from the ring,
    /// where a client could have changed them.
    fn publish(&mut self, ring: &Ring) {
        if self.staged == 0 {
            return;
        }
        // Before the client can see the completion and look at the file.
        self.tell_written(ring);
        if let Some(journal) = ring.core.state.objects.field(ring.number, offset_of!(ObjectRec, journal_sq)) {
            journal.store(journal_word(self.ring.after(self.staged)), Ordering::Release);
        }
        self.ring.publish(self.staged);
        self.staged = 0;
        self.unposted = true;
        if let Some(begun) = self.claimed_at.take() {
            observe(&ring.core.metrics.ring_latency, begun.elapsed());
        }
        if !self.pending.is_empty() {
            self.claimed_at = Some(Instant::now());
        }
    }

    fn tell_written(&mut self, ring: &Ring) {
        if self.dirty.is_empty() {
            return;
        }
        let files = ring.core.files();
        for file in self.dirty.drain(..) {
            files.iter().for_each(|files| files.written(&file.backing));
        }
    }

    fn count(&mut self, ring: &Ring) {
        let Tally { requests, bytes } = std::mem::take(&mut self.tally);
        let metrics = &ring.core.metrics;
        let (all, moved) = if ring.attrs.for_read {
            (&metrics.ring_reads, &metrics.ring_read_bytes)
        } else {
            (&metrics.ring_writes, &metrics.ring_write_bytes)
        };
        if requests > 0 {
            all.fetch_add(requests, Ordering::Relaxed);
        }
        if bytes > 0 {
            moved.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn stop(&mut self, ring: &Ring, why: &Stop) {
        self.stopped = true;
        self.caches.clear();
        self.tell_written(ring);
        ring.core.metrics.rejected[Rejected::Fault as usize].fetch_add(1, Ordering::Relaxed);
        let Owner { uid, tgid, .. } = ring.owner;
        tracing::warn!(session = ring.core.name, ring = ring.number, uid, tgid, "ring stopped: {why}");
    }
}

/// Both positions in one word, so that they change together.
pub(super) fn journal_word((sq_tail, cq_head): (Slot, Slot)) -> u64 {
    u64::from(sq_tail.raw() as u32) | u64::from(cq_head.raw() as u32) << 32
}

fn observe(latency: &Latency, time: Duration) {
    let micros = time.as_micros() as u64;
    let bucket = (u64::BITS - micros.leading_zeros()) as usize;
    latency.buckets[bucket.min(latency.buckets.len() - 1)].fetch_add(1, Ordering::Relaxed);
    latency.sum_ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
}

const _: () = assert!(offset_of!(ObjectRec, journal_cq) == offset_of!(ObjectRec, journal_sq) + 4);
const _: () = assert!(offset_of!(ObjectRec, journal_sq).is_multiple_of(8));
