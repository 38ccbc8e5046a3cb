//! The ring workers of a daemon: as many as there are cores, shared by all sessions.

use super::job::Ring;
use super::object::{Core, lock};
use super::worker::Worker;
use crate::types::{Errno, Result};
use rustix::thread::futex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

/// The ring workers. Idle ones sleep in the kernel.
pub struct Engine {
    mailboxes: Arc<[Mailbox]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    next: AtomicUsize,
}

/// What one worker tells another.
pub(super) enum Letter {
    /// You are home of this session now: watch its semaphores.
    Home(Arc<Core>),
    /// Attend this ring; it is marked as yours.
    Attend(Arc<Ring>),
}

/// Where a worker is reached.
#[derive(Default)]
pub(super) struct Mailbox {
    letters: Mutex<Vec<Letter>>,
    /// Changes when there is something to look at.
    pub(super) kicks: AtomicU32,
    /// In the kernel, or about to be: a kick needs a wake-up.
    pub(super) asleep: AtomicBool,
    pub(super) stop: AtomicBool,
}

impl Mailbox {
    pub(super) fn send(&self, letter: Letter) {
        lock(&self.letters).push(letter);
        self.kick();
    }

    pub(super) fn take(&self) -> Vec<Letter> {
        std::mem::take(&mut *lock(&self.letters))
    }

    /// Order of steps: we change `kicks`, then load `asleep`; the worker stores `asleep`, then loads `kicks`. All four are
    /// sequentially consistent, so at least one side sees the other.
    pub(super) fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            let _ = futex::wake(&self.kicks, futex::Flags::empty(), 1);
        }
    }
}

impl Engine {
    /// Starts `workers` threads, at least one.
    pub fn start(workers: usize) -> Result<Arc<Engine>> {
        let mailboxes: Arc<[Mailbox]> = (0..workers.max(1)).map(|_| Mailbox::default()).collect();
        let engine = Arc::new(Engine { mailboxes, threads: Mutex::default(), next: AtomicUsize::new(0) });
        let begun = Instant::now();
        for me in 0..engine.mailboxes.len() {
            let mailboxes = engine.mailboxes.clone();
            let thread = std::thread::Builder::new().name(format!("ring-{me}"));
            // The io_uring belongs to the thread that makes it.
            let thread = thread.spawn(move || Worker::new(me, mailboxes, begun).run());
            match thread {
                Ok(thread) => lock(&engine.threads).push(thread),
                Err(error) => {
                    engine.stop();
                    return Err(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN));
                }
            }
        }
        Ok(engine)
    }

    /// An engine that serves nothing by itself: tests take the turns.
    #[cfg(test)]
    pub(super) fn idle() -> Arc<Engine> {
        let mailboxes = Arc::new([Mailbox::default()]);
        Arc::new(Engine { mailboxes, threads: Mutex::default(), next: AtomicUsize::new(0) })
    }

    /// Ends the workers: nothing more is claimed, what is in flight is completed and published. A successor may go on from
    /// here.
    pub fn stop(&self) {
        for mailbox in self.mailboxes.iter() {
            mailbox.stop.store(true, Ordering::SeqCst);
            mailbox.kick();
        }
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a ring worker had panicked");
            }
        }
    }

    /// Serves the rings of a session from now on, until it is closing.
    pub(super) fn adopt(&self, core: &Arc<Core>) {
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.mailboxes.len();
        self.mailboxes[worker].send(Letter::Home(core.clone()));
    }

    /// Makes all workers look at what has changed.
    pub(super) fn kick(&self) {
        self.mailboxes.iter().for_each(Mailbox::kick);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}
