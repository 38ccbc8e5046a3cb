//! `usrbiod`, the node daemon of kube3fs.
//!
//! One process serves many [sessions](session::Session). A session is one FUSE mount: a `/dev/fuse` fd, a backing
//! directory and the shared-memory directory of the pod that sees the mount. Requests arrive on two ways:
//!
//! * [`fuse`]: the kernel's requests, answered by [`fs`] (the backing directory) and [`virt`] (`3fs-virt`);
//! * [`ring`]: USRBIO rings in shared memory, executed between the backing file and the client's Iov.
//!
//! What a successor must know after a crash is in [`state`], a file that outlives the process; the fds that it
//! needs are with the peer on the [`control`] socket.

pub mod budget;
pub mod cli;
pub mod clients;
pub mod control;
pub mod daemon;
pub mod fs;
pub mod fuse;
pub mod logging;
pub mod metrics;
pub mod metrics_http;
pub mod mounts;
pub mod ring;
pub mod run;
pub mod session;
pub mod standalone;
pub mod state;
pub mod sys;
pub mod types;
pub mod virt;
