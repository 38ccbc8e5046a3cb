//! USRBIO rings: registration, and the workers that execute their requests.
//!
//! * [`shm`](self): opens and maps what clients name; a peer may truncate it at any moment (`guard`).
//! * `registry`: the Iovs and rings of a session ([`SessionRings`]), and what a successor must know of them.
//! * `reserve`: memory that clients have not touched is allocated on their account.
//! * `sweep`: files that clients left which died before they registered them.
//! * `engine`, `watcher`, `worker`, `home`: who looks at which ring, and when it sleeps.
//! * `job`, `exec`: one ring's turn, one request; `file` and `holes` know the backing file; `io` is the io_uring.

mod engine;
mod exec;
mod file;
mod guard;
mod holes;
mod home;
mod io;
mod job;
mod object;
mod registry;
mod reserve;
mod sem;
mod shm;
mod slab;
mod sweep;
#[cfg(test)]
mod tests;
mod watcher;
mod worker;

pub use engine::Engine;
pub use registry::{RingsConfig, SessionRings, remove_semaphores};
pub use reserve::{run as reserve_as_helper, use_helper};
pub(crate) use sem::NAME_PREFIX;

use crate::fs::{BackingFile, Fs};
use crate::types::{Ino, Owner, Result};
use std::sync::Arc;

/// Where rings get their files from.
pub trait Files: Send + Sync {
    /// The backing file of an inode: see [`Fs::ring_file`].
    fn ring_file(&self, ino: Ino, owner: &Owner, write: bool) -> Result<Arc<BackingFile>>;
    /// Rings wrote to it: see [`Fs::written`].
    fn written(&self, file: &BackingFile);
}

impl Files for Fs {
    fn ring_file(&self, ino: Ino, owner: &Owner, write: bool) -> Result<Arc<BackingFile>> {
        Fs::ring_file(self, ino, owner, write)
    }
    fn written(&self, file: &BackingFile) {
        Fs::written(self, file);
    }
}

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
