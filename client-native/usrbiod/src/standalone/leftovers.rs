//! What dead daemons leave behind: submit semaphores in the shared-memory directory, and private directories in `/run`.

use rustix::fs::FlockOperation;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How the submit semaphores' files begin.
const SEMAPHORE: &str = "sem.hf3fs-submit-ios.";

/// Younger files may belong to a daemon that is about to map them.
const YOUNG: Duration = Duration::from_secs(10);

/// Removes the submit semaphores in `shm` that no process maps. A daemon makes three with new names each time.
pub(super) fn remove_semaphores(shm: &Path) {
    let candidates: Vec<PathBuf> = entries(shm)
        .filter(|path| {
            path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(SEMAPHORE.as_bytes()))
        })
        .filter(|path| is_old(path))
        .collect();
    if candidates.is_empty() {
        return;
    }
    let mapped = mapped_semaphores();
    for path in candidates {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !mapped.contains(&name) && std::fs::remove_file(&path).is_ok() {
            tracing::info!(file = %path.display(), "removed a semaphore that a dead daemon left");
        }
    }
}

fn is_old(path: &Path) -> bool {
    let modified = path.symlink_metadata().and_then(|m| m.modified());
    modified.is_ok_and(|m| m.elapsed().is_ok_and(|age| age > YOUNG))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Names of the semaphores that any process maps. What cannot be read is gone or maps nothing.
fn mapped_semaphores() -> HashSet<String> {
    let mut names = HashSet::new();
    for process in entries(Path::new("/proc")) {
        let Ok(maps) = File::open(process.join("maps")) else { continue };
        for line in BufReader::new(maps).lines().map_while(Result::ok) {
            if let Some(at) = line.find(SEMAPHORE) {
                names.insert(line[at..].split(' ').next().unwrap_or_default().to_owned());
            }
        }
    }
    names
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
    let free = File::open(&path)
        .is_ok_and(|dir| rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive).is_ok());
    if free {
        let _ = std::fs::remove_dir_all(&path);
    }
}
