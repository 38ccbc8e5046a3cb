//! The control socket: the peer that mounts attaches sessions here, and keeps their fds.

mod keeper;
pub use keeper::Keeper;
