//! Where work of many steps waits while its session is not served.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// Work that takes as long as its caller likes (the removal of a tree) passes the gate before each step. While it is closed
/// the work stands still: for a hand-over that counts as not running. If the process ends so, a successor does the request
/// again, from what is left.
#[derive(Default)]
pub struct Gate {
    closed: AtomicBool,
    parked: Mutex<u32>,
    opened: Condvar,
}

impl Gate {
    /// Goes on at once, or when the gate is open again.
    pub fn pass(&self) {
        if !self.closed.load(Ordering::SeqCst) {
            return;
        }
        let mut parked = self.lock();
        *parked += 1;
        while self.closed.load(Ordering::SeqCst) {
            parked = self.opened.wait(parked).unwrap_or_else(|e| e.into_inner());
        }
        *parked -= 1;
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        let parked = self.lock();
        self.closed.store(false, Ordering::SeqCst);
        drop(parked);
        self.opened.notify_all();
    }

    /// How many stand still now, and stay so until it opens.
    pub(super) fn parked(&self) -> u32 {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.parked.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stands_still_while_the_gate_is_closed() {
        let gate = Gate::default();
        gate.pass();
        gate.close();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| gate.pass());
            while gate.parked() == 0 {
                std::thread::yield_now();
            }
            assert!(!worker.is_finished());
            gate.open();
            worker.join().unwrap();
        });
        assert_eq!(gate.parked(), 0);
    }
}
