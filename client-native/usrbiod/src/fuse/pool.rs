//! The threads that serve all sessions: one epoll, few workers.
//!
//! A session's fd is armed for one event (`EPOLLONESHOT`). The worker that gets it owes the session to arm it again: its
//! *duty*. It keeps the duty while the session's requests come one after the other, since then nobody else could help, and
//! a second thread would only be woken to find nothing (20 to 30 µs on another core). It gives the duty away when
//! it sees that requests keep waiting, or before an operation that takes long. Should an operation take long unexpectedly, a
//! timer finds that out and arms the session in the worker's place.

use super::abi::init;
use super::buffer::{ReplyBuffer, RequestBuffer};
use super::replay::Journal;
use super::worker::Worker;
use crate::fs::locks::Answer;
use crate::session::Session;
use crate::types::{Errno, Result};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

/// Workers that stay when there is nothing to do.
const IDLE_WORKERS: u32 = 2;
/// Most workers.
const MAX_WORKERS: u32 = 96;
/// Most workers of one session: others are served while the storage of two hangs.
const SHARE: u32 = 32;
/// After this long without work, a worker beyond [`IDLE_WORKERS`] ends.
const LINGER: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How often a timer looks for operations that take long, while there are operations at all.
const TICK: Duration = Duration::from_millis(2);
/// Longest time that [`Pool::remove`] waits for requests that are being served.
const REMOVE: Duration = Duration::from_secs(10);

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
        let served = Arc::new(Served {
            journal: Journal::new(session.state.clone()),
            session,
            closed: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            crew: Mutex::default(),
            idle: Condvar::new(),
        });
        {
            let mut sessions = self.shared.sessions.write().unwrap_or_else(|e| e.into_inner());
            if sessions.contains_key(&number) {
                return Err(Errno::EXIST);
            }
            sessions.insert(number, served.clone());
        }
        let data = EventData::new_u64(u64::from(number));
        let flags = EventFlags::IN | EventFlags::ONESHOT;
        epoll::add(&self.shared.epoll, &served.session.channel.fd, data, flags).inspect_err(|_| {
            self.shared.forget(number);
        })
    }

    /// Asks the kernel for the requests that a predecessor read and did not answer. Call it before
    /// [`add`](Self::add) for a mount that was served before: a request that is being served already would be given
    /// again, and the first reply to it refused.
    pub fn resume(&self, session: &Session) -> Result<()> {
        session.channel.resend()
    }

    /// Serves session `name` no more, and waits for its requests that are being served: `ETIMEDOUT` when they still are
    /// after 10 s. The mount stays; requests wait for whoever serves it next.
    pub fn remove(&self, name: &str) -> Result<()> {
        let sessions = self.shared.sessions.read().unwrap_or_else(|e| e.into_inner());
        let found = sessions.values().find(|s| s.session.config.name == name).cloned();
        drop(sessions);
        let Some(served) = found else { return Ok(()) };
        served.closed.store(true, Ordering::SeqCst);
        // It cannot be there any more if the mount went away meanwhile.
        let _ = epoll::delete(&self.shared.epoll, &served.session.channel.fd);
        self.shared.forget(served.session.number);
        served.wait_idle(REMOVE)
    }

    /// Gives requests that waited for a lock their answers.
    pub fn answer(&self, answers: Vec<Answer>) {
        self.shared.answer(answers);
    }

    /// Runs `action` once, on a worker, when `fd` is readable; closes `fd` then. On an error it is run at once.
    pub fn when_readable(&self, fd: OwnedFd, action: Action) {
        self.shared.when_readable(fd, action);
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

/// A session in the pool.
pub(super) struct Served {
    pub(super) session: Arc<Session>,
    pub(super) journal: Journal,
    /// No request of it may be read any more.
    pub(super) closed: AtomicBool,
    /// A panic was logged: one is enough.
    pub(super) panicked: AtomicBool,
    crew: Mutex<Crew>,
    idle: Condvar,
}

/// Who works for a session.
#[derive(Default)]
struct Crew {
    workers: u32,
    /// The session was to be armed when it had its share: whoever leaves arms it.
    owed: bool,
}

impl Served {
    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait_idle(&self, longest: Duration) -> Result<()> {
        let waited = self.idle.wait_timeout_while(self.crew(), longest, |crew| crew.workers > 0);
        let (crew, _) = waited.unwrap_or_else(|e| e.into_inner());
        if crew.workers == 0 { Ok(()) } else { Err(Errno::TIMEDOUT) }
    }

    /// Does `SETXATTR` have its longer form?
    pub(super) fn setxattr_ext(&self) -> bool {
        self.session.channel.agreed() & init::SETXATTR_EXT != 0
    }
}

/// What other threads see of a worker.
#[derive(Default)]
pub(super) struct Face {
    /// The session that it owes to arm again, plus 1.
    duty: AtomicU64,
    /// Since when it is at a request, in µs of the pool's clock; 0 when it is not.
    busy: AtomicU64,
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
    sessions: RwLock<HashMap<u32, Arc<Served>>>,
    actions: Mutex<HashMap<u64, (OwnedFd, Action)>>,
    next_action: AtomicU64,
    faces: Mutex<Vec<Arc<Face>>>,
    workers: AtomicU32,
    waiting: AtomicU32,
    clock: Instant,
    on_unmounted: Unmounted,
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
            sessions: RwLock::default(),
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

    fn forget(&self, number: u32) {
        self.sessions.write().unwrap_or_else(|e| e.into_inner()).remove(&number);
    }

    fn start_worker(self: &Arc<Self>) -> Result<()> {
        let number = self.workers.fetch_add(1, Ordering::SeqCst);
        if number >= MAX_WORKERS {
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

    /// A worker took up `served` and owes to arm it again.
    pub(super) fn take_up(&self, face: &Face, served: &Served) {
        served.crew().workers += 1;
        face.duty.store(u64::from(served.session.number) + 1, Ordering::SeqCst);
        self.arm_timer();
    }

    /// A worker has nothing to do with `served` any more.
    pub(super) fn leave(&self, face: &Face, served: &Served) {
        self.give_duty(face, served);
        let mut crew = served.crew();
        crew.workers -= 1;
        if crew.workers == 0 {
            served.idle.notify_all();
        }
        let owed = std::mem::take(&mut crew.owed);
        drop(crew);
        if owed {
            self.arm(served);
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
        let mut crew = served.crew();
        if crew.workers >= SHARE {
            crew.owed = true;
            return;
        }
        drop(crew);
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
        let now = self.clock.elapsed().as_micros() as u64 + 1;
        let mut owed = false;
        for face in self.faces().iter() {
            let busy = face.busy.load(Ordering::Relaxed);
            let duty = face.duty.load(Ordering::SeqCst);
            owed |= duty != 0;
            let long = busy != 0 && now.saturating_sub(busy) >= TICK.as_micros() as u64 / 2;
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

    /// The mount of `served` is gone.
    pub(super) fn unmounted(&self, served: &Served) {
        if served.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let session = &served.session;
        let _ = epoll::delete(&self.epoll, &session.channel.fd);
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
        let mut actions = self.actions.lock().unwrap_or_else(|e| e.into_inner());
        let data = EventData::new_u64(ACTION | number);
        let kept = actions.entry(number).or_insert((fd, action));
        let added = epoll::add(&self.epoll, kept.0.as_fd(), data, EventFlags::IN | EventFlags::ONESHOT);
        drop(actions);
        if let Err(e) = added {
            tracing::warn!(errno = %e, "cannot watch an fd; acting at once");
            self.act(number);
        }
    }

    pub(super) fn act(&self, number: u64) {
        let found = self.actions.lock().unwrap_or_else(|e| e.into_inner()).remove(&number);
        let Some((fd, action)) = found else { return };
        // Another process may hold a duplicate, which would keep a closed fd in the epoll set.
        let _ = epoll::delete(&self.epoll, &fd);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).is_err() {
            tracing::error!("an action on an fd panicked");
        }
    }

    pub(super) fn buffers() -> (RequestBuffer, ReplyBuffer) {
        (RequestBuffer::new(), ReplyBuffer::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{FdCache, Space};
    use crate::ring::Engine;
    use crate::session::{Limits, SessionConfig, SessionFds};
    use crate::state::SessionState;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    /// A session whose kernel is a socket, and a pool without workers that has it.
    fn pool() -> (Arc<Pool>, Arc<Served>, OwnedFd, tempfile::TempDir) {
        let flags = SocketFlags::CLOEXEC;
        let (fuse, kernel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let backing = std::fs::File::open(dir.path()).unwrap().into();
        let shared = Arc::new(Shared::new(Box::new(|_| ())).unwrap());
        let pool = Arc::new(Pool { shared });
        let config = SessionConfig {
            name: "test".to_owned(),
            cluster: "test".to_owned(),
            mount_point: dir.path().to_owned(),
            limits: Limits::default(),
            read_only: false,
            passthrough: false,
            idmap: false,
            orders: false,
            device: None,
            space: Space::default(),
        };
        let parts = crate::session::Shared {
            keeper: Arc::default(),
            locks: Arc::default(),
            folders: Arc::default(),
            fds: FdCache::new(10),
            pool: pool.clone(),
            engine: Engine::start(1).unwrap(),
            notifier: Default::default(),
        };
        let fds = SessionFds { fuse, backing, shm: None };
        let state = Arc::new(SessionState::anonymous().unwrap());
        let (session, _) = Session::new(config, fds, state, &parts, 7, None).unwrap();
        pool.add(Arc::new(session)).unwrap();
        let served = pool.shared.session(7).unwrap();
        (pool, served, kernel, dir)
    }

    fn is_ready(shared: &Shared) -> bool {
        loop {
            match shared.poll() {
                Event::Tick => (),
                event => return matches!(event, Event::Session(_)),
            }
        }
    }

    #[test]
    fn a_session_calls_one_worker_until_it_is_armed_again() {
        let (pool, served, kernel, _dir) = pool();
        rustix::io::write(&kernel, b"x").unwrap();
        assert!(is_ready(&pool.shared));
        let face = Face::default();
        pool.shared.take_up(&face, &served);
        assert!(!is_ready(&pool.shared), "the worker has the duty");
        pool.shared.leave(&face, &served);
        assert!(is_ready(&pool.shared), "there still is a request");
    }

    #[test]
    fn a_request_that_takes_long_does_not_hold_up_its_session() {
        let (pool, served, kernel, _dir) = pool();
        rustix::io::write(&kernel, b"x").unwrap();
        assert!(is_ready(&pool.shared));
        let face = Arc::new(Face::default());
        pool.shared.faces().push(face.clone());
        pool.shared.take_up(&face, &served);
        pool.shared.tick();
        assert!(!is_ready(&pool.shared), "it is at no request");
        pool.shared.begin(&face, Instant::now());
        while face.duty.load(Ordering::SeqCst) != 0 {
            pool.shared.tick();
        }
        assert!(is_ready(&pool.shared), "others are called");
        pool.shared.leave(&face, &served);
        assert_eq!(served.crew().workers, 0);
    }

    #[test]
    fn a_session_whose_requests_hang_leaves_workers_to_others() {
        let (pool, served, kernel, _dir) = pool();
        rustix::io::write(&kernel, b"x").unwrap();
        let crew: Vec<Face> = (0..SHARE)
            .map(|_| {
                assert!(is_ready(&pool.shared));
                let face = Face::default();
                pool.shared.take_up(&face, &served);
                pool.shared.give_duty(&face, &served);
                face
            })
            .collect();
        assert!(!is_ready(&pool.shared), "it has its share");
        pool.shared.leave(&crew[0], &served);
        assert!(is_ready(&pool.shared), "one has come back");
    }

    #[test]
    fn removing_waits_for_workers_and_nothing_calls_them_any_more() {
        let (pool, served, kernel, _dir) = pool();
        rustix::io::write(&kernel, b"x").unwrap();
        assert!(is_ready(&pool.shared));
        let face = Face::default();
        pool.shared.take_up(&face, &served);
        assert_eq!(served.wait_idle(Duration::ZERO), Err(Errno::TIMEDOUT));
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| pool.remove("test"));
            while !served.closed.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            pool.shared.leave(&face, &served);
            assert_eq!(removing.join().unwrap(), Ok(()));
        });
        assert!(!is_ready(&pool.shared));
    }

    #[test]
    fn an_action_runs_once_when_its_fd_is_readable() {
        let shared = Arc::new(Shared::new(Box::new(|_| ())).unwrap());
        let (fd, other) = rustix::pipe::pipe().unwrap();
        let ran = Arc::new(AtomicU32::new(0));
        let count = ran.clone();
        shared.when_readable(fd, Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
        assert!(matches!(shared.poll(), Event::Nothing));
        drop(other);
        let Event::Action(number) = shared.poll() else { panic!("the fd is readable") };
        shared.act(number);
        shared.act(number);
        assert!(matches!(shared.poll(), Event::Nothing));
        assert_eq!(ran.load(Ordering::SeqCst), 1);
    }
}
