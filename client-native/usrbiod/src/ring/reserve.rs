//! Memory that a client has not touched yet is made present before it is registered, and on the client's account.
//!
//! The kernel charges a page of a tmpfs to the memory cgroup of whoever touches it first. Clients of 3FS register memory that
//! nobody has touched, and requests would fill it in the name of this daemon, gigabytes beyond the pod's limit. So a helper,
//! this program once more ([`run`]), moves to the client's cgroup, allocates what is missing, and ends. It also
//! is why a tmpfs that is too small is an error here, and no SIGBUS of the client later.

use crate::sys::cgroup::MemoryCgroup;
use crate::types::{Errno, Owner, Result};
use rustix::fs::{FallocateFlags, Stat};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Under a tight CPU limit a pod's helper is as slow as the pod.
const PATIENCE: Duration = Duration::from_secs(60);
/// `fallocate` gives everything back when a signal comes: steps of this size bound what is lost then.
const STEP: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// Exit code of a helper that could not move.
const NOT_MOVED: u8 = 200;

static HELPER: OnceLock<PathBuf> = OnceLock::new();

/// From now on, `program reserve …` is run as the helper. Without it, all is allocated on this process's account.
pub fn use_helper(program: PathBuf) {
    let _ = HELPER.set(program);
}

/// Bytes of the first `len` that have no page.
fn missing(stat: &Stat, len: u64) -> u64 {
    len.next_multiple_of(PAGE).saturating_sub(stat.st_blocks as u64 * 512)
}

/// Makes the first `len` bytes of a file in shared memory present. `ENOSPC`: its file system is too small. `ENOMEM`: the
/// client's limit of memory is.
pub(super) fn reserve(session: &str, fd: &OwnedFd, stat: &Stat, len: u64, owner: &Owner) -> Result<()> {
    let missing = missing(stat, len);
    if missing == 0 {
        return Ok(());
    }
    // Asking for too much at once takes the rest from everybody in the pod for a moment: look first.
    let space = rustix::fs::fstatvfs(fd)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if space.f_blocks != 0 && free < missing {
        tracing::debug!(session, uid = owner.uid, missing, free, "shared memory is full");
        return Err(Errno::NOSPC);
    }
    let Some(cgroup) = foreign_cgroup(owner) else { return allocate(fd, len, None) };
    let room = cgroup.room();
    if room < missing {
        let cgroup = cgroup.dir().display();
        tracing::debug!(session, uid = owner.uid, %cgroup, missing, room, "beyond the client's memory limit");
        return Err(Errno::NOMEM);
    }
    let status = match start(&cgroup.procs(), fd, len).and_then(wait) {
        Ok(status) => status,
        Err(errno) => {
            tracing::warn!(session, %errno, "no helper: a client's memory is on this daemon's account");
            return allocate(fd, len, None);
        }
    };
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) if code == i32::from(NOT_MOVED) => {
            let cgroup = cgroup.dir().display();
            tracing::warn!(session, %cgroup, "not to be entered: a client's memory is on this daemon's account");
            allocate(fd, len, None)
        }
        (Some(errno), _) => Err(Errno::from_raw_os_error(errno)),
        // The limit was reached all the same, or it took too long.
        (None, signal) => {
            tracing::debug!(
                session,
                uid = owner.uid,
                missing,
                ?signal,
                "the client's memory was not reserved"
            );
            Err(Errno::NOMEM)
        }
    }
}

/// The client's memory cgroup, if it is not ours and there is a helper.
fn foreign_cgroup(owner: &Owner) -> Option<MemoryCgroup> {
    HELPER.get()?;
    let theirs = MemoryCgroup::of(owner.tgid)?;
    let ours = MemoryCgroup::of(std::process::id());
    (ours.as_ref() != Some(&theirs)).then_some(theirs)
}

fn start(procs: &Path, fd: &OwnedFd, len: u64) -> Result<Child> {
    let program = HELPER.get().ok_or(Errno::NOENT)?;
    let child = Command::new(program)
        .arg("reserve")
        .arg(procs)
        .arg(len.to_string())
        .env_clear()
        .stdin(Stdio::from(fd.try_clone().map_err(|e| errno_of(&e))?))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.map_err(|error| errno_of(&error))
}

fn wait(mut child: Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(pause),
            // Killed, it ends at its next step. Where the daemon may send no signals, it ends by itself then.
            _ => {
                let _ = child.kill();
                return child.wait().map_err(|error| errno_of(&error));
            }
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Only what is missing; the size of the file stays. ETIMEDOUT after the `deadline`.
fn allocate(fd: impl AsFd, len: u64, deadline: Option<Instant>) -> Result<()> {
    let mut done = 0;
    while done < len {
        if deadline.is_some_and(|end| Instant::now() > end) {
            return Err(Errno::TIMEDOUT);
        }
        let step = STEP.min(len - done);
        match rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, done, step) {
            Ok(()) => done += step,
            Err(Errno::INTR) => {}
            // Not a tmpfs: nothing is reserved there.
            Err(Errno::OPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The helper: moves to the cgroup of `procs`, makes the first `len` bytes of the file on stdin present; the exit code.
pub fn run(procs: &Path, len: u64) -> u8 {
    // Should the pod's limit be reached all the same, this process goes, and none of the pod's.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if std::fs::write(procs, "0").is_err() {
        return NOT_MOVED;
    }
    match allocate(std::io::stdin(), len, Some(Instant::now() + PATIENCE)) {
        Ok(()) => 0,
        Err(errno) => u8::try_from(errno.raw_os_error()).unwrap_or(1),
    }
}
