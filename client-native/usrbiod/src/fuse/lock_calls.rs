//! What the lock table does not know of the calls that reach it: interrupts that overtake their request, and open files
//! through which locks were taken.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

/// Interrupts that are remembered for requests which have not come to wait yet.
const INTERRUPTS: usize = 64;

/// The lock calls of one session.
#[derive(Default)]
pub struct LockCalls {
    interrupts: Mutex<VecDeque<u64>>,
    /// Owners of POSIX locks by the file handle through which they locked.
    takers: Mutex<HashMap<u64, HashSet<u64>>>,
}

impl LockCalls {
    fn interrupts(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.interrupts.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn takers(&self) -> MutexGuard<'_, HashMap<u64, HashSet<u64>>> {
        self.takers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Notes that `unique` was interrupted, for the case that it has not come to wait yet.
    pub fn note_interrupt(&self, unique: u64) {
        let mut interrupts = self.interrupts();
        if interrupts.len() == INTERRUPTS {
            interrupts.pop_front();
        }
        interrupts.push_back(unique);
    }

    /// Was `unique` interrupted? Forgets that it was.
    pub fn take_interrupt(&self, unique: u64) -> bool {
        let mut interrupts = self.interrupts();
        let found = interrupts.iter().position(|i| *i == unique);
        found.and_then(|at| interrupts.remove(at)).is_some()
    }

    /// `owner` takes a POSIX lock through `fh`.
    pub fn locks(&self, fh: u64, owner: u64) {
        let mut takers = self.takers();
        takers.entry(fh).or_default().insert(owner);
    }

    /// `owner` closed a descriptor of `fh`, which releases its locks on the file.
    pub fn closes(&self, fh: u64, owner: u64) {
        let mut takers = self.takers();
        if let Some(owners) = takers.get_mut(&fh) {
            owners.remove(&owner);
        }
    }

    /// `fh` is closed for good: the owners whose locks go with it. Those are open file descriptions (`F_OFD_SETLK`), of whose
    /// end the kernel says nothing else; a process has closed its descriptors before.
    pub fn released(&self, fh: u64) -> Vec<u64> {
        self.takers().remove(&fh).into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_that_overtook_its_request_is_found_once() {
        let calls = LockCalls::default();
        (0..100).for_each(|unique| calls.note_interrupt(unique));
        assert!(!calls.take_interrupt(10), "the oldest are forgotten");
        assert!(calls.take_interrupt(50));
        assert!(!calls.take_interrupt(50));
    }

    #[test]
    fn locks_of_an_open_file_description_go_with_its_handle() {
        let calls = LockCalls::default();
        calls.locks(1, 70);
        calls.locks(1, 70);
        calls.locks(1, 80);
        calls.locks(2, 80);
        calls.closes(1, 80);
        assert_eq!(calls.released(1), [70]);
        assert!(calls.released(1).is_empty());
        assert_eq!(calls.released(2), [80]);
    }
}
