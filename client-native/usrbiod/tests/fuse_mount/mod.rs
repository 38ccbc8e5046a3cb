//! A mount of a temporary directory, served by this process.
#![allow(dead_code)] // each test binary uses a part

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tempfile::TempDir;
use usrbiod::fs::{FdCache, Space};
use usrbiod::fuse::{Notifier, Pool};
use usrbiod::ring::Engine;
use usrbiod::session::{Limits, Session, SessionConfig, SessionFds, Shared};
use usrbiod::state::SessionState;

/// Longest time for one test.
const LONGEST: Duration = Duration::from_secs(60);

/// What the mount shall be like.
pub struct Setup {
    pub passthrough: bool,
    pub idmap: bool,
    pub read_only: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { passthrough: true, idmap: false, read_only: false }
    }
}

/// A served mount, which goes with this value.
pub struct Mount {
    pub session: Arc<Session>,
    /// Names of sessions whose mount is gone.
    pub unmounted: Receiver<String>,
    pub shared: Shared,
    _watch: Sender<()>,
    /// What the session was given, as a peer keeps it.
    pub directory: OwnedFd,
    point: TempDir,
    backing: Arc<TempDir>,
    /// What is served: the backing directory or one inside it.
    served: PathBuf,
}

impl Mount {
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.path().join(name)
    }

    pub fn backing(&self, name: &str) -> PathBuf {
        self.served.join(name)
    }

    pub fn unmount(&self) {
        usrbiod::sys::mount::unmount(self.point.path()).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        abort(self.point.path());
    }
}

/// Unmounts; what waits for an answer gets `ECONNABORTED`. A thread that waited for ever would keep the whole process.
fn abort(point: &Path) {
    let _ = rustix::mount::unmount(point, UnmountFlags::FORCE | UnmountFlags::DETACH);
}

/// Aborts the mount when the test takes too long; dropping the sender calls it off.
fn watch(point: PathBuf) -> Sender<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        if receiver.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test hangs: its mount is aborted");
            abort(&point);
        }
    });
    sender
}

/// Mounts, as root.
pub fn mount(setup: Setup) -> Mount {
    mount_of(TempDir::new().unwrap(), setup)
}

/// Mounts what lies in a directory of the caller's.
pub fn mount_of(backing: TempDir, setup: Setup) -> Mount {
    let (tx, unmounted) = channel();
    let shared = shared(move |session| {
        let _ = tx.send(session.config.name.clone());
    });
    serve(setup, Arc::new(backing), "", shared, unmounted, 1)
}

/// Another mount of what `first` serves, or of `folder` in there, by the same daemon. Its end is not told.
pub fn mount_beside(first: &Mount, setup: Setup, folder: &str) -> Mount {
    // One that has just ended may still have its number.
    static NEXT: AtomicU32 = AtomicU32::new(2);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    serve(setup, first.backing.clone(), folder, first.shared.clone(), channel().1, number)
}

fn serve(
    setup: Setup,
    backing: Arc<TempDir>,
    folder: &str,
    shared: Shared,
    unmounted: Receiver<String>,
    number: u32,
) -> Mount {
    let open = |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let fuse = open(Path::new("/dev/fuse"), OFlags::RDWR).expect("these tests need /dev/fuse");
    let (point, served) = (TempDir::new().unwrap(), backing.path().join(folder));
    usrbiod::sys::mount::mount_fuse(&fuse, "test", point.path()).unwrap();
    let directory = open(&served, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    let fds = SessionFds { fuse, backing: directory.try_clone().unwrap(), shm: None };
    let state = Arc::new(SessionState::anonymous().unwrap());
    let session = session(setup, fds, state, point.path(), &shared, number);
    shared.pool.add(session.clone()).unwrap();
    std::fs::metadata(point.path()).expect("the mount answers, so INIT is done");
    Mount {
        session,
        unmounted,
        shared,
        _watch: watch(point.path().to_owned()),
        directory,
        point,
        backing,
        served,
    }
}

/// What a daemon has beside its sessions.
pub fn shared(on_unmounted: impl Fn(Arc<Session>) + Send + Sync + 'static) -> Shared {
    Shared {
        budget: usrbiod::budget::Budget::new(20_000, 5_000),
        keeper: Arc::default(),
        locks: Arc::default(),
        fds: FdCache::new(1000),
        folders: Arc::default(),
        pool: Arc::new(Pool::new(on_unmounted).unwrap()),
        engine: Engine::start(1).unwrap(),
        notifier: Notifier::default(),
    }
}

/// A session over these fds, which the pool does not serve yet.
pub fn session(
    setup: Setup,
    fds: SessionFds,
    state: Arc<SessionState>,
    mount_point: &Path,
    shared: &Shared,
    number: u32,
) -> Arc<Session> {
    let config = SessionConfig {
        name: "test".to_owned(),
        cluster: "test".to_owned(),
        mount_point: mount_point.to_owned(),
        limits: Limits::default(),
        read_only: setup.read_only,
        passthrough: setup.passthrough,
        idmap: setup.idmap,
        orders: false,
        device: None,
        space: Space::default(),
    };
    let (session, lost) = Session::new(config, fds, state, shared, number, None).unwrap();
    assert_eq!(lost, 0);
    Arc::new(session)
}
