//! Shared-memory files that nobody will ever unlink: a client that was killed between making its file and registering it
//! left it, and no daemon heard of it.
//!
//! Whether somebody still uses a file is asked of the kernel, by a write lease. What is registered is in use too: the
//! daemon has it open.

use super::guard;
use super::registry::IOV_FILE_PREFIX;
use crate::sys::creds::Scope;
use crate::sys::lease::lease_for_writing;
use crate::types::{Errno, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A directory with more entries is not searched.
const MOST_ENTRIES: usize = 4096;
/// Registrations sweep no more often.
const PAUSE: Duration = Duration::from_secs(1);
/// An empty file of this age may be in the middle of `open(O_CREAT)`, where it has a name but is not open yet.
const IN_CREATION: Duration = Duration::from_secs(1);

/// When the last sweep ended. Held over a sweep, as two at once would find each other's files in use.
#[derive(Debug, Default)]
pub(super) struct Sweeper(Mutex<Option<Instant>>);

impl Sweeper {
    /// Sweeps `shm`, after a sweep that is under way; the number of files that went.
    pub(super) fn sweep(&self, shm: BorrowedFd<'_>) -> usize {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = on_own_thread(shm);
        *last = Some(Instant::now());
        removed
    }

    /// As [`sweep`](Self::sweep), unless there was one within the last second or one is under way.
    pub(super) fn sweep_now_and_then(&self, shm: BorrowedFd<'_>) {
        let mut last = match self.0.try_lock() {
            Ok(last) => last,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if last.is_none_or(|last| last.elapsed() >= PAUSE) {
            on_own_thread(shm);
            *last = Some(Instant::now());
        }
    }
}

/// On a thread of its own: acting for the owners of files changes the umask and capabilities of a thread for good, and
/// the caller may be the control thread.
fn on_own_thread(shm: BorrowedFd<'_>) -> usize {
    guard::prepare_signals();
    let swept = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("sweep".into());
        let thread = thread.spawn_scoped(scope, || sweep(shm)).map_err(|_| Errno::AGAIN)?;
        thread.join().unwrap_or(Err(Errno::IO))
    });
    match swept {
        Ok(removed) => {
            if removed > 0 {
                tracing::info!(removed, "removed shared memory that killed clients left");
            }
            removed
        }
        Err(error) => {
            tracing::debug!(%error, "the shared-memory directory could not be swept");
            0
        }
    }
}

fn sweep(shm: BorrowedFd<'_>) -> Result<usize> {
    let mut candidates: Vec<CString> = Vec::new();
    for (count, entry) in Dir::read_from(shm)?.enumerate() {
        if count >= MOST_ENTRIES {
            return Ok(0);
        }
        let entry = entry?;
        if entry.file_name().to_bytes().starts_with(IOV_FILE_PREFIX.as_bytes()) {
            candidates.push(entry.file_name().to_owned());
        }
    }
    Ok(candidates.iter().filter(|name| remove_unused(shm, name).is_ok()).count())
}

/// Unlinks a file that no process has open or mapped. As its owner: so the kernel grants the lease, and unlinks only what
/// the owner may, should a client put another file in its place meanwhile.
fn remove_unused(shm: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let there = rustix::fs::statat(shm, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile || in_creation(&there) {
        return Err(Errno::BUSY);
    }
    let as_owner = Scope::unprivileged(there.st_uid, there.st_gid)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(shm, name, flags, Mode::empty())?;
    lease_for_writing(fd.as_fd())?;
    let ours = rustix::fs::fstat(&fd)?;
    let named = rustix::fs::statat(shm, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !same_file(&ours, &named) {
        return Err(Errno::BUSY);
    }
    rustix::fs::unlinkat(shm, name, AtFlags::empty())?;
    drop(fd); // ends the lease, as its owner
    drop(as_owner);
    Ok(())
}

pub(super) fn same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn in_creation(stat: &Stat) -> bool {
    let changed = UNIX_EPOCH + Duration::new(stat.st_ctime.max(0) as u64, stat.st_ctime_nsec as u32);
    let age = SystemTime::now().duration_since(changed).unwrap_or_default();
    stat.st_size == 0 && age < IN_CREATION
}
