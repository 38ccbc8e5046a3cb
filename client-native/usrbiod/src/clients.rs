//! The processes that own Iovs and rings, and what becomes of those when they end.
//!
//! FUSE names the *thread* that called, and a directory handle may be closed at any time, so neither tells when a client
//! is gone. A client is a thread group; a pidfd says when it ended. What it registered goes then: Iovs and rings, and the
//! memory of an Iov whose file is still the one that was registered (the rings unlink that, see
//! [`SessionRings::reap`]).

use crate::ring::SessionRings;
use crate::sys::process::start_time;
use crate::types::{Caller, Errno, Owner, UNKNOWN_ID};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::CapabilitySet;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// The process behind a caller. FUSE names a thread; what it registers belongs to the thread group. `tgid` is 0 when
/// the process cannot be seen or is gone.
pub fn owner_of(caller: &Caller) -> Owner {
    let (tgid, start) = thread_group(caller.pid).unwrap_or_default();
    Owner { uid: caller.uid, gid: caller.gid, tgid, start }
}

/// Who asks for what others registered: the user, or where the kernel does not name it, the process.
pub fn asker(caller: &Caller) -> Owner {
    match caller.uid {
        UNKNOWN_ID => owner_of(caller),
        uid => Owner { uid, gid: caller.gid, tgid: 0, start: 0 },
    }
}

/// The process of a caller; 0 when it cannot be seen or is gone. Much faster than [`owner_of`] for most callers.
pub fn tgid_of(caller: &Caller) -> u32 {
    if crate::sys::process::is_leader(caller.pid) {
        return caller.pid;
    }
    ThreadStatus::read(caller.pid).and_then(|status| status.number("Tgid:")).unwrap_or_default()
}

/// Has a caller `CAP_SYS_ADMIN` over this machine, not only in a user namespace of its own?
pub fn is_admin(caller: &Caller) -> bool {
    let all_users = |map: String| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    let has = |status: ThreadStatus| {
        let effective = u64::from_str_radix(status.line("CapEff:")?, 16).ok()?;
        Some(CapabilitySet::from_bits_retain(effective).contains(CapabilitySet::SYS_ADMIN))
    };
    ThreadStatus::read(caller.pid).and_then(has) == Some(true)
        && std::fs::read_to_string(proc_path(caller.pid, "uid_map")).is_ok_and(all_users)
}

/// Thread group of a thread, and its start time.
fn thread_group(tid: u32) -> Option<(u32, u64)> {
    let status = ThreadStatus::read(tid)?;
    let tgid = status.number("Tgid:")?;
    Some((tgid, start_time(tgid)?))
}

/// `/proc/TID/status` of a caller.
pub(crate) struct ThreadStatus(String);

impl ThreadStatus {
    /// `None` when the thread cannot be seen.
    pub(crate) fn read(tid: u32) -> Option<ThreadStatus> {
        if tid == 0 {
            return None;
        }
        std::fs::read_to_string(proc_path(tid, "status")).ok().map(ThreadStatus)
    }

    /// The numbers of a line; none if there is no such line.
    pub(crate) fn numbers(&self, key: &str) -> impl Iterator<Item = u32> + '_ {
        self.line(key).unwrap_or_default().split_ascii_whitespace().filter_map(|n| n.parse().ok())
    }

    /// The text of a line.
    pub(crate) fn line(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
    }

    fn number(&self, key: &str) -> Option<u32> {
        self.numbers(key).next()
    }
}

/// A file of a thread in `/proc`.
pub(crate) fn proc_path(tid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{tid}/{file}"))
}

/// Runs an action once an fd is readable.
pub trait WhenReadable: Send + Sync {
    /// Runs `action` once, on a thread of its own choice, when `fd` is readable; closes `fd` then.
    fn when_readable(&self, fd: OwnedFd, action: Box<dyn FnOnce() + Send>);
}

/// What clients own.
pub trait Owned: Send + Sync {
    /// Drops everything whose owner matches; the number dropped.
    fn reap(&self, gone: &dyn Fn(&Owner) -> bool) -> usize;
}

impl Owned for SessionRings {
    fn reap(&self, gone: &dyn Fn(&Owner) -> bool) -> usize {
        SessionRings::reap(self, gone)
    }
}

/// Watches the clients of one session: when a process ends, its Iovs and rings go.
pub struct ClientWatch {
    owned: Weak<dyn Owned>,
    events: Arc<dyn WhenReadable>,
    /// Thread group and start time of what is watched.
    watched: Mutex<HashSet<(u32, u64)>>,
}

impl ClientWatch {
    /// Watches on behalf of `owned` (the rings of a session), by means of `events`.
    pub fn new<O: Owned + 'static>(owned: &Arc<O>, events: Arc<dyn WhenReadable>) -> Arc<ClientWatch> {
        let owned: Weak<O> = Arc::downgrade(owned);
        Arc::new(ClientWatch { owned, events, watched: Mutex::default() })
    }

    /// Watches the process of `owner`, once; if it is gone already, its objects go at once. Call it *after* the object is
    /// registered: a process that ends in between is then noticed here, or by the watch that is there already. Owners
    /// that cannot be seen (`tgid` 0) are not watched: they are reaped by their handles of `iovs`.
    pub fn watch(self: &Arc<Self>, owner: &Owner) {
        let process = (owner.tgid, owner.start);
        if owner.tgid == 0 || !self.lock().insert(process) {
            return;
        }
        let Some(pid) = i32::try_from(owner.tgid).ok().and_then(Pid::from_raw) else { return };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // If the id is still the client's now, it was so when the pidfd was opened.
            Ok(pidfd) if start_time(owner.tgid) == Some(owner.start) => {
                let this = Arc::downgrade(self);
                let ended = move || {
                    if let Some(watch) = Weak::upgrade(&this) {
                        watch.ended(process);
                    }
                };
                self.events.when_readable(pidfd, Box::new(ended));
            }
            Ok(_) | Err(Errno::SRCH) => self.ended(process),
            Err(errno) => {
                self.lock().remove(&process);
                tracing::error!(tgid = owner.tgid, %errno, "cannot watch a client: what it registers stays until it \
                    is removed by name or the session ends");
            }
        }
    }

    /// All processes of a user that cannot be seen are gone, as far as their handles tell.
    pub fn unseen_gone(&self, uid: u32) {
        self.reap(|owner| owner.tgid == 0 && owner.uid == uid);
    }

    fn ended(&self, process: (u32, u64)) {
        // First, so that an object registered from now on finds no watch and sees for itself.
        self.lock().remove(&process);
        self.reap(|owner| (owner.tgid, owner.start) == process);
    }

    fn reap(&self, gone: impl Fn(&Owner) -> bool) {
        let Some(owned) = self.owned.upgrade() else { return };
        let dropped = owned.reap(&gone);
        if dropped > 0 {
            tracing::info!(dropped, "clients ended: dropped what they had registered");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(u32, u64)>> {
        self.watched.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::process::{Child, Command};
    use std::sync::mpsc;

    /// Owners of objects, as a session's rings have them.
    #[derive(Default)]
    struct Objects(Mutex<Vec<Owner>>);

    impl Owned for Objects {
        fn reap(&self, gone: &dyn Fn(&Owner) -> bool) -> usize {
            self.0.lock().unwrap().extract_if(.., |o| gone(o)).count()
        }
    }

    type Action = Box<dyn FnOnce() + Send>;

    /// Keeps what is waited for until the test lets it happen.
    struct Events(Mutex<mpsc::Sender<(OwnedFd, Action)>>);

    impl WhenReadable for Events {
        fn when_readable(&self, fd: OwnedFd, action: Action) {
            self.0.lock().unwrap().send((fd, action)).unwrap();
        }
    }

    fn watch(objects: &Arc<Objects>) -> (Arc<ClientWatch>, mpsc::Receiver<(OwnedFd, Action)>) {
        let (sender, receiver) = mpsc::channel();
        (ClientWatch::new(objects, Arc::new(Events(Mutex::new(sender)))), receiver)
    }

    fn client() -> (Child, Owner) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let owner = owner_of(&Caller { uid: 5, gid: 6, pid: child.id() });
        (child, owner)
    }

    #[test]
    fn a_thread_is_known_by_its_process() {
        let tid = || rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let (thread, owner) =
            std::thread::spawn(move || (tid(), owner_of(&Caller { uid: 1, gid: 2, pid: tid() })))
                .join()
                .unwrap();
        assert_ne!(thread, std::process::id());
        assert_eq!((owner.tgid, owner.uid, owner.gid), (std::process::id(), 1, 2));
        assert_eq!(Some(owner.start), start_time(std::process::id()));
    }

    #[test]
    fn a_caller_that_cannot_be_seen_has_no_process() {
        for pid in [0, u32::MAX] {
            assert_eq!(
                owner_of(&Caller { uid: 1, gid: 2, pid }),
                Owner { uid: 1, gid: 2, tgid: 0, start: 0 }
            );
        }
    }

    #[test]
    fn what_a_client_registered_goes_when_it_ends_and_nothing_else() {
        let objects = Arc::new(Objects::default());
        let (watch, events) = watch(&objects);
        let (mut child, owner) = client();
        let other = Owner { start: owner.start + 1, ..owner };
        for _ in 0..2 {
            objects.0.lock().unwrap().extend([owner, other]);
            watch.watch(&owner);
        }
        let (pidfd, ended) = events.try_recv().unwrap();
        assert!(events.try_recv().is_err(), "one pidfd for one process");
        child.kill().unwrap();
        let deadline = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&deadline)), Ok(1));
        ended();
        assert_eq!(*objects.0.lock().unwrap(), [other, other]);
        child.wait().unwrap();
    }

    #[test]
    fn a_client_that_ended_before_it_is_watched_loses_its_objects_at_once() {
        let objects = Arc::new(Objects::default());
        let (watch, events) = watch(&objects);
        let (mut child, owner) = client();
        child.kill().unwrap();
        child.wait().unwrap();
        objects.0.lock().unwrap().push(owner);
        watch.watch(&owner);
        assert!(objects.0.lock().unwrap().is_empty() && events.try_recv().is_err());
    }

    #[test]
    fn a_reused_pid_is_not_taken_for_the_client() {
        let objects = Arc::new(Objects::default());
        let (watch, events) = watch(&objects);
        let me = owner_of(&Caller { uid: 0, gid: 0, pid: std::process::id() });
        let before = Owner { start: me.start - 1, ..me };
        objects.0.lock().unwrap().extend([me, before]);
        watch.watch(&before);
        assert_eq!(*objects.0.lock().unwrap(), [me]);
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn unseen_clients_of_one_user_go_together() {
        let objects = Arc::new(Objects::default());
        let (watch, _events) = watch(&objects);
        let unseen = |uid| Owner { uid, gid: 0, tgid: 0, start: 0 };
        let seen = Owner { tgid: 7, ..unseen(1) };
        objects.0.lock().unwrap().extend([unseen(1), unseen(2), seen]);
        watch.watch(&unseen(1));
        watch.unseen_gone(1);
        assert_eq!(*objects.0.lock().unwrap(), [unseen(2), seen]);
    }
}
