//! Work with a caller's own permissions.
//!
//! The kernel checks what goes through the mount as ordinary requests; an ioctl, or a link that is an order, it does not.
//! Those run on a thread of their own that acts as the caller: with its file system ids, its supplementary groups, and no
//! capability over files that the caller has not. The thread ends with the work, so there is nothing to put back.

use crate::clients::ThreadStatus;
use crate::sys::creds::Scope;
use crate::types::{Caller, Errno, Result};
use rustix::fs::Gid;
use rustix::thread::CapabilitySet;

/// What lets a thread pass over file permissions.
const OVER_FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::MAC_OVERRIDE);

/// Runs `work` with the permissions of `caller`.
pub(super) fn as_caller<T: Send>(caller: &Caller, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let standing = Standing::of(caller);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("as-caller".into());
        let run = || {
            let _ids = standing.assume()?;
            work()
        };
        let thread = thread.spawn_scoped(scope, run).map_err(|_| Errno::AGAIN)?;
        thread.join().unwrap_or(Err(Errno::IO))
    })
}

/// What a caller may.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    over_files: CapabilitySet,
}

impl Standing {
    /// Reads what FUSE does not say from `/proc`. The caller waits for its answer, so it is still there, unless it was
    /// killed and its id given to another thread: one that has other ids counts as not to be seen.
    fn of(caller: &Caller) -> Standing {
        let (uid, gid) = (caller.uid, caller.gid);
        let none = Standing { uid, gid, groups: Vec::new(), over_files: CapabilitySet::empty() };
        let Some(status) = ThreadStatus::read(caller.pid) else { return none };
        // The fourth number is the file system id.
        if (status.numbers("Uid:").nth(3), status.numbers("Gid:").nth(3)) != (Some(uid), Some(gid)) {
            return none;
        }
        let effective = status.line("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        // Another user's capabilities may be those of a user namespace: they do not count here.
        let effective = effective.filter(|_| uid == 0).unwrap_or_default();
        Standing {
            groups: status.numbers("Groups:").collect(),
            over_files: CapabilitySet::from_bits_truncate(effective) & OVER_FILES,
            ..none
        }
    }

    /// Makes this thread's standing the caller's.
    fn assume(&self) -> Result<Scope> {
        let scope = Scope::unprivileged(self.uid, self.gid)?;
        let groups: Vec<Gid> = self.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        rustix::thread::set_thread_groups(&groups)?;
        let mut sets = rustix::thread::capabilities(None)?;
        sets.effective &= !OVER_FILES | self.over_files;
        rustix::thread::set_capabilities(None, sets)?;
        Ok(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::Command;

    #[test]
    fn a_user_may_only_what_permissions_allow() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let file = dir.path().join("roots");
        std::fs::write(&file, "").unwrap();
        let caller = Caller { uid: 4321, gid: 4321, pid: 0 };
        let removed = as_caller(&caller, || rustix::fs::unlink(&file));
        assert_eq!(removed, Err(Errno::ACCESS));
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let made = dir.path().join("made");
        as_caller(&caller, || rustix::fs::mkdir(&made, rustix::fs::Mode::RWXU)).unwrap();
        let made = std::fs::metadata(made).unwrap();
        assert_eq!((made.uid(), made.gid()), (4321, 4321));
        assert!(rustix::fs::unlink(&file).is_ok(), "the test's own thread is root still");
    }

    #[test]
    fn root_without_capabilities_that_can_be_seen_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(4321), None).unwrap();
        let path = dir.path().join("x");
        let make = |pid| {
            as_caller(&Caller { uid: 0, gid: 0, pid }, || rustix::fs::mkdir(&path, rustix::fs::Mode::RWXU))
        };
        assert_eq!(make(0), Err(Errno::ACCESS));
        assert_eq!(make(std::process::id()), Ok(()));
    }

    #[test]
    fn supplementary_groups_are_those_of_the_calling_thread() {
        let mut child = Command::new("setpriv")
            .args(["--reuid=4321", "--regid=4321", "--groups=77,78", "sleep", "60"])
            .spawn()
            .unwrap();
        let caller = |uid| Caller { uid, gid: 4321, pid: child.id() };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while Standing::of(&caller(4321)).groups != [77, 78] {
            assert!(std::time::Instant::now() < deadline, "{:?}", Standing::of(&caller(4321)));
            std::thread::yield_now();
        }
        assert_eq!(Standing::of(&caller(4322)).groups, [0; 0], "somebody else has that id now");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
