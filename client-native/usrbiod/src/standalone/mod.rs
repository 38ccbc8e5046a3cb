//! `usrbiod serve`: one directory, one mount, no CSI.
//!
//! The command is the [supervisor]: it mounts, keeps every fd, and runs the daemon as its child. When the child dies a new
//! one goes on with the same mount, as on a Kubernetes node.

mod checks;
mod leftovers;
mod supervisor;

use crate::control::client::ClientError;
use crate::types::Errno;
use std::path::PathBuf;

/// What `serve` is asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that is served.
    pub dir: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// The cluster's id.
    pub cluster: String,
    /// The directory with the clients' shared memory.
    pub shm: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
    /// Let the kernel read and write backing files itself, where it can.
    pub passthrough: bool,
    /// Take links to `mv:` for orders, wherever they are made.
    pub orders: bool,
    /// Arguments for the daemon that this command has as well (log, metrics).
    pub daemon_args: Vec<String>,
}

/// Why `serve` cannot.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ServeError {
    #[error("only root can mount: run it with sudo")]
    NotRoot,
    #[error(
        "/dev/fuse cannot be opened ({0}): load the kernel module fuse, or give the container the device"
    )]
    NoFuse(Errno),
    #[error("{0} does not exist: give the directory to serve")]
    DirMissing(PathBuf),
    #[error("{0} is not a directory: give the directory to serve")]
    DirNotADirectory(PathBuf),
    #[error("the mount point {0} does not exist: make the directory first")]
    MountPointMissing(PathBuf),
    #[error("the mount point {0} is not a directory")]
    MountPointNotADirectory(PathBuf),
    #[error("there is a {fstype} mount at {path} already: unmount it, or give another mount point")]
    MountPointBusy { path: PathBuf, fstype: String },
    #[error("{mount_point} and {dir} lie one inside the other: give a mount point elsewhere")]
    Nested { dir: PathBuf, mount_point: PathBuf },
    #[error("the shared-memory directory {0} is not a directory: mount a tmpfs there, or give another --shm")]
    ShmNotADirectory(PathBuf),
    #[error("mounting at {path} failed: {errno}")]
    Mount { path: PathBuf, errno: Errno },
    #[error("{what} failed: {error}")]
    System { what: String, error: std::io::Error },
    #[error("the daemon refused: {0}")]
    Daemon(#[from] ClientError),
    #[error("the daemon ended before it served ({0}): its messages are above")]
    NoStart(String),
    #[error(
        "the daemon died {deaths} times in {seconds} s, the last time by {status}: it is not started again"
    )]
    CrashLoop { deaths: usize, seconds: u64, status: String },
}

impl ServeError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::NotRoot => 3,
            ServeError::NoFuse(_) => 4,
            ServeError::DirMissing(_) => 5,
            ServeError::DirNotADirectory(_) => 6,
            ServeError::MountPointMissing(_) => 7,
            ServeError::MountPointNotADirectory(_) => 8,
            ServeError::MountPointBusy { .. } => 9,
            ServeError::Nested { .. } => 10,
            ServeError::ShmNotADirectory(_) => 11,
            ServeError::Mount { .. } => 12,
            ServeError::System { .. } => 13,
            ServeError::Daemon(_) | ServeError::NoStart(_) => 14,
            ServeError::CrashLoop { .. } => 15,
        }
    }

    fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ServeError {
        let what = what.into();
        move |error| ServeError::System { what, error }
    }
}

/// Serves until SIGINT, SIGTERM, or an unmount from outside.
pub fn serve(options: Options) -> Result<(), ServeError> {
    let options = checks::check(options)?;
    leftovers::remove_semaphores(&options.shm);
    supervisor::run(&options)
}
