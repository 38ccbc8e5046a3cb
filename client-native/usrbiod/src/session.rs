//! A session: one FUSE mount with its backing directory, its shared memory, and everything that its clients
//! registered.

use crate::fs::Fs;
use crate::fuse::Channel;
use crate::metrics::SessionMetrics;
use crate::ring::SessionRings;
use crate::state::SessionState;
use crate::virt::Virt;
use serde::{Deserialize, Serialize};
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
    /// The `3fs-virt` tree and the ioctls.
    pub virt: Virt,
}
