//! USRBIO rings: registration, and the workers that execute their requests.

use crate::types::{Caller, Errno, Owner, Result};
use usrbio_wire::Priority;

/// A registered Iov or ring as `3fs-virt/iovs` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The name in `iovs`, exactly as registered.
    pub name: String,
    /// The link's target, exactly as given.
    pub target: String,
    /// Who registered it.
    pub owner: Owner,
    /// Stable, unique in the session while registered, below 2^16.
    pub number: u32,
    /// A ring, not an Iov.
    pub is_ring: bool,
    /// Bytes of the shared-memory file.
    pub len: u64,
}

/// The Iovs and rings of one session.
pub struct SessionRings {}

impl SessionRings {
    /// Registers `name` for the shared memory at `target`: opens, checks, maps, and for a ring starts to serve it. All of
    /// it is done when this returns. Errors as in the contract: `EINVAL` for the name, `EACCES` for the memory, `EMFILE` at
    /// a limit, `EEXIST` for a name that is there.
    pub fn register(&self, name: &str, target: &str, owner: &Owner) -> Result<ObjectInfo> {
        let _ = (name, target, owner);
        Err(Errno::NOSYS)
    }

    /// Drops a registration. `ENOENT`, or `EPERM` for somebody else's (root may drop any).
    pub fn unregister(&self, name: &str, caller: &Caller) -> Result<()> {
        let _ = (name, caller);
        todo!()
    }

    /// The object of that name.
    pub fn find(&self, name: &str) -> Option<ObjectInfo> {
        let _ = name;
        todo!()
    }

    /// All objects.
    pub fn list(&self) -> Vec<ObjectInfo> {
        todo!()
    }

    /// Where the link to the submit semaphore of a priority leads (`/dev/shm/sem.<name>`); `None` without a shm directory.
    pub fn semaphore_target(&self, priority: Priority) -> Option<String> {
        let _ = priority;
        todo!()
    }

    /// Drops everything that matches, as when its process is gone; the number dropped.
    pub fn reap(&self, gone: impl Fn(&Owner) -> bool) -> usize {
        let _ = gone;
        todo!()
    }
}
