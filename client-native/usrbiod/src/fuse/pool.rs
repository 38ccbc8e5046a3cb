//! The threads that serve all sessions: one epoll, few workers.
//!
//! A session's fd is armed for one event (`EPOLLONESHOT`). The worker that gets it owes the session to arm it again: its
//! *duty*. It keeps the duty while the session's requests come one after the other, since then nobody else could help, and
//! a second thread would only be woken to find nothing (20 to 30 µs on another core). It gives the duty away when
//! it sees that requests keep waiting, or before an operation that takes long. Should an operation take long unexpectedly, a
//! timer finds that out and arms the session in the worker's place.

use super::buffer::{ReplyBuffer, RequestBuffer};
use super::crew::{Budget, Face, Left, Served};
use super::worker::Worker;
use crate::fs::locks::Answer;
use crate::session::Session;
use crate::types::{Errno, Hung, Result};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

/// Workers that stay when there is nothing to do.
const IDLE_WORKERS: u32 = 2;
/// Workers beside those that the budgets allow: some are always free to see what comes.
const SPARE_WORKERS: u32 = 16;
/// After this long without work, a worker beyond [`IDLE_WORKERS`] ends.
const LINGER: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How often a timer looks for operations that take long, while there are operations at all.
const TICK: Duration = Duration::from_millis(2);
const STOP: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// Set in the events of [`Pool::when_readable`]; the rest is a number.
const ACTION: u64 = 1 << 63;

type Action = Box<dyn FnOnce() + Send>;
type Unmounted = Box<dyn Fn(Arc<Session>) + Send + Sync>;

/// The workers, and the sessions that they serve. Dropping it ends them, each after the request that it is at.
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// A pool without sessions. `on_unmounted` is called on a worker, once for each session whose mount is gone; the pool
    /// has dropped the session by then.
    pub fn new(on_unmounted: impl Fn(Arc<Session>) + Send + Sync + 'static) -> Result<Pool> {
        let shared = Arc::new(Shared::new(Box::new(on_unmounted))?);
        for _ in 0..IDLE_WORKERS {
            shared.start_worker()?;
        }
        Ok(Pool { shared })
    }

    /// Serves `session` from now on. `EEXIST`: there is one of that number.
    pub fn add(&self, session: Arc<Session>) -> Result<()> {
        let number = session.number;
        let served = Arc::new(Served::new(session, &self.shared.budget));
        {
            let mut sessions = self.shared.sessions.write().unwrap_or_else(|e| e.into_inner());
            if sessions.contains_key(&number) {
                return Err(Errno::EXIST);
            }
            sessions.insert(number, served.clone());
        }
        self.shared.watch(&served).inspect_err(|_| self.shared.forget(number))
    }

    /// Asks the kernel for the requests that a predecessor read and did not answer. Call it before
    /// [`add`](Self::add) for a mount that was served before: a request that is being served already would be given
    /// again, and the first reply to it refused.
    pub fn resume(&self, session: &Session) -> Result<()> {
        session.channel.resend()
    }

    /// Serves session `name` no more, and waits up to `longest` for its requests that are being served: `ETIMEDOUT` when
    /// they still are; call it again then. The mount stays; requests wait for whoever serves it next.
    pub fn remove(&self, name: &str, longest: Duration) -> Result<()> {
        let Some(served) = self.shared.find(|s| s.session.config.name == name) else { return Ok(()) };
        served.closed.store(true, Ordering::SeqCst);
        // It cannot be there any more if the mount went away meanwhile.
        let _ = epoll::delete(&self.shared.epoll, &served.session.channel.fd);
        if !served.wait_idle(longest) {
            return Err(Errno::TIMEDOUT);
        }
        self.shared.forget(served.session.number);
        Ok(())
    }

    /// Reads no request of any session and begins no [action](Self::when_readable), until [`go_on`](Self::go_on). What runs
    /// goes on: [`running`](Self::running).
    pub fn pause(&self) {
        self.shared.actions().paused = true;
        for served in self.shared.all() {
            served.closed.store(true, Ordering::SeqCst);
            let _ = epoll::delete(&self.shared.epoll, &served.session.channel.fd);
            served.gate().close();
        }
    }

    /// Does something run still? Of what session, if it is a request. Asked while [paused](Self::pause): nothing that ended
    /// begins again.
    pub fn running(&self) -> Option<String> {
        let served = self.shared.find(|served| served.running() > 0);
        let acting = || (self.shared.actions().running > 0).then(String::new);
        served.map(|served| served.session.config.name.clone()).or_else(acting)
    }

    /// Ends a [pause](Self::pause).
    pub fn go_on(&self) {
        for served in self.shared.all() {
            served.closed.store(false, Ordering::SeqCst);
            served.gate().open();
            match self.shared.watch(&served) {
                Ok(()) | Err(Errno::EXIST) => (),
                Err(errno) => {
                    tracing::error!(%errno, session = served.session.config.name, "cannot wait for requests");
                }
            }
        }
        let mut actions = self.shared.actions();
        actions.paused = false;
        let held = std::mem::take(&mut actions.held);
        drop(actions);
        held.into_iter().for_each(|number| self.shared.act(number));
    }

    /// Requests of each session that hang, by its number.
    pub fn hung(&self) -> HashMap<u32, Hung> {
        let mut hung: HashMap<u32, Hung> = HashMap::new();
        for face in self.shared.faces().iter().filter(|face| !face.by_steps.load(Ordering::Relaxed)) {
            let session = face.works_for.load(Ordering::Relaxed);
            if let (Some(session), Some(age)) = (session.checked_sub(1), face.age(self.shared.clock)) {
                hung.entry(session as u32).or_default().add(1, age);
            }
        }
        hung.retain(|_, hung| hung.requests > 0);
        hung
    }

    /// Gives requests that waited for a lock their answers.
    pub fn answer(&self, answers: Vec<Answer>) {
        self.shared.answer(answers);
    }

    /// Runs `action` once, on a worker, when `fd` is readable; closes `fd` then. On an error it is run at once.
    pub fn when_readable(&self, fd: OwnedFd, action: Action) {
        self.shared.when_readable(fd, action);
    }

    /// Is a worker free to see what comes, within `longest`? Whatever hangs, one always is.
    pub fn probe(&self, longest: Duration) -> bool {
        let (deadline, before) = (Instant::now() + longest, self.shared.ticks.load(Ordering::SeqCst));
        while self.shared.ticks.load(Ordering::SeqCst) == before {
            if Instant::now() > deadline {
                return false;
            }
            self.shared.arm_timer();
            std::thread::sleep(TICK);
        }
        true
    }

    /// Threads at present.
    pub fn workers(&self) -> u32 {
        self.shared.workers.load(Ordering::Relaxed)
    }
}

impl crate::clients::WhenReadable for Pool {
    fn when_readable(&self, fd: OwnedFd, action: Action) {
        self.shared.when_readable(fd, action);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Adding 1 to a counter that nobody reads cannot overflow it.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
    }
}

pub(super) enum Event {
    Session(Arc<Served>),
    Action(u64),
    Tick,
    /// Nothing for as long as a worker lingers.
    Nothing,
    Stop,
}

pub(super) struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    stopping: AtomicBool,
    timer: OwnedFd,
    timer_armed: AtomicBool,
    /// How often the timer was seen.
    ticks: AtomicU64,
    sessions: RwLock<HashMap<u32, Arc<Served>>>,
    budget: Budget,
    actions: Mutex<Actions>,
    next_action: AtomicU64,
    faces: Mutex<Vec<Arc<Face>>>,
    workers: AtomicU32,
    waiting: AtomicU32,
    clock: Instant,
    on_unmounted: Unmounted,
}

/// What is done when fds become readable.
#[derive(Default)]
struct Actions {
    waiting: HashMap<u64, (OwnedFd, Action)>,
    running: u32,
    /// None is begun.
    paused: bool,
    /// Due since the pause.
    held: Vec<u64>,
}

impl Shared {
    fn new(on_unmounted: Unmounted) -> Result<Shared> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        Ok(Shared {
            epoll,
            stop,
            stopping: AtomicBool::new(false),
            timer,
            timer_armed: AtomicBool::new(false),
            ticks: AtomicU64::new(0),
            sessions: RwLock::default(),
            budget: Budget::default(),
            actions: Mutex::default(),
            next_action: AtomicU64::new(0),
            faces: Mutex::default(),
            workers: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            clock: Instant::now(),
            on_unmounted,
        })
    }

    fn faces(&self) -> MutexGuard<'_, Vec<Arc<Face>>> {
        self.faces.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn session(&self, number: u32) -> Option<Arc<Served>> {
        self.sessions.read().unwrap_or_else(|e| e.into_inner()).get(&number).cloned()
    }

    fn all(&self) -> Vec<Arc<Served>> {
        self.sessions.read().unwrap_or_else(|e| e.into_inner()).values().cloned().collect()
    }

    fn find(&self, wanted: impl Fn(&Served) -> bool) -> Option<Arc<Served>> {
        self.sessions.read().unwrap_or_else(|e| e.into_inner()).values().find(|s| wanted(s)).cloned()
    }

    fn actions(&self) -> MutexGuard<'_, Actions> {
        self.actions.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits for requests of a session.
    fn watch(&self, served: &Served) -> Result<()> {
        let data = EventData::new_u64(u64::from(served.session.number));
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        epoll::add(&self.epoll, &served.session.channel.fd, data, flags)
    }

    fn forget(&self, number: u32) {
        self.sessions.write().unwrap_or_else(|e| e.into_inner()).remove(&number);
    }

    fn start_worker(self: &Arc<Self>) -> Result<()> {
        let sessions = self.sessions.read().unwrap_or_else(|e| e.into_inner()).len();
        let most = self.budget.threads(sessions) + SPARE_WORKERS;
        let number = self.workers.fetch_add(1, Ordering::SeqCst);
        if number >= most {
            self.workers.fetch_sub(1, Ordering::SeqCst);
            return Err(Errno::AGAIN);
        }
        let face = Arc::new(Face::default());
        self.faces().push(face.clone());
        let shared = self.clone();
        let started = std::thread::Builder::new().name("usrbiod-fuse".to_owned()).spawn(move || {
            let mut worker = Worker::new(shared.clone(), face.clone());
            worker.run();
            shared.faces().retain(|f| !Arc::ptr_eq(f, &face));
        });
        started.map(drop).map_err(|e| {
            self.workers.fetch_sub(1, Ordering::SeqCst);
            tracing::warn!(error = %e, "cannot start another FUSE worker");
            Errno::from_io_error(&e).unwrap_or(Errno::AGAIN)
        })
    }

    /// Waits for something to do.
    pub(super) fn wait(self: &Arc<Self>) -> Event {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let extra = self.workers.load(Ordering::SeqCst) > IDLE_WORKERS;
        let event = self.next(extra.then_some(&LINGER));
        let others = self.waiting.fetch_sub(1, Ordering::SeqCst) - 1;
        if others == 0 && matches!(event, Event::Session(_) | Event::Action(_)) {
            // Nobody would see what comes next. At the limit, or without memory, it has to wait.
            let _ = self.start_worker();
        }
        event
    }

    /// Something to do, if there is.
    pub(super) fn poll(&self) -> Event {
        self.next(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    fn next(&self, timeout: Option<&Timespec>) -> Event {
        let mut events = Vec::with_capacity(1);
        let result = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout);
        let Some(event) = events.first() else {
            if let Err(e) = result
                && e != Errno::INTR
            {
                tracing::error!(errno = %e, "epoll_wait failed");
            }
            return Event::Nothing;
        };
        match event.data.u64() {
            STOP => Event::Stop,
            TIMER => Event::Tick,
            action if action & ACTION != 0 => Event::Action(action & !ACTION),
            number => self.session(number as u32).map_or(Event::Nothing, Event::Session),
        }
    }

    /// May this worker end, since it lingered for nothing?
    pub(super) fn may_end(&self) -> bool {
        let more = |workers: u32| (workers > IDLE_WORKERS).then(|| workers - 1);
        self.workers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    pub(super) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A worker takes up `served`, and owes to arm it again. False: the session has all the workers that it may have now.
    pub(super) fn take_up(&self, face: &Face, served: &Served) -> bool {
        let joined = served.join(&self.budget);
        if joined {
            let number = u64::from(served.session.number) + 1;
            face.works_for.store(number, Ordering::Relaxed);
            face.duty.store(number, Ordering::SeqCst);
        }
        self.arm_timer();
        joined
    }

    /// A worker has nothing to do with `served` any more.
    pub(super) fn leave(&self, face: &Face, served: &Served) {
        self.give_duty(face, served);
        face.works_for.store(0, Ordering::Relaxed);
        match served.leave(&self.budget) {
            Left::Nothing => (),
            Left::Arm => self.arm(served),
            Left::End => self.end_session(served),
        }
    }

    /// Arms the session again, if that is still this worker's duty.
    pub(super) fn give_duty(&self, face: &Face, served: &Served) {
        if face.duty.swap(0, Ordering::SeqCst) != 0 {
            self.arm(served);
        }
    }

    /// Does the worker owe to arm its session again?
    pub(super) fn has_duty(face: &Face) -> bool {
        face.duty.load(Ordering::Relaxed) != 0
    }

    fn arm(&self, served: &Served) {
        if served.closed.load(Ordering::SeqCst) {
            return;
        }
        let data = EventData::new_u64(u64::from(served.session.number));
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        match epoll::modify(&self.epoll, &served.session.channel.fd, data, flags) {
            // Removed meanwhile.
            Ok(()) | Err(Errno::NOENT) => (),
            Err(e) => {
                tracing::error!(errno = %e, session = served.session.config.name, "cannot wait for requests")
            }
        }
    }

    pub(super) fn begin(&self, face: &Face, at: Instant) {
        let since = at.duration_since(self.clock).as_micros() as u64 + 1;
        face.busy.store(since, Ordering::Relaxed);
    }

    pub(super) fn end(face: &Face) {
        face.busy.store(0, Ordering::Relaxed);
    }

    fn arm_timer(&self) {
        if self.timer_armed.swap(true, Ordering::SeqCst) {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as _ },
        };
        if let Err(e) = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            tracing::error!(errno = %e, "timerfd_settime failed");
        }
    }

    /// Arms the sessions of workers that are at one request for long.
    pub(super) fn tick(&self) {
        self.timer_armed.store(false, Ordering::SeqCst);
        self.ticks.fetch_add(1, Ordering::SeqCst);
        let mut owed = self.arm_owed();
        for face in self.faces().iter() {
            let duty = face.duty.load(Ordering::SeqCst);
            owed |= duty != 0;
            let long = face.age(self.clock).is_some_and(|age| age >= TICK / 2);
            // Whoever takes the duty away has it; the other finds 0.
            let taken =
                long && face.duty.compare_exchange(duty, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if taken
                && duty != 0
                && let Some(served) = self.session((duty - 1) as u32)
            {
                self.arm(&served);
            }
        }
        if owed {
            self.arm_timer();
        }
    }

    /// Arms sessions that were refused a worker by what others had, and would get one now. Are there others?
    fn arm_owed(&self) -> bool {
        let mut others = false;
        for served in self.budget.take_owed().into_iter().filter_map(|number| self.session(number)) {
            match served.is_owed(&self.budget) {
                Some(true) => self.arm(&served),
                Some(false) => {
                    served.keep_owed(&self.budget);
                    others = true;
                }
                None => (),
            }
        }
        others
    }

    /// The mount of `served` is gone: the session ends with the last of its requests. For a worker of its crew.
    pub(super) fn unmounted(&self, served: &Served) {
        if !served.closed.swap(true, Ordering::SeqCst) {
            let _ = epoll::delete(&self.epoll, &served.session.channel.fd);
            served.gone();
        }
    }

    fn end_session(&self, served: &Served) {
        let session = &served.session;
        self.forget(session.number);
        self.answer(session.locks.detach(session.number));
        (self.on_unmounted)(session.clone());
    }

    pub(super) fn answer(&self, answers: Vec<Answer>) {
        for answer in answers {
            let Some(served) = self.session(answer.session) else { continue };
            if let Err(e) = served.session.channel.answer(answer.unique, answer.result) {
                tracing::debug!(errno = %e, unique = answer.unique, "a lock's waiter could not be answered");
            }
        }
    }

    fn when_readable(&self, fd: OwnedFd, action: Action) {
        let number = self.next_action.fetch_add(1, Ordering::Relaxed) & !ACTION;
        let mut actions = self.actions();
        let data = EventData::new_u64(ACTION | number);
        let kept = actions.waiting.entry(number).or_insert((fd, action));
        let added = epoll::add(&self.epoll, kept.0.as_fd(), data, EventFlags::IN | EventFlags::ONESHOT);
        drop(actions);
        if let Err(e) = added {
            tracing::warn!(errno = %e, "cannot watch an fd; acting at once");
            self.act(number);
        }
    }

    pub(super) fn act(&self, number: u64) {
        let mut actions = self.actions();
        if actions.paused {
            return actions.held.push(number);
        }
        let Some((fd, action)) = actions.waiting.remove(&number) else { return };
        actions.running += 1;
        drop(actions);
        // Another process may hold a duplicate, which would keep a closed fd in the epoll set.
        let _ = epoll::delete(&self.epoll, &fd);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).is_err() {
            tracing::error!("an action on an fd panicked");
        }
        self.actions().running -= 1;
    }

    pub(super) fn buffers() -> (RequestBuffer, ReplyBuffer) {
        (RequestBuffer::new(), ReplyBuffer::new())
    }
}

#[cfg(test)]
mod tests;
