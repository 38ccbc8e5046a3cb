//! The control socket: the peer that mounts attaches sessions here, and keeps their fds.
//!
//! The protocol is in CONTROL.md: one JSON object a message ([`message`]) over a `SOCK_SEQPACKET` socket ([`socket`]).

pub mod client;
pub mod error;
mod keeper;
pub mod message;
pub mod server;
pub mod socket;

pub use keeper::Keeper;
