//! The watcher: home of all sessions that have no work. When one has, a worker becomes its home.
//!
//! It looks at index words and semaphores, and waits in the kernel for those; it never touches a file, a buffer, or a lock that
//! is held over a call that may block.

use super::engine::{Letter, Staff, WATCHER};
use super::home::Homes;
use super::io::{Event, Io};
use super::job::Demand;
use super::worker::{KICK, SCAN_EVERY};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// When no worker can be had, it is tried again after this.
const RETRY: Duration = Duration::from_millis(10);

pub(super) struct Watcher {
    staff: Arc<Staff>,
    io: Io,
    homes: Homes,
    events: Vec<Event>,
    kicks_seen: u32,
    kick_awaited: bool,
    next_scan: Instant,
}

impl Watcher {
    pub(super) fn new(staff: Arc<Staff>) -> Watcher {
        let next_scan = staff.begun + SCAN_EVERY;
        Watcher {
            staff,
            io: Io::new(),
            homes: Homes::default(),
            events: Vec::new(),
            kicks_seen: 0,
            kick_awaited: false,
            next_scan,
        }
    }

    pub(super) fn run(mut self) {
        let staff = self.staff.clone();
        let mailbox = staff.mailbox(WATCHER);
        while !mailbox.stop.load(Ordering::Acquire) {
            let kicks = mailbox.kicks.load(Ordering::SeqCst);
            let kicked = kicks != self.kicks_seen;
            self.kicks_seen = kicks;
            mailbox.seen.store(kicks, Ordering::SeqCst);
            if kicked {
                for letter in mailbox.take() {
                    if let Letter::Home(core) = letter {
                        self.homes.insert(core);
                    }
                }
            }
            let now = Instant::now();
            // A kick says that something has changed, not where.
            if kicked || now >= self.next_scan {
                self.look_at_all(now);
            }
            self.sleep(now);
        }
    }

    fn look_at_all(&mut self, now: Instant) {
        self.next_scan = now + SCAN_EVERY;
        self.homes.leave_closed(&mut self.io);
        let all: Vec<usize> = self.homes.all().map(|(index, _)| index).collect();
        for index in all {
            self.look_at(index, now);
        }
    }

    /// Finds a worker for a session with work, waits for posts to one without.
    fn look_at(&mut self, index: usize, now: Instant) {
        self.homes.expect_wake(index);
        let Some(core) = self.homes.core(index).cloned() else { return };
        if !core.rings().iter().any(|ring| ring.demand(now) != Demand::Nothing) {
            return self.homes.wait(index, &mut self.io);
        }
        match self.staff.serve(&core) {
            Ok(()) => _ = self.homes.leave(index, &mut self.io),
            Err(_) => self.next_scan = self.next_scan.min(now + RETRY),
        }
    }

    fn sleep(&mut self, now: Instant) {
        let mailbox = self.staff.mailbox(WATCHER);
        if !self.kick_awaited {
            self.kick_awaited = true;
            self.io.wait_for(KICK, &mailbox.kicks, self.kicks_seen);
        }
        let rings = self.homes.all().any(|(_, core)| core.ring_count.load(Ordering::Relaxed) > 0);
        let timeout = rings.then(|| self.next_scan.saturating_duration_since(now));
        // See `Mailbox::kick`.
        mailbox.asleep.store(true, Ordering::SeqCst);
        if mailbox.kicks.load(Ordering::SeqCst) == self.kicks_seen {
            self.io.sleep(timeout, &mut self.events);
        }
        mailbox.asleep.store(false, Ordering::SeqCst);
        let now = Instant::now();
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Futex(KICK) => self.kick_awaited = false,
                Event::Futex(token) => {
                    if let Some(index) = self.homes.woken(token, &self.staff) {
                        self.look_at(index, now);
                    }
                }
                Event::Io(..) => {}
            }
        }
        self.events = events;
    }
}
