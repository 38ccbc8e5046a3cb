//! What dead daemons leave behind: submit semaphores in the shared-memory directory, and private directories in `/run`.

use crate::ring::NAME_PREFIX;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Younger ones may belong to a daemon that is about to lock them.
const YOUNG: Duration = Duration::from_secs(10);

/// Removes the submit semaphores in `shm` that no living daemon holds. A daemon makes three with new names each time.
pub(super) fn remove_semaphores(shm: &Path) {
    let ours = |path: &PathBuf| {
        path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(NAME_PREFIX.as_bytes()))
    };
    for path in entries(shm).filter(ours).filter(|path| is_old(path)) {
        if is_free(&path) && std::fs::remove_file(&path).is_ok() {
            tracing::info!(file = %path.display(), "removed a semaphore that a dead daemon left");
        }
    }
}

/// Does nobody lock it?
fn is_free(path: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .is_ok_and(|fd| rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive).is_ok())
}

fn is_old(path: &Path) -> bool {
    let modified = path.symlink_metadata().and_then(|m| m.modified());
    modified.is_ok_and(|m| m.elapsed().is_ok_and(|age| age > YOUNG))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The private directory of one supervisor: control socket and state file of its daemon. It goes with this value; one
/// that a killed supervisor left goes when the next one starts.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    /// Held by a lock as long as the supervisor lives.
    _lock: File,
}

impl RunDir {
    /// Makes a new one.
    pub(super) fn new() -> std::io::Result<RunDir> {
        let base = if Path::new("/run").is_dir() { PathBuf::from("/run") } else { std::env::temp_dir() };
        entries(&base).filter(|path| is_run_dir(path) && is_old(path)).for_each(remove_abandoned);
        let path = base.join(format!("usrbiod.{}", std::process::id()));
        // In a container that was restarted, the pid is often the same.
        remove_abandoned(path.clone());
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)?;
        let lock = File::open(&path)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(RunDir { path, _lock: lock })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn is_run_dir(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("usrbiod.").is_some_and(|pid| pid.parse::<u32>().is_ok())
}

/// Removes a private directory that nobody locks.
fn remove_abandoned(path: PathBuf) {
    if is_free(&path) {
        let _ = std::fs::remove_dir_all(&path);
    }
}
