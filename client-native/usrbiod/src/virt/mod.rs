//! The `3fs-virt` tree and the ioctls of the mount.

/// The virtual tree of one session.
pub struct Virt {}
