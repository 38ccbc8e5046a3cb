//! The ring threads of a daemon: a watcher for the sessions that are idle, and workers, each of which serves one session at
//! a time.
//!
//! Whatever a worker does for a session may block: on storage that hangs, in the kernel's page cache, at a lock. It costs that
//! session and no other, since nobody else's rings, buffers or requests in flight are the worker's. The watcher does nothing that
//! can block. A session has one worker for sure, and a share of others while there are enough.

use super::job::Ring;
use super::object::{Core, lock};
use super::watcher::Watcher;
use super::worker::Worker;
use crate::types::{Errno, Result};
use rustix::thread::futex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most workers: so many sessions have work, or hang, at once before one has to wait.
const MOST: u32 = 1024;
/// Beyond so many, workers are for sessions that have none.
const SPARE_FROM: u32 = MOST / 2;
/// Number of the watcher; workers follow.
pub(super) const WATCHER: u32 = 0;
/// How long threads may take to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// The ring threads. Idle ones sleep in the kernel.
pub struct Engine {
    staff: Arc<Staff>,
}

/// What one thread tells another.
pub(super) enum Letter {
    /// You are home of this session now: watch its semaphores.
    Home(Arc<Core>),
    /// Attend this ring; it is marked as yours.
    Attend(Arc<Ring>),
}

/// Where a thread is reached.
#[derive(Default)]
pub(super) struct Mailbox {
    inbox: Mutex<Inbox>,
    /// Changes when there is something to look at.
    pub(super) kicks: AtomicU32,
    /// In the kernel, or about to be: a kick needs a wake-up.
    pub(super) asleep: AtomicBool,
    pub(super) stop: AtomicBool,
    /// The last of `kicks` that the watcher has seen.
    pub(super) seen: AtomicU32,
}

#[derive(Default)]
struct Inbox {
    letters: Vec<Letter>,
    /// The session that the worker serves. Letters of others do not reach it.
    serves: Option<Arc<Core>>,
}

impl Mailbox {
    pub(super) fn take(&self) -> Vec<Letter> {
        std::mem::take(&mut lock(&self.inbox).letters)
    }

    /// Order of steps: we change `kicks`, then load `asleep`; the worker stores `asleep`, then loads `kicks`. All four are
    /// sequentially consistent, so at least one side sees the other.
    pub(super) fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            let _ = futex::wake(&self.kicks, futex::Flags::empty(), 1);
        }
    }

    fn send(&self, letter: Letter) {
        lock(&self.inbox).letters.push(letter);
        self.kick();
    }

    /// Sends to a worker that serves `core`. `false`: it does not any more.
    fn send_to_crew(&self, core: &Arc<Core>, letter: Letter) -> bool {
        let mut inbox = lock(&self.inbox);
        if !inbox.serves.as_ref().is_some_and(|serves| Arc::ptr_eq(serves, core)) {
            return false;
        }
        inbox.letters.push(letter);
        drop(inbox);
        self.kick();
        true
    }
}

/// All threads.
pub(super) struct Staff {
    boxes: Box<[Mailbox]>,
    /// Most workers of one session, and how many stay when there is nothing to do.
    pub(super) share: usize,
    /// The clock of all threads.
    pub(super) begun: Instant,
    /// Workers that look for the next request instead of sleeping.
    pub(super) lingering: AtomicU32,
    roster: Mutex<Roster>,
}

#[derive(Default)]
struct Roster {
    /// Workers that serve nobody.
    free: Vec<u32>,
    /// Numbers without a thread, besides those from `unused` on.
    vacant: Vec<u32>,
    unused: u32,
    /// Threads by number; those of vacant numbers have ended or are about to.
    threads: Vec<Option<JoinHandle<()>>>,
    stopping: bool,
}

impl Roster {
    fn employed(&self) -> u32 {
        self.unused - 1 - (self.free.len() + self.vacant.len()) as u32
    }
}

impl Staff {
    fn new(share: usize) -> Staff {
        Staff {
            boxes: (0..=MOST).map(|_| Mailbox::default()).collect(),
            share: share.max(1),
            begun: Instant::now(),
            lingering: AtomicU32::new(0),
            roster: Mutex::new(Roster { unused: WATCHER + 1, threads: vec![None], ..Roster::default() }),
        }
    }

    pub(super) fn mailbox(&self, number: u32) -> &Mailbox {
        &self.boxes[number as usize]
    }

    /// Makes the watcher home of a session without work.
    pub(super) fn watch(&self, core: &Arc<Core>) {
        core.home.store(WATCHER, Ordering::SeqCst);
        self.mailbox(WATCHER).send(Letter::Home(core.clone()));
    }

    /// Makes a worker that serves nobody home of a session with work. `EAGAIN`: there is none now.
    pub(super) fn serve(self: &Arc<Self>, core: &Arc<Core>) -> Result<()> {
        let mut crew = lock(&core.crew);
        let worker = self.hire(MOST)?;
        crew.push(worker);
        core.home.store(worker, Ordering::SeqCst);
        self.begin(worker, core, Letter::Home(core.clone()));
        Ok(())
    }

    /// Makes a worker of the same session its home. `false`: it serves another one now.
    pub(super) fn move_home(&self, core: &Arc<Core>, to: u32) -> bool {
        let before = core.home.swap(to, Ordering::SeqCst);
        let moved = self.mailbox(to).send_to_crew(core, Letter::Home(core.clone()));
        if !moved {
            core.home.store(before, Ordering::SeqCst);
        }
        moved
    }

    /// Hands a ring that is marked as `from`'s to a worker of the session that sleeps, or to one more. `false`: there is none.
    pub(super) fn hand_over(self: &Arc<Self>, ring: &Arc<Ring>, from: u32) -> bool {
        let core = &ring.core;
        let mut crew = lock(&core.crew);
        let asleep = |other: &&u32| **other != from && self.mailbox(**other).asleep.load(Ordering::Relaxed);
        if let Some(other) = crew.iter().find(asleep) {
            ring.attended.store(*other, Ordering::SeqCst);
            if self.mailbox(*other).send_to_crew(core, Letter::Attend(ring.clone())) {
                return true;
            }
            ring.attended.store(from, Ordering::SeqCst);
        }
        if crew.len() >= self.share {
            return false;
        }
        let Ok(worker) = self.hire(SPARE_FROM) else { return false };
        crew.push(worker);
        ring.attended.store(worker, Ordering::SeqCst);
        self.begin(worker, core, Letter::Attend(ring.clone()));
        true
    }

    fn begin(&self, worker: u32, core: &Arc<Core>, letter: Letter) {
        let mailbox = self.mailbox(worker);
        let mut inbox = lock(&mailbox.inbox);
        inbox.serves = Some(core.clone());
        inbox.letters.push(letter);
        drop(inbox);
        mailbox.kick();
    }

    /// A worker that serves nobody, if fewer than `most` serve somebody.
    fn hire(self: &Arc<Self>, most: u32) -> Result<u32> {
        let mut roster = lock(&self.roster);
        if roster.stopping || roster.employed() >= most {
            return Err(Errno::AGAIN);
        }
        match roster.free.pop() {
            Some(worker) => Ok(worker),
            None => self.start_worker(&mut roster),
        }
    }

    fn start_worker(self: &Arc<Self>, roster: &mut Roster) -> Result<u32> {
        let number = match roster.vacant.pop() {
            Some(number) => number,
            None if roster.unused <= MOST => {
                roster.threads.push(None);
                roster.unused += 1;
                roster.unused - 1
            }
            None => return Err(Errno::AGAIN),
        };
        let staff = self.clone();
        let thread = std::thread::Builder::new().name(format!("ring-{number}"));
        // The io_uring belongs to the thread that makes it.
        match thread.spawn(move || Worker::new(number, staff).run()) {
            Ok(thread) => {
                roster.threads[number as usize] = Some(thread);
                Ok(number)
            }
            Err(error) => {
                roster.vacant.push(number);
                tracing::warn!(%error, "cannot start another ring worker");
                Err(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
            }
        }
    }

    /// A worker has nothing to do for its session: it serves nobody any more. `false`: there is a letter.
    pub(super) fn retire(&self, worker: u32) -> bool {
        let mut inbox = lock(&self.mailbox(worker).inbox);
        if !inbox.letters.is_empty() {
            return false;
        }
        let served = inbox.serves.take();
        drop(inbox);
        if let Some(core) = served {
            lock(&core.crew).retain(|member| *member != worker);
            lock(&self.roster).free.push(worker);
        }
        true
    }

    /// May a worker that serves nobody end? From then on its number is another thread's.
    pub(super) fn may_end(&self, worker: u32) -> bool {
        let mut roster = lock(&self.roster);
        let place = roster.free.iter().position(|free| *free == worker);
        let Some(place) = place.filter(|_| roster.free.len() > self.share) else { return false };
        roster.free.remove(place);
        roster.vacant.push(worker);
        true
    }
}

impl Engine {
    /// Starts the threads, at most `workers` of them for one session.
    pub fn start(workers: usize) -> Result<Arc<Engine>> {
        let engine = Arc::new(Engine { staff: Arc::new(Staff::new(workers)) });
        let staff = engine.staff.clone();
        let watcher = std::thread::Builder::new().name("ring-watcher".to_owned());
        let watcher = watcher.spawn(move || Watcher::new(staff).run());
        let watcher = watcher.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        let mut roster = lock(&engine.staff.roster);
        roster.threads[WATCHER as usize] = Some(watcher);
        for _ in 0..engine.staff.share {
            let worker = engine.staff.start_worker(&mut roster)?;
            roster.free.push(worker);
        }
        drop(roster);
        Ok(engine)
    }

    /// Does the watcher look at what is new, within `longest`? It never waits for storage.
    pub fn probe(&self, longest: Duration) -> bool {
        let watcher = self.staff.mailbox(WATCHER);
        let deadline = Instant::now() + longest;
        watcher.kick();
        let asked = watcher.kicks.load(Ordering::SeqCst);
        while asked.wrapping_sub(watcher.seen.load(Ordering::SeqCst)).cast_signed() > 0 {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// An engine that serves nothing by itself: tests take the turns.
    #[cfg(test)]
    pub(super) fn idle() -> Arc<Engine> {
        Arc::new(Engine { staff: Arc::new(Staff::new(1)) })
    }

    /// Ends the threads: nothing more is claimed, what is in flight is completed and published. A successor may go on from
    /// here, unless `false` says that some hang and are left behind.
    pub fn stop(&self) -> bool {
        let threads = {
            let mut roster = lock(&self.staff.roster);
            roster.stopping = true;
            std::mem::take(&mut roster.threads)
        };
        for mailbox in &self.staff.boxes[..threads.len()] {
            mailbox.stop.store(true, Ordering::SeqCst);
            mailbox.kick();
        }
        let deadline = Instant::now() + PATIENCE;
        let mut all = true;
        for thread in threads.into_iter().flatten() {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !thread.is_finished() {
                all = false;
            } else if thread.join().is_err() {
                tracing::error!("a ring thread had panicked");
            }
        }
        all
    }

    /// Serves the rings of a session from now on, until it is closing.
    pub(super) fn adopt(&self, core: &Arc<Core>) {
        self.staff.watch(core);
    }

    /// Makes all threads of a session look at what has changed.
    pub(super) fn kick(&self, core: &Core) {
        // Whoever becomes home after this load looks at everything anyway.
        self.staff.mailbox(core.home.load(Ordering::SeqCst)).kick();
        lock(&core.crew).iter().for_each(|worker| self.staff.mailbox(*worker).kick());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
