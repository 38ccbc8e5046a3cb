//! A ring worker: an event loop over the rings of one session that it *attends*.
//!
//! A ring with work is claimed by one worker (compare-and-swap on `attended`), stepped until it is idle, and let go.
//! Each session has one *home*, the thread that watches its submit semaphores: the watcher while the session is idle, then a
//! worker. When one is posted, the home looks at all rings of the session: it attends the first with work itself and hands
//! others to workers of the session that sleep, or to one more.
//!
//! While a home is awake it looks at the semaphores' values; its clients need no system call to post. Before it
//! sleeps it asks to be woken (the order of steps is in [`super::sem`]). If other workers still attend rings of the
//! session, it makes one of them its home instead, or every post would wake a worker that has nothing to do.
//!
//! Letting go of a ring: we store `attended = 0`, then look at it once more; the home that saw it attended loaded
//! `attended` after it saw the post. All are sequentially consistent, as are the index words, so one of the two sees both.

use super::engine::{Letter, Mailbox, Staff};
use super::file::Tick;
use super::home::Homes;
use super::io::{Event, Io};
use super::job::{Demand, Now, Ring, Turn};
use super::object::Core;
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
pub(super) const SCAN_EVERY: Duration = Duration::from_millis(100);
/// How long a worker stays home of a session without work.
const STAY: Duration = Duration::from_secs(2);
/// How long a worker that serves nobody waits for the next session before it ends.
const PARK: Duration = Duration::from_secs(10);
/// Token of the mailbox's futex.
pub(super) const KICK: u64 = u32::MAX as u64;

pub(super) struct Worker {
    me: u32,
    staff: Arc<Staff>,
    io: Io,
    /// At most one that is not left.
    homes: Homes,
    /// Its semaphores are looked at, not waited for.
    active: Option<usize>,
    attended: Vec<Attended>,
    events: Vec<Event>,
    kicks_seen: u32,
    kick_awaited: bool,
    next_scan: Instant,
    worked_at: Instant,
}

struct Attended {
    ring: Arc<Ring>,
    turn: Turn,
    idle: bool,
}

impl Worker {
    pub(super) fn new(me: u32, staff: Arc<Staff>) -> Worker {
        // A write by us must take a file's set-id bits away, as one by its client would.
        if let Err(error) = creds::prepare_writer() {
            tracing::warn!(%error, "CAP_FSETID was not given up: writes keep set-id bits");
        }
        let begun = staff.begun;
        Worker {
            me,
            staff,
            io: Io::new(),
            homes: Homes::default(),
            active: None,
            attended: Vec::new(),
            events: Vec::new(),
            kicks_seen: 0,
            kick_awaited: false,
            next_scan: begun,
            worked_at: begun,
        }
    }

    pub(super) fn run(mut self) {
        // The number may have been another thread's.
        self.mailbox().asleep.store(false, Ordering::SeqCst);
        loop {
            let instant = Instant::now();
            let now = Now { instant, tick: Tick::at(self.staff.begun, instant) };
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
                self.scan_home(instant);
            }
            if worked {
                self.worked_at = instant;
            } else if !self.linger() {
                if self.serves_nobody() && !self.park() {
                    return;
                }
                self.sleep();
            }
        }
    }

    fn mailbox(&self) -> &Mailbox {
        self.staff.mailbox(self.me)
    }

    fn read_mail(&mut self, now: Instant) {
        let kicks = self.mailbox().kicks.load(Ordering::SeqCst);
        if kicks == self.kicks_seen {
            return;
        }
        self.kicks_seen = kicks;
        for letter in self.mailbox().take() {
            match letter {
                Letter::Home(core) => _ = self.homes.insert(core),
                Letter::Attend(ring) => self.attend(ring),
            }
            self.worked_at = now;
        }
        // Also when somebody kicks without a word: a ring came, or a post woke the home before us.
        self.homes.leave_closed(&mut self.io);
        self.active = self.active.filter(|index| self.homes.core(*index).is_some());
        let home = self.homes.all().next().map(|(index, _)| index);
        if let Some(index) = home {
            self.activate(index, now);
        }
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
                    if let Some(index) = self.homes.woken(token, &self.staff) {
                        self.activate(index, now);
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
                    note_pause(&ring, self.staff.begun, now.instant);
                }
            } else if !attended.idle {
                attended.idle = true;
                ring.idle_from.store(nanos(self.staff.begun, now.instant), Ordering::Relaxed);
            }
        }
        if working > 1 {
            self.share();
        }
        working > 0
    }

    /// Several rings have work: another worker may take one.
    fn share(&mut self) {
        let movable = |a: &Attended| a.turn.worked && a.turn.in_flight == 0;
        if let Some(index) = self.attended.iter().rposition(movable)
            && self.staff.hand_over(&self.attended[index].ring, self.me)
        {
            self.attended.swap_remove(index);
        }
    }

    fn attend(&mut self, ring: Arc<Ring>) {
        self.attended.push(Attended { ring, turn: Turn::default(), idle: true });
    }

    /// Watches the session awake: its clients need not wake anybody.
    fn activate(&mut self, index: usize, now: Instant) {
        self.active = Some(index);
        self.homes.quiet(index);
        self.scan(index, now);
    }

    /// Looks at all rings of the session, most urgent first, after its semaphores were drained.
    fn scan(&mut self, index: usize, now: Instant) -> bool {
        let Some(core) = self.homes.core(index).cloned() else { return false };
        let mut found = false;
        for ring in core.rings().iter() {
            match ring.attended.load(Ordering::SeqCst) {
                0 => found |= self.claim_if_wanted(ring, now),
                other if other != self.me => {
                    let mailbox = self.staff.mailbox(other);
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
        let claimed = ring.attended.compare_exchange(0, self.me, Ordering::SeqCst, Ordering::SeqCst);
        if claimed.is_err() {
            return false;
        }
        if self.attended.is_empty() || !self.staff.hand_over(ring, self.me) {
            self.attend(ring.clone());
        }
        true
    }

    /// Looks at the values of the semaphores that nobody wakes us for.
    fn look_at_semaphores(&mut self, now: Instant) -> bool {
        let Some(index) = self.active else { return false };
        let Some(core) = self.homes.core(index) else { return false };
        if self.attended.len() == core.ring_count.load(Ordering::Relaxed) as usize {
            return false;
        }
        self.homes.posted(index) && self.scan(index, now)
    }

    /// For clients that submit without a post, and for what must happen some time.
    fn scan_home(&mut self, now: Instant) {
        self.next_scan = now + SCAN_EVERY;
        self.homes.leave_closed(&mut self.io);
        let home = self.homes.all().next().map(|(index, core)| (index, core.clone()));
        let Some((index, core)) = home else { return };
        self.scan(index, now);
        let rings = core.rings();
        let nobody = rings.iter().all(|ring| ring.attended.load(Ordering::SeqCst) == 0);
        let quiet =
            nobody && self.io.in_flight() == 0 && now.saturating_duration_since(self.worked_at) > STAY;
        for ring in rings.iter() {
            if quiet { ring.forget() } else { ring.drop_closed() }
        }
        if quiet {
            self.leave(index);
            self.staff.watch(&core);
        }
    }

    /// Looks for the next request a little longer, where that lately paid. Was there one?
    fn linger(&mut self) -> bool {
        let pays = |a: &Attended| a.ring.pause_us.load(Ordering::Relaxed) < LINGER_PAYS_US;
        if self.io.in_flight() > 0 || !self.attended.iter().any(pays) {
            return false;
        }
        // More than there are cores would take them from each other.
        let staff = self.staff.clone();
        let others = staff.lingering.fetch_add(1, Ordering::Relaxed) as usize;
        let found = others < staff.share && self.look_for_more();
        staff.lingering.fetch_sub(1, Ordering::Relaxed);
        found
    }

    fn look_for_more(&mut self) -> bool {
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

    fn serves_nobody(&self) -> bool {
        self.attended.is_empty() && self.io.in_flight() == 0 && self.homes.all().next().is_none()
    }

    /// Waits for a session to serve. `false`: there was none for long, and the thread may end.
    fn park(&mut self) -> bool {
        if !self.staff.retire(self.me) {
            return true;
        }
        let mut longest = Some(PARK);
        while self.mailbox().kicks.load(Ordering::SeqCst) == self.kicks_seen {
            let begun = Instant::now();
            self.sleep_until(longest);
            if longest.is_some_and(|longest| begun.elapsed() >= longest) {
                if self.staff.may_end(self.me) {
                    return false;
                }
                longest = None;
            }
        }
        true
    }

    fn sleep(&mut self) {
        let now = Instant::now();
        if self.let_go(now) || !self.ask_to_be_woken(now) {
            return;
        }
        let deadline = self.attended.iter().filter_map(|a| a.turn.deadline).min();
        let scan = self.homes.all().next().map(|_| self.next_scan);
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
        let mailbox = self.staff.mailbox(self.me);
        if !self.kick_awaited {
            self.kick_awaited = true;
            self.io.wait_for(KICK, &mailbox.kicks, self.kicks_seen);
        }
        // See `Mailbox::kick`.
        mailbox.asleep.store(true, Ordering::SeqCst);
        if mailbox.kicks.load(Ordering::SeqCst) == self.kicks_seen {
            self.io.sleep(timeout, &mut self.events);
        }
        mailbox.asleep.store(false, Ordering::SeqCst);
        self.handle_events(Instant::now());
    }

    /// Lets go of idle rings, so that whoever is awake can take them. Did one get work meanwhile?
    fn let_go(&mut self, now: Instant) -> bool {
        let mut found = false;
        let (io_full, me) = (!self.io.has_room(), self.me);
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
            ring.attended.compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        });
        found
    }

    /// Makes sure that somebody is woken for the session that we watch. `false`: there is work.
    fn ask_to_be_woken(&mut self, now: Instant) -> bool {
        let Some(index) = self.active.take() else { return true };
        let Some(core) = self.homes.core(index).cloned() else { return true };
        if let Some(other) = self.awake_elsewhere(&core)
            && self.staff.move_home(&core, other)
        {
            self.leave(index);
            return true;
        }
        self.homes.expect_wake(index);
        if self.scan(index, now) {
            self.activate(index, now);
            return false;
        }
        self.homes.wait(index, &mut self.io);
        true
    }

    /// Another worker that is awake and attends a ring of this session.
    fn awake_elsewhere(&self, core: &Core) -> Option<u32> {
        let rings = core.rings();
        let mut others = rings.iter().map(|ring| ring.attended.load(Ordering::SeqCst));
        others.find(|other| {
            *other != 0 && *other != self.me && !self.staff.mailbox(*other).asleep.load(Ordering::SeqCst)
        })
    }

    /// Is not home of this session any more.
    fn leave(&mut self, index: usize) {
        self.homes.leave(index, &mut self.io);
        self.active = None;
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
