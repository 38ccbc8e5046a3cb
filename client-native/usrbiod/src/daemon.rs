//! The daemon: all sessions, and what they share.
//!
//! Attaching, detaching and draining may wait for storage, so they may run on any thread. A session's name is reserved
//! while one of them works on it.

use crate::budget::Budget;
use crate::control::Keeper;
use crate::control::error::Refusal;
use crate::control::message::{Hello, Kernel, Listed, OPS, PROTOCOL, Stats};
use crate::fs::locks::LockTable;
use crate::fs::{FdCache, Space};
use crate::fuse::{Notifier, Pool};
use crate::metrics::Sample;
use crate::ring::Engine;
use crate::session::{Session, SessionConfig, SessionFds, Shared};
use crate::state::{OpenError, SessionState};
use crate::types::{Errno, Hung, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// Longest time that the end of the process waits for I/O that is running.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest time for which `drain` stops all sessions in vain.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest time that `detach` waits for what runs; ask again then.
const DETACH: Duration = Duration::from_secs(5);

/// Most `O_PATH` fds that are cached; a quarter of what the process may open, if that is less.
const CACHED_FDS: u64 = 1 << 16;

/// All sessions, and what they share.
pub struct Daemon {
    state_dir: OwnedFd,
    shared: Shared,
    sessions: Mutex<BTreeMap<String, Attached>>,
    /// Names that are being attached, detached or drained.
    reserved: Mutex<HashSet<String>>,
    draining: AtomicBool,
    /// Nothing runs in this process any more, nor will.
    drained: Mutex<bool>,
    next_number: AtomicU32,
}

/// A session, and the fds that only a peer without its own needs.
struct Attached {
    session: Arc<Session>,
    backing: OwnedFd,
    shm: Option<OwnedFd>,
    /// The lock that says that this process serves the session: no other can, before all its threads are gone.
    serving: Option<OwnedFd>,
}

/// The fds of one session by their keys.
pub type Keyed = Vec<(String, OwnedFd)>;

impl Daemon {
    /// A daemon without sessions, whose state files lie in `state_dir`. Its workers run.
    pub fn new(state_dir: OwnedFd) -> Result<Arc<Daemon>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let engine = Engine::start(cores)?;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.unwrap_or(4 * CACHED_FDS);
        let cached = CACHED_FDS.min(limit / 4);
        let weak: Arc<Mutex<Weak<Daemon>>> = Arc::default();
        let by_pool = weak.clone();
        let pool = Pool::new(move |session| {
            let daemon = by_pool.lock().unwrap_or_else(|e| e.into_inner()).upgrade();
            if let Some(daemon) = daemon {
                daemon.unmounted(&session);
            }
        })?;
        let shared = Shared {
            budget: Budget::new(limit, cached),
            keeper: Arc::default(),
            locks: Arc::new(LockTable::default()),
            fds: FdCache::new(cached as usize),
            folders: Arc::default(),
            pool: Arc::new(pool),
            engine,
            notifier: Notifier::default(),
        };
        let daemon = Arc::new(Daemon {
            state_dir,
            shared,
            sessions: Mutex::default(),
            reserved: Mutex::default(),
            draining: AtomicBool::new(false),
            drained: Mutex::new(false),
            next_number: AtomicU32::new(1),
        });
        *weak.lock().unwrap_or_else(|e| e.into_inner()) = Arc::downgrade(&daemon);
        Ok(daemon)
    }

    /// Who keeps fds.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.shared.keeper
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<String, Attached>> {
        self.sessions.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.sessions().values().map(|attached| attached.session.clone()).collect()
    }

    fn session(&self, name: &str) -> Result<Arc<Session>, Refusal> {
        let found = self.sessions().get(name).map(|attached| attached.session.clone());
        found.ok_or_else(|| Refusal::SessionUnknown { session: name.chars().take(128).collect() })
    }

    fn reserve(&self, name: &str) -> Result<Reserved<'_>, Refusal> {
        let mut reserved = self.reserved.lock().unwrap_or_else(|e| e.into_inner());
        if !reserved.insert(name.to_owned()) {
            return Err(Refusal::SessionBusy { session: name.to_owned() });
        }
        Ok(Reserved { daemon: self, name: name.to_owned() })
    }

    /// Body of `hello`.
    pub fn hello(&self) -> Hello {
        let hung = self.hung().values().map(|hung| hung.requests).sum();
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            ops: OPS.map(str::to_owned).to_vec(),
            draining: self.draining.load(Ordering::SeqCst),
            sessions: self.sessions().len(),
            hung,
            kernel: kernel(),
        }
    }

    /// Starts to serve a mount. `kept` are the fds of a predecessor by key. After an error nothing of it is left, except
    /// the state that was to be resumed.
    pub fn attach(
        &self,
        config: SessionConfig,
        fds: SessionFds,
        kept: HashMap<String, OwnedFd>,
        resume: bool,
    ) -> Result<(), Refusal> {
        check_config(&config)?;
        let name = config.name.clone();
        let _reserved = self.reserve(&name)?;
        // After the reservation: `drain` waits for those that it finds.
        if self.draining.load(Ordering::SeqCst) {
            return Err(Refusal::Draining);
        }
        if self.sessions().contains_key(&name) {
            return Err(Refusal::SessionExists { session: name });
        }
        // First: whoever serves it may do so on storage that does not answer.
        let serving = resume.then(|| self.take_over(&name)).transpose()?;
        check_fds(&fds)?;
        let (state, serving) = match serving {
            Some(serving) => self.resume_state(&name, serving)?,
            None => self.make_state(&name, fds.shm.as_ref())?,
        };
        self.start(config, fds, kept, (state, serving), resume).map_err(|errno| {
            if !resume {
                self.remove_state(&name);
            }
            match errno {
                Errno::ADDRINUSE => Refusal::FolderServed { session: name },
                errno => Refusal::Failed { what: "the start", session: name, errno },
            }
        })
    }

    fn start(
        &self,
        config: SessionConfig,
        fds: SessionFds,
        kept: HashMap<String, OwnedFd>,
        (state, serving): (SessionState, OwnedFd),
        resume: bool,
    ) -> Result<()> {
        let (backing, shm) = (dup(&fds.backing)?, fds.shm.as_ref().map(dup).transpose()?);
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let name = config.name.clone();
        let given = kept.len();
        let (session, dropped) =
            Session::new(config, fds, Arc::new(state), &self.shared, number, resume.then_some(kept))?;
        let session = Arc::new(session);
        // Before a request is read: one that is being served already would come a second time.
        if resume && let Err(errno) = self.shared.pool.resume(&session) {
            tracing::error!(session = name, %errno, "requests that were being worked on are lost: their callers hang");
        }
        // The pool may find at once that the mount is gone, and then looks for the session here.
        let serving = Some(serving);
        self.sessions().insert(name.clone(), Attached { session: session.clone(), backing, shm, serving });
        if let Err(errno) = self.shared.pool.add(session.clone()) {
            self.sessions().remove(&name);
            self.shared.pool.answer(self.shared.locks.detach(number));
            if !resume {
                session.rings.detach(PATIENCE);
            }
            return Err(errno);
        }
        let mount_point = session.config.mount_point.display();
        tracing::info!(session = name, %mount_point, resume, given, dropped, "session attached");
        Ok(())
    }

    /// The lock that says that we serve a session that another process served.
    fn take_over(&self, name: &str) -> Result<OwnedFd, Refusal> {
        if !SessionState::exists(&self.state_dir, name) {
            return Err(Refusal::NoState { session: name.to_owned() });
        }
        self.lock_state(name).map_err(|errno| unopened(name, errno))
    }

    /// The state of a new session, and the lock that says that we serve it.
    fn make_state(&self, name: &str, shm: Option<&OwnedFd>) -> Result<(SessionState, OwnedFd), Refusal> {
        let failed = |errno| unopened(name, errno);
        if SessionState::exists(&self.state_dir, name) {
            // It belongs to a mount that is gone, and to nobody who still works on it; its semaphores may lie where ours will.
            let _old = self.lock_state(name).map_err(failed)?;
            if let (Some(shm), Ok(old)) = (shm, SessionState::leftover_header(&self.state_dir, name)) {
                crate::ring::remove_semaphores(shm, &old);
            }
            SessionState::remove(&self.state_dir, name).map_err(failed)?;
        }
        let state = SessionState::open(&self.state_dir, name).map_err(|error| {
            self.remove_state(name);
            not_opened(name, error)
        })?;
        Ok((state, self.lock_state(name).map_err(failed)?))
    }

    /// The state of a session that another process served, and the lock, which `serving` is or was.
    fn resume_state(&self, name: &str, serving: OwnedFd) -> Result<(SessionState, OwnedFd), Refusal> {
        let state = SessionState::open(&self.state_dir, name).map_err(|error| not_opened(name, error))?;
        let failed = |errno| unopened(name, errno);
        let file = rustix::fs::statat(&self.state_dir, format!("{name}.state"), AtFlags::SYMLINK_NOFOLLOW);
        let is_it = rustix::fs::fstat(&serving).map_err(failed)?.st_ino == file.map_err(failed)?.st_ino;
        // One that was migrated is another file.
        let serving = if is_it { serving } else { self.lock_state(name).map_err(failed)? };
        Ok((state, serving))
    }

    /// Says that this process serves a session. The kernel keeps the lock until all threads of the process are gone, also one
    /// that waits for storage while it is killed. `EWOULDBLOCK`: another process has it.
    fn lock_state(&self, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.state_dir, format!("{name}.state"), flags, Mode::empty())?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    }

    fn remove_state(&self, name: &str) -> bool {
        let removed = SessionState::remove(&self.state_dir, name);
        if let Err(errno) = removed {
            tracing::warn!(session = name, %errno, "cannot remove the state file");
        }
        removed.is_ok()
    }

    /// Stops to serve a mount, and removes everything of the session. Refused while something of it runs: nobody else may have
    /// what it works on. Its requests are not read any more by then; ask again.
    pub fn detach(&self, name: &str) -> Result<(), Refusal> {
        self.session(name)?;
        let _reserved = self.reserve(name)?;
        // After the reservation, as in `attach`: from then on the state is the successor's.
        if self.draining.load(Ordering::SeqCst) {
            return Err(Refusal::Draining);
        }
        let session = self.session(name)?;
        let deadline = Instant::now() + DETACH;
        let idle = self.shared.pool.remove(name, DETACH).is_ok()
            && session.rings.quiesce(deadline.saturating_duration_since(Instant::now()));
        if !idle {
            return Err(Refusal::StillRunning { session: name.to_owned() });
        }
        self.end(&session, false);
        Ok(())
    }

    /// Removes the states of sessions that are not attached and are none of `exist`: nobody will resume those. Returns how
    /// many.
    pub fn prune(&self, exist: &BTreeSet<String>) -> Result<usize, Refusal> {
        let mut states = SessionState::names(&self.state_dir).map_err(|errno| Refusal::Unlisted { errno })?;
        states.retain(|name| !exist.contains(name));
        let mut removed = 0;
        for name in states {
            // One that is being attached or detached takes care of its state itself.
            let Ok(_reserved) = self.reserve(&name) else { continue };
            // After the reservation, as in `attach`: from then on the states are the successor's.
            if self.draining.load(Ordering::SeqCst) {
                return Err(Refusal::Draining);
            }
            if !self.sessions().contains_key(&name) && self.remove_state(&name) {
                tracing::info!(
                    session = name,
                    "removed the state of a session that ended while nobody served"
                );
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The mount went away by itself, and its last request is done. On a worker of the pool, which has dropped the session.
    fn unmounted(self: &Arc<Self>, session: &Arc<Session>) {
        if session.rings.quiesce(Duration::ZERO) {
            return self.end_unmounted(session);
        }
        // Its rings wait for storage: that costs a thread of its own, and no worker. `detach` may be faster.
        let (daemon, ended) = (self.clone(), session.clone());
        let wait = move || {
            while !ended.rings.quiesce(Duration::from_millis(100)) {}
            daemon.end_unmounted(&ended);
        };
        if let Err(error) = std::thread::Builder::new().name("session-end".into()).spawn(wait) {
            tracing::error!(%error, session = session.config.name, "the session stays until it is detached");
        }
    }

    fn end_unmounted(&self, session: &Arc<Session>) {
        // A drain that is under way comes first; a drained session stays for the successor to find out.
        let drained = self.drained.lock().unwrap_or_else(|e| e.into_inner());
        if *drained {
            return;
        }
        // While its name is reserved, whoever works on it ends it.
        let Ok(_reserved) = self.reserve(&session.config.name) else { return };
        drop(drained);
        self.end(session, true);
    }

    fn end(&self, session: &Arc<Session>, unmounted: bool) {
        let name = session.config.name.as_str();
        let is_it = |attached: &Attached| Arc::ptr_eq(&attached.session, session);
        {
            let mut sessions = self.sessions();
            if !sessions.get(name).is_some_and(is_it) {
                return;
            }
            sessions.remove(name);
        }
        self.shared.pool.answer(self.shared.locks.detach(session.number));
        session.rings.detach(PATIENCE);
        self.remove_state(name);
        self.shared.keeper.detached(name, unmounted);
        tracing::info!(session = name, unmounted, "session detached");
    }

    /// Body of `list`.
    pub fn list(&self) -> Vec<Listed> {
        let hung = self.hung();
        self.all().iter().map(|session| listed(session, &hung)).collect()
    }

    /// Body of `stats`.
    pub fn stats(&self, name: &str) -> Result<Stats, Refusal> {
        let session = self.session(name)?;
        Ok(Stats::new(listed(&session, &self.hung()), session.config.limits, &session.metrics))
    }

    /// Do the threads that serve all sessions make progress? Storage that hangs, of however many sessions, is none of this.
    pub fn health(&self, longest: Duration) -> Result<(), Refusal> {
        self.hung();
        if !self.shared.pool.probe(longest / 2) {
            return Err(Refusal::Stuck { what: "FUSE workers" });
        }
        if !self.shared.engine.probe(longest / 2) {
            return Err(Refusal::Stuck { what: "rings" });
        }
        Ok(())
    }

    /// The volume of a session has grown, or was measured.
    pub fn set_space(&self, name: &str, space: Space) -> Result<(), Refusal> {
        self.session(name)?.fs.set_space(space);
        Ok(())
    }

    /// What a scrape sees.
    pub fn samples(&self) -> Vec<Sample> {
        let hung = self.hung();
        let sample = |session: Arc<Session>| {
            let listed = listed(&session, &hung);
            Sample { metrics: session.metrics.clone(), listed }
        };
        self.all().into_iter().map(sample).collect()
    }

    /// Duplicates of every fd of every session.
    pub fn fds(&self) -> Result<Vec<(String, Keyed)>, Refusal> {
        let mut all = Vec::new();
        for (name, attached) in self.sessions().iter() {
            let fds = attached.fds().map_err(|errno| Refusal::Failed {
                what: "duplicating fds",
                session: name.clone(),
                errno,
            })?;
            all.push((name.clone(), fds));
        }
        Ok(all)
    }

    /// Takes no sessions any more, lets what runs finish, and returns when nothing runs in this process any more, nor will. A
    /// successor may then attach the sessions with `resume`.
    ///
    /// Refused when something does not finish: the daemon goes on as before then. All sessions stand still for [`PAUSE`] at
    /// most, and not at all while it can be seen that a request hangs: others do not wait for one session's storage.
    pub fn drain(&self) -> Result<(), Refusal> {
        let mut drained = self.drained.lock().unwrap_or_else(|e| e.into_inner());
        if *drained {
            return Ok(());
        }
        if let Some((session, hung)) = self.hung().into_iter().max_by_key(|(_, hung)| hung.oldest) {
            let what = format!("{} requests of session {session}", hung.requests);
            return Err(Refusal::Busy { what, seconds: hung.oldest.as_secs() });
        }
        self.draining.store(true, Ordering::SeqCst);
        if let Err(what) = self.stand_still(PAUSE) {
            self.go_on();
            return Err(Refusal::Busy { what, seconds: PAUSE.as_secs() });
        }
        self.finish();
        *drained = true;
        Ok(())
    }

    /// Ends serving, before the process ends: as [`drain`](Self::drain), and what does not finish in half a minute is left to
    /// the kernel, which keeps the process until it is done.
    pub fn stop(&self) -> Result<(), Refusal> {
        let mut drained = self.drained.lock().unwrap_or_else(|e| e.into_inner());
        if *drained {
            return Ok(());
        }
        self.draining.store(true, Ordering::SeqCst);
        let still = self.stand_still(PATIENCE);
        still.map_err(|what| Refusal::Busy { what, seconds: PATIENCE.as_secs() })?;
        self.finish();
        *drained = true;
        Ok(())
    }

    /// Begins nothing any more, and waits until nothing runs; otherwise what runs.
    fn stand_still(&self, longest: Duration) -> Result<(), String> {
        let deadline = Instant::now() + longest;
        let wait_for = |what: &dyn Fn() -> Option<String>| {
            while let Some(what) = what() {
                if Instant::now() > deadline {
                    return Err(what);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        wait_for(&|| {
            let reserved = self.reserved.lock().unwrap_or_else(|e| e.into_inner());
            reserved.iter().next().map(|name| format!("calls that attach or detach session {name}"))
        })?;
        let sessions = self.all();
        sessions.iter().for_each(|session| session.rings.pause());
        self.shared.pool.pause();
        wait_for(&|| {
            let ring = || sessions.iter().find(|s| !s.rings.is_idle()).map(|s| s.config.name.clone());
            self.shared.pool.running().or_else(ring).map(|name| match name.as_str() {
                "" => "calls that clean up after clients".to_owned(),
                name => format!("requests of session {name}"),
            })
        })
    }

    fn go_on(&self) {
        self.draining.store(false, Ordering::SeqCst);
        self.shared.pool.go_on();
        for session in self.all() {
            session.rings.go_on();
        }
    }

    /// Nothing runs: leaves the sessions to whoever locks their states next.
    fn finish(&self) {
        let mut sessions = self.sessions();
        for attached in sessions.values_mut() {
            attached.session.rings.quiesce(Duration::ZERO);
            attached.serving = None;
        }
        self.shared.folders.give_up();
        tracing::info!(sessions = sessions.len(), "drained");
    }

    /// Sessions of which requests hang, by name.
    pub fn hung(&self) -> BTreeMap<String, Hung> {
        let fuse = self.shared.pool.hung();
        let hung = |session: Arc<Session>| {
            let hung = fuse.get(&session.number).copied().unwrap_or_default().and(session.rings.hung());
            (hung.requests > 0).then(|| (session.config.name.clone(), hung))
        };
        self.all().into_iter().filter_map(hung).collect()
    }
}

/// A name that one call works on.
struct Reserved<'a> {
    daemon: &'a Daemon,
    name: String,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.daemon.reserved.lock().unwrap_or_else(|e| e.into_inner()).remove(&self.name);
    }
}

impl Attached {
    fn fds(&self) -> Result<Keyed> {
        let mut fds = vec![
            ("fuse".to_owned(), dup(&self.session.channel.fd)?),
            ("backing".to_owned(), dup(&self.backing)?),
        ];
        if let Some(shm) = &self.shm {
            fds.push(("shm".to_owned(), dup(shm)?));
        }
        fds.extend(self.session.rings.fds()?);
        fds.extend(self.session.fs.kept_fds()?);
        Ok(fds)
    }
}

/// Why the state of a session was not had.
fn unopened(session: &str, errno: Errno) -> Refusal {
    let session = session.to_owned();
    match errno {
        Errno::WOULDBLOCK => Refusal::StillServed { session },
        errno => Refusal::Failed { what: "opening the state", session, errno },
    }
}

fn not_opened(session: &str, error: OpenError) -> Refusal {
    match error {
        OpenError::System(errno) => unopened(session, errno),
        OpenError::Refused(why) => {
            tracing::error!(session, why, "the state cannot be taken over");
            Refusal::StateVersion { session: session.to_owned(), why }
        }
    }
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
}

fn listed(session: &Session, hung: &BTreeMap<String, Hung>) -> Listed {
    let hung = hung.get(&session.config.name).copied().unwrap_or_default();
    let objects = session.rings.list();
    let rings = objects.iter().filter(|o| o.is_ring).count() as u64;
    Listed {
        session: session.config.name.clone(),
        cluster: session.config.cluster.clone(),
        mount_point: session.config.mount_point.clone(),
        read_only: session.config.read_only,
        passthrough: session.channel.passthrough(),
        rings,
        iovs: objects.len() as u64 - rings,
        iov_bytes: objects.iter().filter(|o| !o.is_ring).map(|o| o.len).sum(),
        hung: hung.requests,
        hung_seconds: hung.oldest.as_secs(),
    }
}

fn check_config(config: &SessionConfig) -> Result<(), Refusal> {
    let invalid = |what, name: &str, rule| {
        Err(Refusal::InvalidName { what, name: name.chars().take(200).collect(), rule })
    };
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let name = config.name.as_str();
    if !(1..=128).contains(&name.len()) || name.starts_with('.') || !plain(name) {
        return invalid("session name", name, "1 to 128 of A-Z a-z 0-9 . _ - and no dot in front");
    }
    let cluster = config.cluster.as_str();
    if !(1..=31).contains(&cluster.len()) || !cluster.bytes().all(|b| b.is_ascii_graphic()) {
        // GET_MOUNT_NAME answers it in 32 bytes, with a zero behind it.
        return invalid("cluster id", cluster, "1 to 31 printable ASCII characters without spaces");
    }
    if !config.mount_point.is_absolute() {
        let path = config.mount_point.to_string_lossy();
        return invalid("mount point", &path, "an absolute path");
    }
    Ok(())
}

fn check_fds(fds: &SessionFds) -> Result<(), Refusal> {
    let stat = |fd: &OwnedFd| rustix::fs::fstat(fd);
    let is_fuse = stat(&fds.fuse).is_ok_and(|s| {
        FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice
            && s.st_rdev == rustix::fs::makedev(10, 229)
    });
    if !is_fuse {
        return Err(Refusal::NotFuse);
    }
    let directories = [("backing", Some(&fds.backing)), ("shm", fds.shm.as_ref())];
    for (name, fd) in directories {
        let is_directory =
            |fd| stat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if fd.is_some_and(|fd| !is_directory(fd)) {
            return Err(Refusal::NotADirectory { name });
        }
    }
    if is_mounted(&fds.fuse) { Ok(()) } else { Err(Refusal::NotMounted) }
}

/// Is there a live mount behind this `/dev/fuse`? The device polls as an error before the mount and after it.
fn is_mounted(fuse: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fuse, PollFlags::IN)];
    let polled = rustix::event::poll(&mut fds, Some(&Timespec::default()));
    polled.is_ok() && !fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
}

fn kernel() -> Kernel {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Kernel {
        passthrough: version >= (6, 9),
        idmap: version >= (6, 12),
        resend: version >= (6, 9),
        io_uring: io_uring::IoUring::new(2).is_ok(),
        release,
    }
}
