//! glibc's POSIX semaphores, which rustix does not have: the daemon's submit semaphores, and the completion
//! semaphore at the end of each ring.

use crate::error::Error;
use crate::fork::Generation;
use rustix::fs::Timespec;
use rustix::io::Errno;
use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use usrbio_wire::sem as layout;

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64")))]
compile_error!("USRBIO shares the sem_t of 64-bit glibc between processes: build for a *-linux-gnu target");

/// The daemon's semaphore for one priority: a post makes it look at the rings.
#[derive(Debug)]
pub(crate) struct SubmitSem {
    sem: NonNull<libc::sem_t>,
    made_in: Generation,
}

// SAFETY: POSIX semaphores may be posted from any thread.
unsafe impl Send for SubmitSem {}
// SAFETY: as above.
unsafe impl Sync for SubmitSem {}

impl SubmitSem {
    /// Opens the semaphore that `link` (`3fs-virt/iovs/submit-ios*`) leads to.
    pub(crate) fn open(link: &Path) -> Result<SubmitSem, Error> {
        let target = rustix::fs::readlink(link, Vec::new()).map_err(Error::os("read the link", link))?;
        let name = semaphore_name(target.as_bytes()).ok_or_else(|| Error::Semaphore {
            link: link.to_owned(),
            target: target.to_string_lossy().into_owned(),
        })?;
        // SAFETY: the name is a NUL-terminated string, and without O_CREAT there are no further arguments.
        let sem = unsafe { libc::sem_open(name.as_ptr(), 0) };
        let made_in = Generation::current();
        NonNull::new(sem).map(|sem| SubmitSem { sem, made_in }).ok_or_else(|| {
            let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
            Error::Os { what: "open the submit semaphore", path: link.to_owned(), errno }
        })
    }

    /// Wakes the daemon. A full counter is no error: the daemon has enough reasons to look then.
    #[inline]
    pub(crate) fn post(&self) {
        // SAFETY: open until drop.
        unsafe { libc::sem_post(self.sem.as_ptr()) };
    }

    /// Is a wake-up on its way already? Then the daemon will look at the rings after this moment.
    pub(crate) fn is_posted(&self) -> bool {
        let mut value = 0;
        // SAFETY: open until drop; `value` is a live int.
        unsafe { libc::sem_getvalue(self.sem.as_ptr(), &raw mut value) == 0 && value > 0 }
    }
}

impl Drop for SubmitSem {
    fn drop(&mut self) {
        // sem_close takes a lock of glibc that another thread may have held when this child was forked: better leave
        // the mapping of one page than wait for ever.
        if !self.made_in.is_current() {
            return;
        }
        // SAFETY: opened by sem_open and closed once. glibc counts how often a name was opened.
        unsafe { libc::sem_close(self.sem.as_ptr()) };
    }
}

/// `/<name>` from `/dev/shm/sem.<name>`, as sem_open wants it.
fn semaphore_name(target: &[u8]) -> Option<CString> {
    let name = target.strip_prefix(b"/dev/shm/sem.")?;
    let plain = !name.is_empty() && !name.contains(&b'/') && target.len() < 256;
    let name = [b"/", name].concat();
    plain.then(|| CString::new(name).ok()).flatten()
}

/// The completion semaphore inside a ring. The daemon initialises it and posts it once a batch.
#[derive(Debug)]
pub(crate) struct RingSem(NonNull<libc::sem_t>);

// SAFETY: POSIX semaphores may be waited for by any thread.
unsafe impl Send for RingSem {}
// SAFETY: as above.
unsafe impl Sync for RingSem {}

impl RingSem {
    /// The semaphore at `at`.
    ///
    /// # Safety
    /// `at..at + 32` must be mapped for as long as the value is used, and `at` a multiple of 8.
    pub(crate) unsafe fn new(at: NonNull<u8>) -> RingSem {
        RingSem(at.cast())
    }

    /// Forgets all posts. Completions found without sleeping leave theirs behind; a waiter that took them one by
    /// one would spin through all of them before it sleeps. The caller looks at the ring afterwards.
    pub(crate) fn drain(&self) {
        // SAFETY: mapped and aligned (`new`); both processes touch the word as an atomic only.
        let word = unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast()) };
        if layout::value(word.load(Ordering::SeqCst)) != 0 {
            word.fetch_and(!(layout::ONE_WAITER - 1), Ordering::SeqCst);
        }
    }

    /// Sleeps until a post, a signal, or `until` on the real-time clock.
    pub(crate) fn wait_until(&self, until: Timespec) {
        let until = libc::timespec { tv_sec: until.tv_sec, tv_nsec: until.tv_nsec };
        // SAFETY: mapped (`new`); `until` outlives the call. Why it returns does not matter: the ring tells.
        unsafe { libc::sem_timedwait(self.0.as_ptr(), &raw const until) };
    }

    #[cfg(test)]
    pub(crate) fn post(&self) {
        // SAFETY: mapped (`new`).
        unsafe { libc::sem_post(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::semaphore_name;

    #[test]
    fn only_one_plain_component_below_dev_shm_is_a_semaphore() {
        let name = |target: &str| semaphore_name(target.as_bytes());
        assert_eq!(name("/dev/shm/sem.hf3fs-submit-ios.1").unwrap().as_bytes(), b"/hf3fs-submit-ios.1");
        for bad in ["", "/dev/shm/sem.", "/dev/shm/sem.a/b", "/dev/shm/x", "/tmp/sem.a", "sem.a"] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(name(&format!("/dev/shm/sem.{}", "a".repeat(256))), None);
    }
}
