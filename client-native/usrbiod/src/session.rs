//! A session: one FUSE mount with its backing directory, its shared memory, and everything that its clients
//! registered.

use crate::budget::{Budget, Held};
use crate::clients::ClientWatch;
use crate::control::Keeper;
use crate::fs::locks::LockTable;
use crate::fs::{FdCache, Folders, Fs, Keeping, Space};
use crate::fuse::{Channel, Notifier, Pool, asked};
use crate::metrics::SessionMetrics;
use crate::mounts::Mounts;
use crate::ring::{Engine, RingsConfig, SessionRings};
use crate::state::SessionState;
use crate::types::Result;
use crate::virt::{Parts, UserConf, Virt};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// What one session may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of all Iovs together.
    pub iov_bytes: u64,
    /// Rings.
    pub rings: u32,
    /// Iovs and rings together.
    pub iovs: u32,
    /// Entries of one ring: the most requests that it has in flight.
    pub ring_entries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { iov_bytes: 1 << 40, rings: 1024, iovs: 4096, ring_entries: 65_536 }
    }
}

/// What a session is asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    /// Unique in the daemon: 1 to 128 of `A-Z a-z 0-9 . _ -`, not starting with a dot.
    pub name: String,
    /// The cluster's id: what `GET_MOUNT_NAME` answers.
    pub cluster: String,
    /// Where clients see the mount; for messages and for `GET_PATH_OFFSET`.
    pub mount_point: PathBuf,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// Refuse every change.
    #[serde(default)]
    pub read_only: bool,
    /// Let the kernel read and write the backing files itself, where it can (Linux 6.9).
    #[serde(default = "yes")]
    pub passthrough: bool,
    /// The mount is to be mapped into a user namespace (Linux 6.12). Callers are then known by their process where they
    /// are known by their user otherwise.
    #[serde(default)]
    pub idmap: bool,
    /// Take links to `mv:` for orders to rename, wherever they are made, as 3FS does.
    #[serde(default)]
    pub orders: bool,
    /// Minor number of the mount's device, where the kernel does not tell it (`fuse_connection` in fdinfo).
    #[serde(default)]
    pub device: Option<u32>,
    /// What the volume has at first.
    #[serde(default)]
    pub space: Space,
}

fn yes() -> bool {
    true
}

/// The fds that a session stands on.
#[derive(Debug)]
pub struct SessionFds {
    /// An open and mounted `/dev/fuse`.
    pub fuse: OwnedFd,
    /// The directory that is served.
    pub backing: OwnedFd,
    /// The directory that clients see as `/dev/shm`; without it, no Iov can be registered.
    pub shm: Option<OwnedFd>,
}

/// A running session. Its parts know each other in one direction only: `virt` → `rings` → `fs` → `channel`, `state`.
pub struct Session {
    /// As asked.
    pub config: SessionConfig,
    /// Unique in the daemon; the session's name in lock owners and among the pool's events.
    pub number: u32,
    /// The file system that the backing directory lies on: what hangs together.
    pub device: u64,
    /// Locks of all sessions of the daemon.
    pub locks: Arc<LockTable>,
    /// The `/dev/fuse` fd.
    pub channel: Arc<Channel>,
    /// What a successor must know.
    pub state: Arc<SessionState>,
    /// Counters.
    pub metrics: Arc<SessionMetrics>,
    /// The backing directory as a file system.
    pub fs: Arc<Fs>,
    /// Registered Iovs and rings.
    pub rings: Arc<SessionRings>,
    /// What users set by `set-conf`.
    pub conf: Arc<UserConf>,
    /// The `3fs-virt` tree and the ioctls.
    pub virt: Virt,
    _own_fds: Held,
}

/// Fds that every session has.
const OWN_FDS: u64 = 8;

/// What all sessions of a daemon share. Clones are the same.
#[derive(Clone)]
pub struct Shared {
    /// What sessions may have of the daemon's fds.
    pub budget: Arc<Budget>,
    /// Who keeps fds.
    pub keeper: Arc<Keeper>,
    /// Locks.
    pub locks: Arc<LockTable>,
    /// `O_PATH` fds of nodes.
    pub fds: Arc<FdCache>,
    /// Which sessions serve the same files.
    pub folders: Arc<Folders>,
    /// The FUSE workers.
    pub pool: Arc<Pool>,
    /// The ring workers.
    pub engine: Arc<Engine>,
    /// Who tells the kernel what to forget.
    pub notifier: Notifier,
}

impl Session {
    /// Puts a session together; the pool does not serve it yet. `kept`: what a predecessor registered is taken over with
    /// these fds. Beside it, the number of registrations that were lost. `EADDRINUSE`: another daemon serves the folder.
    pub fn new(
        config: SessionConfig,
        fds: SessionFds,
        state: Arc<SessionState>,
        shared: &Shared,
        number: u32,
        mut kept: Option<HashMap<String, OwnedFd>>,
    ) -> Result<(Session, usize)> {
        let share = shared.budget.share(&config.name);
        // Its mount's, its directories', its state's.
        let own_fds = share.take_anyway(OWN_FDS);
        let device = crate::sys::device::of(&fds.backing)?;
        let asked = asked(config.passthrough, config.idmap);
        let channel = Arc::new(Channel::new(fds.fuse, asked, &state.header(), &shared.notifier)?);
        let metrics = Arc::new(SessionMetrics::default());
        let keeping = Keeping::new(shared.keeper.clone(), config.name.clone(), kept.as_mut(), share.clone());
        let mounts = Arc::new(Mounts::new(&channel.fd, config.device, &config.mount_point));
        let (read_only, cache) = (config.read_only, shared.fds.clone());
        let (for_fs, seen) = (channel.clone(), mounts.clone());
        let fs = Fs::new(for_fs, state.clone(), fds.backing, read_only, cache, keeping, seen)?;
        let fs = shared.folders.join(fs, kept.is_some())?;
        fs.set_space(config.space);
        let rings = RingsConfig {
            session: config.name.clone(),
            files: fs.clone(),
            state: state.clone(),
            metrics: metrics.clone(),
            keeper: shared.keeper.clone(),
            shm: fds.shm,
            limits: config.limits,
            fds: share,
            read_only: config.read_only,
        };
        let rings = Arc::new(SessionRings::new(rings, &shared.engine)?);
        let lost = kept.map_or(0, |kept| rings.resume(kept));
        // After what is registered is open again. Clients may have died while nobody served.
        rings.sweep();
        let conf = Arc::new(UserConf::new(state.clone(), config.read_only));
        let virt = Virt::new(Parts {
            session: config.name.clone(),
            cluster: config.cluster.clone(),
            mount_point: config.mount_point.clone(),
            read_only: config.read_only,
            orders: config.orders,
            channel: channel.clone(),
            state: state.clone(),
            fs: fs.clone(),
            mounts,
            rings: rings.clone(),
            conf: conf.clone(),
            clients: ClientWatch::new(&rings, shared.pool.clone()),
        });
        let locks = shared.locks.clone();
        locks.attach(number, state.clone());
        Ok((
            Session {
                config,
                number,
                device,
                locks,
                channel,
                state,
                metrics,
                fs,
                rings,
                conf,
                virt,
                _own_fds: own_fds,
            },
            lost,
        ))
    }
}
