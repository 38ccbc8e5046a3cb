//! A mount of a temporary directory, served by this process.
#![allow(dead_code)] // each test binary uses a part

use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use tempfile::TempDir;
use usrbiod::fs::locks::LockTable;
use usrbiod::fs::{FdCache, Fs};
use usrbiod::fuse::{Channel, Pool};
use usrbiod::ring::SessionRings;
use usrbiod::session::{Limits, Session, SessionConfig};
use usrbiod::state::SessionState;
use usrbiod::virt::Virt;

/// What the mount shall be like.
pub struct Setup {
    pub passthrough: bool,
    pub read_only: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { passthrough: true, read_only: false }
    }
}

/// A served mount, which goes with this value.
pub struct Mount {
    pub session: Arc<Session>,
    /// Names of sessions whose mount is gone.
    pub unmounted: Receiver<String>,
    pub pool: Pool,
    point: TempDir,
    backing: TempDir,
}

impl Mount {
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.path().join(name)
    }

    pub fn backing(&self, name: &str) -> PathBuf {
        self.backing.path().join(name)
    }

    pub fn unmount(&self) {
        let _ = usrbiod::sys::mount::unmount(self.point.path());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Mounts; `None` where that is not possible.
pub fn mount(setup: Setup) -> Option<Mount> {
    let open = |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let fuse = match open(Path::new("/dev/fuse"), OFlags::RDWR) {
        Ok(fuse) if rustix::process::geteuid().is_root() => fuse,
        _ => {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
    };
    let (point, backing) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    usrbiod::sys::mount::mount_fuse(&fuse, "test", point.path()).unwrap();
    let directory = open(backing.path(), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
    let state = Arc::new(SessionState::anonymous().unwrap());
    let session = session(setup, fuse, directory, state, point.path(), 1);
    let (tx, unmounted) = channel();
    let pool = Pool::new(move |session: Arc<Session>| {
        let _ = tx.send(session.config.name.clone());
    });
    let pool = pool.unwrap();
    pool.add(session.clone()).unwrap();
    Some(Mount { session, unmounted, pool, point, backing })
}

/// A session over these fds.
pub fn session(
    setup: Setup,
    fuse: OwnedFd,
    backing: OwnedFd,
    state: Arc<SessionState>,
    mount_point: &Path,
    number: u32,
) -> Arc<Session> {
    let channel = Arc::new(Channel::new(fuse, setup.passthrough, &state.header()).unwrap());
    let fds = FdCache::new(1000);
    let fs = Fs::new(channel.clone(), state.clone(), backing, setup.read_only, fds).unwrap();
    let locks = Arc::new(LockTable::default());
    locks.attach(number, state.clone());
    Arc::new(Session {
        config: SessionConfig {
            name: "test".to_owned(),
            cluster: "test".to_owned(),
            mount_point: mount_point.to_owned(),
            limits: Limits::default(),
            read_only: setup.read_only,
            passthrough: setup.passthrough,
        },
        number,
        locks,
        channel,
        state,
        metrics: Arc::default(),
        fs: Arc::new(fs),
        rings: Arc::new(SessionRings {}),
        conf: Arc::default(),
        virt: Virt {},
    })
}
