//! Batches on a ring: several threads submit and wait, and each batch gets its own completions. No Python in here: all
//! of it runs without the GIL.

use crate::file::Registered;
use crate::iov::Memory;
use std::collections::{BTreeMap, VecDeque};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use usrbio::{Buffer, Cqe, Deadline, Error, PrepError, Request, RingCore};

/// The result of a request that is not complete; no errno is that large.
const PENDING: i64 = i64::MIN;

/// Requests shown to the daemon at a time: it starts on them while the next ones are put on the ring.
const SHOWN: usize = 32;

/// Completions taken at a time.
const REAP: usize = 128;

/// Requests that were submitted together.
#[derive(Debug)]
pub struct Batch {
    /// Their user data: numbers that follow each other, from the first one's.
    requests: Vec<Request>,
    buffer: Buffer,
    results: Box<[AtomicI64]>,
    left: AtomicUsize,
    /// So many requests, from the first on, are on the ring. Changed by who holds the queue's lock.
    queued: AtomicUsize,
}

impl Batch {
    /// Is every request complete?
    pub fn is_done(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// Bytes moved or -errno, one for each request, once it is done.
    pub fn results(&self) -> &[AtomicI64] {
        &self.results
    }

    fn first(&self) -> u64 {
        self.requests.first().map_or(0, |request| request.userdata)
    }

    /// Notes a result; `false` if no such request is in flight.
    fn complete(&self, index: u64, result: i64) -> bool {
        let place = usize::try_from(index).ok().and_then(|index| self.results.get(index));
        let Some(place) = place.filter(|place| place.load(Ordering::Relaxed) == PENDING) else {
            return false;
        };
        place.store(result.max(PENDING + 1), Ordering::Relaxed);
        self.left.fetch_sub(1, Ordering::Release);
        true
    }
}

/// A batch in flight, and what must stay until its last request is complete.
#[derive(Debug)]
struct InFlight {
    batch: Arc<Batch>,
    memory: Arc<Memory>,
    _files: Vec<Arc<Registered>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// By the user data of their first request.
    batches: BTreeMap<u64, InFlight>,
    /// Of those, the ones with requests that did not fit on the ring yet.
    backlog: VecDeque<Arc<Batch>>,
}

/// Who takes completions. One thread does; the others wait for what it finds.
#[derive(Debug, Default)]
struct Turn {
    taken: bool,
    waiting: usize,
}

/// A ring and the batches on it.
#[derive(Debug)]
pub struct Batches {
    core: RingCore,
    next_userdata: AtomicU64,
    queue: Mutex<Queue>,
    turn: Mutex<Turn>,
    turn_ends: Condvar,
    /// Batches completed so far.
    completed: AtomicU64,
    /// The daemon was found to be gone.
    abandoned: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Batches {
    /// None yet.
    pub fn new(core: RingCore) -> Batches {
        Batches {
            core,
            next_userdata: AtomicU64::new(0),
            queue: Mutex::default(),
            turn: Mutex::default(),
            turn_ends: Condvar::new(),
            completed: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
        }
    }

    /// The ring.
    pub fn core(&self) -> &RingCore {
        &self.core
    }

    /// Batches completed since the ring was made.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    /// A batch of `requests`, which all fit into `buffer`. Their user data is set here.
    pub fn batch(&self, mut requests: Vec<Request>, buffer: Buffer) -> Arc<Batch> {
        let count = requests.len();
        let first = self.next_userdata.fetch_add(count as u64, Ordering::Relaxed);
        for (userdata, request) in (first..).zip(&mut requests) {
            request.userdata = userdata;
        }
        let results = (0..count).map(|_| AtomicI64::new(PENDING)).collect();
        let (left, queued) = (AtomicUsize::new(count), AtomicUsize::new(0));
        Arc::new(Batch { requests, buffer, results, left, queued })
    }

    /// In a forked child another thread of the parent may have held a lock: nothing is locked before this.
    fn check(&self) -> Result<(), Error> {
        self.core.check_usable()?;
        if self.abandoned.load(Ordering::Relaxed) { self.check_served() } else { Ok(()) }
    }

    /// Is there still a daemon that serves the ring? Asks it.
    pub fn check_served(&self) -> Result<(), Error> {
        let served = self.core.check_served();
        self.abandoned.store(served.is_err(), Ordering::Relaxed);
        served
    }

    /// Puts a batch on the ring. What does not fit follows, in order, when completions make room. Its memory and files are
    /// kept until it is complete.
    pub fn submit(
        &self,
        batch: &Arc<Batch>,
        memory: Arc<Memory>,
        files: Vec<Arc<Registered>>,
    ) -> Result<(), Error> {
        self.check()?;
        if batch.is_done() {
            return Ok(()); // it has no requests
        }
        let mut queue = lock(&self.queue);
        let in_flight = InFlight { batch: batch.clone(), memory, _files: files };
        queue.batches.insert(batch.first(), in_flight);
        queue.backlog.push_back(batch.clone());
        self.fill(&mut queue)
    }

    /// Moves requests from the backlog to the ring until it is full.
    fn fill(&self, queue: &mut Queue) -> Result<(), Error> {
        let mut news = false;
        let mut stopped = None;
        while let Some(batch) = queue.backlog.front() {
            let from = batch.queued.load(Ordering::Relaxed);
            let until = batch.requests.len().min(from + SHOWN);
            let prepared = self.core.prep_batch(batch.buffer, &batch.requests[from..until]);
            news |= prepared.queued > 0;
            batch.queued.store(from + prepared.queued, Ordering::Relaxed);
            stopped = prepared.stopped;
            if stopped.is_some() {
                break;
            }
            if until == batch.requests.len() {
                queue.backlog.pop_front();
            }
        }
        if news {
            self.core.submit()?;
        }
        match stopped {
            None | Some(PrepError::Full) => Ok(()),
            // All else was checked before: the ring is beyond use, and says why.
            Some(_) => self.core.check_usable(),
        }
    }

    /// Nobody waits for the batch any more. The next one into its memory will: what completes late would land in that
    /// one's bytes.
    pub fn leave(self: &Arc<Self>, batch: &Batch) {
        // As in `check`.
        if self.core.check_usable().is_ok()
            && let Some(InFlight { batch, memory, .. }) = lock(&self.queue).batches.get(&batch.first())
        {
            memory.unfinished().push((Arc::downgrade(self), batch.clone()));
        }
    }

    /// Waits until `is_over` or for `patience`; the former.
    pub fn wait(&self, is_over: impl Fn() -> bool, patience: Duration) -> Result<bool, Error> {
        let until = Instant::now() + patience;
        while !is_over() {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if let Some(_turn) = self.take_turn(&is_over, left) {
                self.reap(left)?;
            }
        }
        Ok(true)
    }

    /// Takes completions that are there, without waiting.
    pub fn poll(&self) -> Result<(), Error> {
        self.check()?;
        match self.take_turn(|| false, Duration::ZERO) {
            Some(_turn) => self.reap(Duration::ZERO),
            None => Ok(()),
        }
    }

    /// Has every batch completed?
    pub fn is_idle(&self) -> bool {
        lock(&self.queue).batches.is_empty()
    }

    /// The right to take completions; `None` when `is_over`, or when another thread has it, after that one found some or
    /// `patience` is over.
    fn take_turn(&self, is_over: impl Fn() -> bool, patience: Duration) -> Option<TurnGuard<'_>> {
        let mut turn = lock(&self.turn);
        // With the lock held: who had the turn before may have found what this thread waits for, and nobody would tell
        // it again. Who has it now cannot end it, and wake the waiting, before this thread waits.
        if is_over() {
            return None;
        }
        if !turn.taken {
            turn.taken = true;
            return Some(TurnGuard(self));
        }
        turn.waiting += 1;
        let (mut turn, _) =
            self.turn_ends.wait_timeout(turn, patience).unwrap_or_else(PoisonError::into_inner);
        turn.waiting -= 1;
        None
    }

    /// Takes completions, waiting for one for `patience`, and hands them to their batches. Only who has the turn.
    fn reap(&self, patience: Duration) -> Result<(), Error> {
        let mut places = [MaybeUninit::<Cqe>::uninit(); REAP];
        let min = usize::from(!patience.is_zero());
        let count = self.core.wait(min, &mut places, Some(Deadline::after(patience)))?;
        let mut done = Vec::new();
        let mut queue = lock(&self.queue);
        for place in &places[..count] {
            // SAFETY: `wait` wrote the first `count` places.
            let cqe = unsafe { place.assume_init() };
            done.extend(queue.complete(&cqe));
        }
        let filled = if count > 0 { self.fill(&mut queue) } else { Ok(()) };
        // The last reference may unregister an Iov, which asks the daemon: not under the lock.
        drop(queue);
        self.completed.fetch_add(done.len() as u64, Ordering::Release);
        filled
    }
}

impl Queue {
    /// Hands a completion to its batch, which is answered if it was the last one. One that nobody asked for belongs to a
    /// daemon gone wrong; the ring itself has checked the slot, and there is nobody to tell.
    fn complete(&mut self, cqe: &Cqe) -> Option<InFlight> {
        let (first, InFlight { batch, .. }) = self.batches.range(..=cqe.userdata).next_back()?;
        let first = *first;
        (batch.complete(cqe.userdata - first, cqe.result) && batch.is_done())
            .then(|| self.batches.remove(&first))
            .flatten()
    }
}

/// Ends the turn and wakes the threads that wait for it.
struct TurnGuard<'a>(&'a Batches);

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        let mut turn = lock(&self.0.turn);
        turn.taken = false;
        // Waking nobody would be a system call.
        if turn.waiting > 0 {
            self.0.turn_ends.notify_all();
        }
    }
}
