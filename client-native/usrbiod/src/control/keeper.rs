//! Hands fds that cannot be opened a second time to the peer, so that they outlive this process.

use std::os::fd::BorrowedFd;

/// The peer's end for fds of one daemon. Without a peer, nothing is kept and nothing survives a crash.
#[derive(Default)]
pub struct Keeper {}

impl Keeper {
    /// Gives the peer a duplicate of `fd`, under a key that is unique in the session: the object's name in `iovs`. When
    /// this returns the fd is in the peer's socket, which is as good as in its hands: it stays there if this
    /// process dies.
    pub fn keep(&self, session: &str, key: &str, fd: BorrowedFd<'_>) {
        let _ = (session, key, fd);
        todo!()
    }

    /// The fd under `key` is not needed any more.
    pub fn forget(&self, session: &str, key: &str) {
        let _ = (session, key);
        todo!()
    }
}
