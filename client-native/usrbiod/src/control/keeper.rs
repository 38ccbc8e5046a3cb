//! Hands fds that cannot be opened a second time to the peer, so that they outlive this process.

use super::message::Event;
use super::socket::Seqpacket;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Longest time that a client waits because the peer does not read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The peer's end for fds of one daemon. Without a peer, nothing is kept and nothing survives a crash.
#[derive(Debug, Default)]
pub struct Keeper {
    peer: Mutex<Option<Arc<Seqpacket>>>,
    /// It was said already that there is no peer.
    warned: AtomicBool,
}

impl Keeper {
    /// Gives the peer a duplicate of `fd`, under a key that is unique in the session: the object's name in `iovs`, or `node:` and a number. When
    /// this returns the fd is in the peer's socket, which is as good as in its hands: it stays there if this
    /// process dies.
    pub fn keep(&self, session: &str, key: &str, fd: BorrowedFd<'_>) {
        self.send(&Event::Keep { session: session.to_owned(), key: key.to_owned() }, &[fd]);
    }

    /// The fd under `key` is not needed any more.
    pub fn forget(&self, session: &str, key: &str) {
        self.send(&Event::Forget { session: session.to_owned(), key: key.to_owned() }, &[]);
    }

    /// No fd of the session is needed any more. `unmounted`: nobody asked for it.
    pub(crate) fn detached(&self, session: &str, unmounted: bool) {
        self.send(&Event::Detached { session: session.to_owned(), unmounted }, &[]);
    }

    /// Events go to this peer from now on. One that was there before is hung up on: it is the same peer, restarted.
    pub(crate) fn set_peer(&self, peer: Arc<Seqpacket>) {
        self.warned.store(false, Ordering::Relaxed);
        if let Some(old) = self.peer().replace(peer) {
            old.shutdown();
        }
    }

    /// `peer` is gone; no matter if it is the keeper no more.
    pub(crate) fn remove_peer(&self, peer: &Arc<Seqpacket>) {
        self.peer().take_if(|current| Arc::ptr_eq(current, peer));
    }

    /// Do events go there?
    pub(crate) fn is_peer(&self, peer: &Arc<Seqpacket>) -> bool {
        self.peer().as_ref().is_some_and(|current| Arc::ptr_eq(current, peer))
    }

    fn peer(&self) -> MutexGuard<'_, Option<Arc<Seqpacket>>> {
        self.peer.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn send(&self, event: &Event, fds: &[BorrowedFd<'_>]) {
        let Some(peer) = self.peer().clone() else {
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "no peer keeps fds: rings and open files without a name would not survive the end of this process"
                );
            }
            return;
        };
        let bytes = serde_json::to_vec(event).unwrap_or_default();
        if let Err(errno) = peer.send_within(&bytes, fds, PATIENCE) {
            tracing::warn!(%errno, "the peer takes no fds: its connection is closed");
            self.remove_peer(&peer);
            peer.shutdown();
        }
    }
}
