//! The FUSE protocol: requests off `/dev/fuse`, replies onto it.
//!
//! A [`Pool`] of workers waits for the requests of all sessions, [`request`] makes typed views of them, `dispatch` calls
//! [`fs`](crate::fs) or [`virt`](crate::virt), and [`reply`] turns what they return into wire structs. `replay` notes what
//! a successor must know to answer a request whose reply was never written.

pub mod abi;
mod buffer;
mod channel;
mod crew;
mod dispatch;
mod gate;
mod init;
mod lock_calls;
pub mod notify;
mod pool;
mod replay;
pub mod reply;
pub mod request;
mod worker;

pub use buffer::MAX_IO;
pub use channel::Channel;
pub use gate::Gate;
pub use init::asked;
pub use notify::{Note, Notifier};
pub use pool::Pool;
