//! Tells the kernel what to forget, from a thread of its own.
//!
//! A notification waits for locks of the kernel: of the directory, or of pages. Their holder may be a process that waits for
//! an answer of this daemon, and if all FUSE workers waited so, that answer would never come.

use std::sync::mpsc;
use std::time::Duration;

/// How long an answer waits until the kernel has forgotten. Mostly that takes microseconds; when it takes longer, the
/// caller may see old entries until they time out or the notification gets through.
const PATIENCE: Duration = Duration::from_millis(200);

/// Runs `notify`, and waits for it, but not for ever.
pub(super) fn tell(notify: impl FnOnce() + Send + 'static) {
    if let Some(done) = start(notify) {
        let _ = done.recv_timeout(PATIENCE);
    }
}

/// Runs `notify` without waiting: for where the request itself holds the lock.
pub(super) fn tell_later(notify: impl FnOnce() + Send + 'static) {
    start(notify);
}

fn start(notify: impl FnOnce() + Send + 'static) -> Option<mpsc::Receiver<()>> {
    let (sender, done) = mpsc::channel();
    let run = move || {
        notify();
        let _ = sender.send(());
    };
    match std::thread::Builder::new().name("notify".into()).spawn(run) {
        Ok(_) => Some(done),
        Err(error) => {
            tracing::warn!(%error, "no thread to tell the kernel of a change: it may show old entries for a second");
            None
        }
    }
}
