//! Opening what has no name any more: the kernel may have found it by a name that is another file's now.

use super::Fs;
use crate::types::{NodeId, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Callers between the two looks of one `open`; more than there are workers.
const MOST: usize = 256;

/// Who was told that a node has no name.
#[derive(Default)]
pub(super) struct Gone {
    told: Mutex<VecDeque<(NodeId, u32)>>,
    any: AtomicBool,
}

impl Gone {
    /// True once, and false when the same thread comes again.
    fn first_time(&self, node: NodeId, pid: u32) -> bool {
        let mut told = self.told();
        if let Some(at) = told.iter().position(|known| *known == (node, pid)) {
            told.remove(at);
            return false;
        }
        if told.len() >= MOST {
            told.pop_front();
        }
        told.push_back((node, pid));
        self.any.store(true, Ordering::Release);
        true
    }

    /// The number of `node` may come back for another file.
    pub fn forget(&self, node: NodeId) {
        if self.any.load(Ordering::Acquire) {
            let mut told = self.told();
            told.retain(|(known, _)| *known != node);
            self.any.store(!told.is_empty(), Ordering::Release);
        }
    }

    fn told(&self) -> MutexGuard<'_, VecDeque<(NodeId, u32)>> {
        self.told.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Fs {
    /// Shall the thread `pid`, which opens `node`, look its name up again (`ESTALE`)? That is so when the node has no
    /// name: somebody replaced the file since the kernel looked, and what is written to the old one would be lost. Who
    /// comes a second time has not come by a name (but by `/proc/self/fd`, say), and means this very file.
    pub fn look_again(&self, node: NodeId, pid: u32) -> Result<bool> {
        let unnamed = rustix::fs::fstat(&*self.nodes.path_fd(node)?)?.st_nlink == 0;
        Ok(unnamed && self.gone.first_time(node, pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_is_told_once_for_each_time_that_it_opens() {
        let gone = Gone::default();
        let told = [(4, 1), (4, 2), (4, 1), (5, 2), (4, 2), (4, 1)];
        let told = told.map(|(node, pid)| gone.first_time(NodeId(node), pid));
        assert_eq!(told, [true, true, false, true, false, true]);
        gone.forget(NodeId(4));
        assert!(gone.first_time(NodeId(4), 1), "another node has the number now");
        assert!(!gone.first_time(NodeId(5), 2));
    }
}
