//! A ring worker: an event loop over the rings that it *attends*.
//!
//! A ring with work is claimed by one worker (compare-and-swap on `attended`), stepped until it is idle, and let go.
//! Each session has one *home*, the worker that watches its submit semaphores. When one is posted, the home
//! looks at all rings of the session: it attends the first with work itself and hands others to workers that sleep.
//!
//! While a home is awake it looks at the semaphores' values; its clients need no system call to post. Before it
//! sleeps it asks to be woken (the order of steps is in [`super::sem`]). If other workers still attend rings of the
//! session, it makes one of them its home instead, or every post would wake a worker that has nothing to do.
//!
//! Letting go of a ring: we store `attended = 0`, then look at it once more; the home that saw it attended loaded
//! `attended` after it saw the post. All are sequentially consistent, as are the index words, so one of the two sees both.

use super::engine::{Letter, Mailbox};
use super::file::Tick;
use super::io::{Event, Io};
use super::job::{Demand, Now, Ring, Turn};
use super::object::Core;
use super::slab::Slab;
use crate::sys::creds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest that an idle worker looks for the next request before it sleeps.
const LINGER: Duration = Duration::from_micros(50);
/// Lingering pays for rings whose next request comes this soon, a wake-up included.
const LINGER_PAYS_US: u32 = 100;
/// Requests that nobody posted for are found this late.
const SCAN_EVERY: Duration = Duration::from_millis(100);
/// Token of the mailbox's futex.
const KICK: u64 = u32::MAX as u64;

pub(super) struct Worker {
    me: u32,
    mailboxes: Arc<[Mailbox]>,
    io: Io,
    begun: Instant,
    homes: Slab<Home>,
    /// Homes whose semaphores are looked at, not waited for.
    active: Vec<usize>,
    attended: Vec<Attended>,
    events: Vec<Event>,
    kicks_seen: u32,
    kick_awaited: bool,
    any_rings: bool,
    next_scan: Instant,
}

/// A session whose semaphores this worker watches.
struct Home {
    core: Arc<Core>,
    /// There is a wait for the semaphore in the kernel.
    awaited: [bool; 3],
    active: bool,
    /// Somebody else's now, or closed; it goes when the kernel waits for nothing of it any more.
    left: bool,
}

struct Attended {
    ring: Arc<Ring>,
    turn: Turn,
    idle: bool,
}

impl Worker {
    pub(super) fn new(me: usize, mailboxes: Arc<[Mailbox]>, begun: Instant) -> Worker {
        // A write by us must take a file's set-id bits away, as one by its client would.
        if let Err(error) = creds::prepare_thread() {
            tracing::warn!(%error, "CAP_FSETID was not given up: writes keep set-id bits");
        }
        Worker {
            me: me as u32,
            mailboxes,
            io: Io::new(),
            begun,
            homes: Slab::default(),
            active: Vec::new(),
            attended: Vec::new(),
            events: Vec::new(),
            kicks_seen: 0,
            kick_awaited: false,
            any_rings: false,
            next_scan: begun + SCAN_EVERY,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            let instant = Instant::now();
            let now = Now { instant, tick: Tick::at(self.begun, instant) };
            let stopping = self.mailbox().stop.load(Ordering::Acquire);
            self.read_mail(instant);
            if self.io.pending() {
                self.io.events(&mut self.events);
                self.handle_events(instant);
            }
            let mut worked = self.turns(now, !stopping);
            self.io.submit();
            if stopping {
                if self.io.in_flight() == 0 && !worked {
                    return;
                }
                self.sleep_for_io();
                continue;
            }
            worked |= self.look_at_semaphores(instant);
            if instant >= self.next_scan {
                self.scan_all(instant);
            }
            if !worked && !self.linger() {
                self.sleep();
            }
        }
    }

    fn mailbox(&self) -> &Mailbox {
        &self.mailboxes[self.me as usize]
    }

    fn mark(&self) -> u32 {
        self.me + 1
    }

    fn read_mail(&mut self, now: Instant) {
        let kicks = self.mailbox().kicks.load(Ordering::SeqCst);
        if kicks == self.kicks_seen {
            return;
        }
        self.kicks_seen = kicks;
        for letter in self.mailbox().take() {
            match letter {
                Letter::Home(core) => {
                    let home = Home { core, awaited: [false; 3], active: false, left: false };
                    let index = self.homes.insert(home);
                    self.activate(index, now);
                }
                Letter::Attend(ring) => self.attend(ring),
            }
        }
        self.look_for_closed();
    }

    /// Sessions come and go, and rings of sessions.
    fn look_for_closed(&mut self) {
        let closed = |home: &Home| home.core.closing() && !home.left;
        let closed: Vec<usize> = self.homes.iter().filter(|(_, h)| closed(h)).map(|(i, _)| i).collect();
        for index in closed {
            self.leave(index);
        }
        self.any_rings = self.homes.iter().any(|(_, h)| h.core.ring_count.load(Ordering::Relaxed) > 0);
    }

    fn handle_events(&mut self, now: Instant) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Io(mut op, result) => match op.advance(result) {
                    Some(answer) => {
                        let ring = op.ring.clone();
                        ring.complete(&op, answer);
                    }
                    None => self.io.start(op),
                },
                Event::Futex(KICK) => self.kick_awaited = false,
                Event::Futex(token) => {
                    let (index, priority) = ((token >> 2) as usize, (token & 3) as usize);
                    let Some(home) = self.homes.get_mut(index) else { continue };
                    home.awaited[priority] = false;
                    match home.left {
                        true if home.awaited == [false; 3] => drop(self.homes.remove(index)),
                        true => {}
                        false => self.activate(index, now),
                    }
                }
            }
        }
        self.events = events;
    }

    /// A turn for every ring attended. Did any do something?
    fn turns(&mut self, now: Now, claim: bool) -> bool {
        let mut working = 0;
        for i in 0..self.attended.len() {
            let ring = self.attended[i].ring.clone();
            let io = &mut self.io;
            let turn = catch_unwind(AssertUnwindSafe(|| ring.turn(io, now, claim)));
            let attended = &mut self.attended[i];
            // The lock that the panicking thread held stays poisoned for `demand`: nobody serves the ring any more.
            attended.turn = turn.unwrap_or_else(|_| {
                ring.closed.store(true, Ordering::Release);
                Turn::default()
            });
            if attended.turn.worked {
                working += 1;
                if attended.idle {
                    attended.idle = false;
                    note_pause(&ring, self.begun, now.instant);
                }
            } else if !attended.idle {
                attended.idle = true;
                ring.idle_from.store(nanos(self.begun, now.instant), Ordering::Relaxed);
            }
        }
        if working > 1 {
            self.share();
        }
        working > 0
    }

    /// Several rings have work: another worker that sleeps may take one.
    fn share(&mut self) {
        let Some(other) = self.sleeper() else { return };
        let movable = |a: &Attended| a.turn.worked && a.turn.in_flight == 0;
        if let Some(index) = self.attended.iter().rposition(movable) {
            let Attended { ring, .. } = self.attended.swap_remove(index);
            self.hand_over(ring, other);
        }
    }

    fn sleeper(&self) -> Option<usize> {
        let asleep = |(i, m): &(usize, &Mailbox)| *i != self.me as usize && m.asleep.load(Ordering::Relaxed);
        self.mailboxes.iter().enumerate().find(asleep).map(|(i, _)| i)
    }

    fn hand_over(&self, ring: Arc<Ring>, other: usize) {
        ring.attended.store(other as u32 + 1, Ordering::SeqCst);
        self.mailboxes[other].send(Letter::Attend(ring));
    }

    fn attend(&mut self, ring: Arc<Ring>) {
        self.attended.push(Attended { ring, turn: Turn::default(), idle: true });
    }

    /// Watches a session awake: its clients need not wake anybody.
    fn activate(&mut self, index: usize, now: Instant) {
        let Some(home) = self.homes.get_mut(index) else { return };
        if !home.active {
            home.active = true;
            self.active.push(index);
        }
        let semaphores = home.core.semaphores.iter().flatten();
        for (semaphore, _) in semaphores.zip(home.awaited).filter(|(_, awaited)| !awaited) {
            semaphore.quiet();
        }
        self.scan(index, now);
    }

    /// Looks at all rings of a session, most urgent first, after its semaphores were drained.
    fn scan(&mut self, index: usize, now: Instant) -> bool {
        let Some(home) = self.homes.get(index) else { return false };
        let mut found = false;
        for ring in home.core.rings().iter() {
            match ring.attended.load(Ordering::SeqCst) {
                0 => found |= self.claim_if_wanted(ring, now),
                other if other != self.mark() => {
                    let mailbox = &self.mailboxes[other as usize - 1];
                    // It sleeps over requests in flight and may not have seen these.
                    if mailbox.asleep.load(Ordering::SeqCst) && ring.demand(now) != Demand::Nothing {
                        mailbox.kick();
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn claim_if_wanted(&mut self, ring: &Arc<Ring>, now: Instant) -> bool {
        if ring.demand(now) == Demand::Nothing {
            return false;
        }
        let claimed = ring.attended.compare_exchange(0, self.mark(), Ordering::SeqCst, Ordering::SeqCst);
        if claimed.is_err() {
            return false;
        }
        match self.sleeper() {
            Some(other) if !self.attended.is_empty() => self.hand_over(ring.clone(), other),
            _ => self.attend(ring.clone()),
        }
        true
    }

    /// Looks at the values of the semaphores that nobody wakes us for.
    fn look_at_semaphores(&mut self, now: Instant) -> bool {
        let mut found = false;
        for i in 0..self.active.len() {
            let index = self.active[i];
            let Some(home) = self.homes.get(index) else { continue };
            if self.all_mine(&home.core) {
                continue;
            }
            let mut posted = false;
            let semaphores = home.core.semaphores.iter().flatten();
            for (semaphore, _) in semaphores.zip(home.awaited).filter(|(_, awaited)| !awaited) {
                if semaphore.posted() {
                    semaphore.quiet();
                    posted = true;
                }
            }
            found |= posted && self.scan(index, now);
        }
        found
    }

    fn all_mine(&self, core: &Core) -> bool {
        let mine = self.attended.iter().filter(|a| std::ptr::eq(&*a.ring.core, core)).count();
        mine == core.ring_count.load(Ordering::Relaxed) as usize
    }

    /// For clients that submit without a post, and for what must happen some time.
    fn scan_all(&mut self, now: Instant) {
        self.next_scan = now + SCAN_EVERY;
        let all: Vec<usize> = self.homes.iter().filter(|(_, h)| !h.left).map(|(i, _)| i).collect();
        for index in all {
            self.scan(index, now);
            let Some(home) = self.homes.get(index) else { continue };
            for ring in home.core.rings().iter() {
                ring.drop_closed();
            }
        }
        self.look_for_closed();
    }

    /// Looks for the next request a little longer, where that lately paid. Was there one?
    fn linger(&mut self) -> bool {
        let pays = |a: &Attended| a.ring.pause_us.load(Ordering::Relaxed) < LINGER_PAYS_US;
        if self.io.in_flight() > 0 || !self.attended.iter().any(pays) {
            return false;
        }
        let begun = Instant::now();
        let mut now = begun;
        while now - begun < LINGER {
            if self.attended.iter().any(|a| a.ring.demand(now) == Demand::Work)
                || self.mailbox().kicks.load(Ordering::Relaxed) != self.kicks_seen
                || self.io.pending()
                || self.look_at_semaphores(now)
            {
                return true;
            }
            // On a machine with few cores the client may need this one.
            std::thread::yield_now();
            now = Instant::now();
        }
        false
    }

    fn sleep(&mut self) {
        let now = Instant::now();
        if self.let_go(now) || !self.ask_to_be_woken(now) {
            return;
        }
        let deadline = self.attended.iter().filter_map(|a| a.turn.deadline).min();
        let scan = self.any_rings.then_some(self.next_scan);
        let until = deadline.into_iter().chain(scan).min();
        self.sleep_until(until.map(|until| until.saturating_duration_since(now)));
    }

    fn sleep_for_io(&mut self) {
        if self.io.in_flight() > 0 {
            self.io.sleep(None, &mut self.events);
            self.handle_events(Instant::now());
        }
    }

    fn sleep_until(&mut self, timeout: Option<Duration>) {
        if !self.kick_awaited {
            self.kick_awaited = true;
            self.io.wait_for(KICK, &self.mailboxes[self.me as usize].kicks, self.kicks_seen);
        }
        // See `Mailbox::kick`.
        self.mailbox().asleep.store(true, Ordering::SeqCst);
        if self.mailbox().kicks.load(Ordering::SeqCst) == self.kicks_seen {
            self.io.sleep(timeout, &mut self.events);
        }
        self.mailbox().asleep.store(false, Ordering::SeqCst);
        self.handle_events(Instant::now());
    }

    /// Lets go of idle rings, so that whoever is awake can take them. Did one get work meanwhile?
    fn let_go(&mut self, now: Instant) -> bool {
        let mut found = false;
        let (io_full, mark) = (!self.io.has_room(), self.mark());
        self.attended.retain_mut(|attended| {
            let Attended { ring, turn, .. } = attended;
            if turn.in_flight > 0 || turn.deadline.is_some() {
                found |= !io_full && ring.demand(now) == Demand::Work;
                return true;
            }
            ring.attended.store(0, Ordering::SeqCst);
            match ring.demand(now) {
                Demand::Nothing => return false,
                Demand::Work => found |= !io_full,
                Demand::Later(at) => turn.deadline = Some(at),
            }
            ring.attended.compare_exchange(0, mark, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        });
        found
    }

    /// Makes sure that somebody is woken for every session that we watch. `false`: there is work.
    fn ask_to_be_woken(&mut self, now: Instant) -> bool {
        while let Some(index) = self.active.pop() {
            let Some(home) = self.homes.get_mut(index) else { continue };
            home.active = false;
            if home.left {
                continue;
            }
            if let Some(other) = self.awake_elsewhere(index) {
                let core = self.leave(index);
                self.mailboxes[other].send(Letter::Home(core));
                continue;
            }
            let Some(home) = self.homes.get(index) else { continue };
            let semaphores = home.core.semaphores.iter().flatten();
            for (semaphore, _) in semaphores.zip(home.awaited).filter(|(_, awaited)| !awaited) {
                semaphore.expect_wake();
            }
            if self.scan(index, now) {
                self.activate(index, now);
                return false;
            }
            self.wait_for_posts(index);
        }
        true
    }

    fn wait_for_posts(&mut self, index: usize) {
        let Some(home) = self.homes.get_mut(index) else { return };
        for (priority, semaphore) in home.core.semaphores.iter().flatten().enumerate() {
            if !home.awaited[priority]
                && let Some(futex) = semaphore.futex()
            {
                home.awaited[priority] = true;
                self.io.wait_for((index as u64) << 2 | priority as u64, futex, 0);
            }
        }
    }

    /// Another worker that is awake and attends a ring of this session.
    fn awake_elsewhere(&self, index: usize) -> Option<usize> {
        let rings = self.homes.get(index)?.core.rings();
        let mut others = rings.iter().map(|ring| ring.attended.load(Ordering::SeqCst));
        let other = others.find(|other| {
            *other != 0 && *other != self.mark() && {
                let mailbox = &self.mailboxes[*other as usize - 1];
                !mailbox.asleep.load(Ordering::SeqCst)
            }
        })?;
        Some(other as usize - 1)
    }

    /// Is not home of this session any more.
    fn leave(&mut self, index: usize) -> Arc<Core> {
        let home = self.homes.get_mut(index).expect("the caller has looked it up");
        home.left = true;
        let core = home.core.clone();
        for (priority, _) in home.awaited.iter().enumerate().filter(|(_, awaited)| **awaited) {
            self.io.cancel((index as u64) << 2 | priority as u64);
        }
        if home.awaited == [false; 3] {
            self.homes.remove(index);
        }
        self.active.retain(|active| *active != index);
        core
    }
}

fn nanos(begun: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(begun).as_nanos() as u64
}

/// Work came after a pause: remembers how long it lately took.
fn note_pause(ring: &Ring, begun: Instant, now: Instant) {
    let pause = nanos(begun, now).saturating_sub(ring.idle_from.load(Ordering::Relaxed)) / 1000;
    let pause = pause.min(1000) as u32;
    let before = ring.pause_us.load(Ordering::Relaxed).min(1000);
    ring.pause_us.store((3 * before + pause) / 4, Ordering::Relaxed);
}
