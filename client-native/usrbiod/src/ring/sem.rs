//! The semaphores of the protocol: one per ring that the daemon posts, three per session that clients post.
//!
//! A client's `sem_post` adds 1 to the low half of the word and makes a futex call only if the high half, the number of
//! waiters, is not 0. So the daemon tells clients whether it has to be woken: it stores one waiter before it sleeps
//! and none while it looks at the rings anyway. Both sides change the word by atomic read-modify-write, which are
//! totally ordered:
//!
//! * client: store `sqeHead`; add 1 to the word; if it had waiters, wake.
//! * daemon: [`SubmitSem::expect_wake`] (swap in one waiter, value 0); look at every ring; wait while the value is 0.
//!
//! If the client's add comes first, the daemon's look sees its `sqeHead`. If it comes second, it sees the waiter, and
//! the daemon's wait either is woken or finds the value changed.

use super::shm::{SharedMap, check_file};
use crate::types::{Errno, Result};
use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::thread::futex;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use usrbio_wire::sem::{ONE_WAITER, VALUE_AT, value, waiters};

const FILE_LEN: u64 = size_of::<libc::sem_t>() as u64;
/// How the files' names begin.
pub(crate) const NAME_PREFIX: &str = "sem.hf3fs-submit-ios.";

/// `sem_post` on the semaphore at `at`. It is the peer's memory: whatever is in it, nothing worse than a needless wake-up
/// comes of it (glibc's own would abort on some errors).
pub(super) fn post(map: &SharedMap, at: usize) {
    let word = map.word(at);
    let mut seen = word.load(Ordering::Relaxed);
    while value(seen) < i32::MAX as u32 {
        match word.compare_exchange_weak(seen, seen + 1, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
    if waiters(seen) > 0 {
        let _ = futex::wake(map.futex(at + VALUE_AT), futex::Flags::empty(), 1);
    }
}

/// A named semaphore that clients post when they submit.
#[derive(Debug)]
pub(super) struct SubmitSem {
    name: String,
    map: SharedMap,
    _fd: OwnedFd,
}

/// Says by a shared lock that a daemon lives which uses the file: who cleans up looks for it.
fn hold(fd: &OwnedFd) -> Result<()> {
    rustix::fs::flock(fd, FlockOperation::NonBlockingLockShared)
}

impl SubmitSem {
    /// Makes a semaphore that everybody in the pod may post. `ENOSPC`: the directory's file system is full.
    pub(super) fn create(shm: impl AsFd) -> Result<SubmitSem> {
        let name = format!("{NAME_PREFIX}{}", uuid::Uuid::new_v4());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&shm, &name, flags, Mode::from_raw_mode(0o600))?;
        SubmitSem::init(name.clone(), fd).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&shm, &name, AtFlags::empty());
        })
    }

    fn init(name: String, fd: OwnedFd) -> Result<SubmitSem> {
        // With its page: touched without one, the mapping would be poisoned, and clients would post another page.
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, FILE_LEN)?;
        let map = SharedMap::new(&fd, FILE_LEN, true)?;
        map.init_semaphore(0)?;
        hold(&fd)?;
        // Not by the mode above: the umask applies to it.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o666))?;
        Ok(SubmitSem { name, map, _fd: fd })
    }

    /// Takes over the semaphore of that name. `EBADMSG`: it is not one of ours.
    pub(super) fn reopen(shm: impl AsFd, name: &str) -> Result<SubmitSem> {
        if !name.starts_with(NAME_PREFIX) || name.contains('/') {
            return Err(Errno::BADMSG);
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(shm, name, flags, Mode::empty(), resolve)?;
        let stat = check_file(&fd)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || (stat.st_size as u64) < FILE_LEN {
            return Err(Errno::BADMSG);
        }
        let map = SharedMap::new(&fd, FILE_LEN, true)?;
        hold(&fd)?;
        Ok(SubmitSem { name: name.to_owned(), map, _fd: fd })
    }

    /// The file's name in the shm directory.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes the file.
    pub(super) fn unlink(&self, shm: impl AsFd) {
        if let Err(error) = rustix::fs::unlinkat(shm, &self.name, AtFlags::empty()) {
            tracing::debug!(semaphore = self.name, %error, "submit semaphore was not removed");
        }
    }

    /// Did somebody post since the last [`quiet`](Self::quiet) or [`expect_wake`](Self::expect_wake)?
    pub(super) fn posted(&self) -> bool {
        value(self.map.word(0).load(Ordering::Relaxed)) != 0
    }

    /// Drains it in one step (a hostile client can set 2^31), and tells clients that they need not wake anybody.
    pub(super) fn quiet(&self) {
        self.map.word(0).swap(0, Ordering::SeqCst);
    }

    /// Drains it and tells clients to wake the daemon. The caller looks at every ring *after* this, then waits.
    pub(super) fn expect_wake(&self) {
        self.map.word(0).swap(ONE_WAITER, Ordering::SeqCst);
    }

    /// Where to wait while the value is 0; `None` when somebody truncated the file: then only the periodic scan finds
    /// this session's requests.
    pub(super) fn futex(&self) -> Option<&AtomicU32> {
        let futex = self.map.futex(VALUE_AT);
        (!self.map.poisoned()).then_some(futex)
    }
}
