//! The USRBIO client: zero-copy, batched, asynchronous I/O on files of a 3FS mount.
//!
//! * [`Mount`] names a mount; [`Mount::of`] finds the one that holds a path.
//! * [`Iov`] is a buffer in shared memory that the daemon reads and writes directly.
//! * [`RegisteredFile`] is a file that requests may name.
//! * [`Ring`] takes [`Request`]s, tells the daemon, and gives completions back.
//!
//! Control goes through the mount as system calls (symlink, readlink, ioctl); data goes through shared memory, with
//! no system call but the semaphores' when somebody sleeps. [`Ring`] has an example.
//!
//! A process makes its rings after it forks: a ring inherited from the parent refuses with [`Error::Forked`].

pub mod error;
pub mod fd;
mod fork;
pub mod ior;
pub mod iov;
pub mod mount;
mod sem;
pub mod shm;
mod slots;
#[cfg(test)]
mod testing;
pub mod wait;

pub use error::{Error, PrepError};
pub use fd::{Access, FileId, RegisteredFile};
pub use ior::{Buffer, Prepared, Preparer, Reaper, Request, Ring, RingCore, RingOptions};
pub use iov::{Iov, Registration};
pub use mount::Mount;
pub use usrbio_wire::{Cqe, Geometry, Ino, Priority, RingFlags};
pub use wait::Deadline;
