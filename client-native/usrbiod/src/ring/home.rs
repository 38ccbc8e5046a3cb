//! Who watches a session's submit semaphores: its home.

use super::engine::Staff;
use super::io::Io;
use super::object::Core;
use super::slab::Slab;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A session whose semaphores a thread watches.
struct Home {
    core: Arc<Core>,
    /// There is a wait for the semaphore in the kernel.
    awaited: [bool; 3],
    /// Somebody else's now, or closed; it goes when the kernel waits for nothing of it any more.
    left: bool,
}

/// The sessions of which a thread is home.
#[derive(Default)]
pub(super) struct Homes(Slab<Home>);

impl Homes {
    pub(super) fn insert(&mut self, core: Arc<Core>) -> usize {
        self.0.insert(Home { core, awaited: [false; 3], left: false })
    }

    pub(super) fn core(&self, index: usize) -> Option<&Arc<Core>> {
        self.0.get(index).filter(|home| !home.left).map(|home| &home.core)
    }

    /// All that are not left.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &Arc<Core>)> {
        self.0.iter().filter(|(_, home)| !home.left).map(|(index, home)| (index, &home.core))
    }

    /// Drains the semaphores, and tells clients that they need not wake anybody.
    pub(super) fn quiet(&self, index: usize) {
        let Some(home) = self.0.get(index) else { return };
        let semaphores = home.core.semaphores.iter().flatten();
        for (semaphore, _) in semaphores.zip(home.awaited).filter(|(_, awaited)| !awaited) {
            semaphore.quiet();
        }
    }

    /// Did a client post to a semaphore that nobody waits for? Drains it.
    pub(super) fn posted(&self, index: usize) -> bool {
        let Some(home) = self.0.get(index) else { return false };
        let mut posted = false;
        let semaphores = home.core.semaphores.iter().flatten();
        for (semaphore, _) in semaphores.zip(home.awaited).filter(|(_, awaited)| !awaited) {
            if semaphore.posted() {
                semaphore.quiet();
                posted = true;
            }
        }
        posted
    }

    /// Drains the semaphores and tells clients to wake us. The caller looks at every ring after this, then
    /// [waits](Self::wait).
    pub(super) fn expect_wake(&self, index: usize) {
        let Some(home) = self.0.get(index) else { return };
        let semaphores = home.core.semaphores.iter().flatten();
        for (semaphore, _) in semaphores.zip(home.awaited).filter(|(_, awaited)| !awaited) {
            semaphore.expect_wake();
        }
    }

    /// Waits for posts, in the kernel.
    pub(super) fn wait(&mut self, index: usize, io: &mut Io) {
        let Some(home) = self.0.get_mut(index) else { return };
        for (priority, semaphore) in home.core.semaphores.iter().flatten().enumerate() {
            if !home.awaited[priority]
                && let Some(futex) = semaphore.futex()
            {
                home.awaited[priority] = true;
                io.wait_for((index as u64) << 2 | priority as u64, futex, 0);
            }
        }
    }

    /// The kernel's wait with that token is over: the session to look at, if it is still ours.
    pub(super) fn woken(&mut self, token: u64, staff: &Staff) -> Option<usize> {
        let (index, priority) = ((token >> 2) as usize, (token & 3) as usize);
        let home = self.0.get_mut(index)?;
        home.awaited[priority] = false;
        if !home.left {
            return Some(index);
        }
        // A client may have woken us instead of the present home.
        staff.mailbox(home.core.home.load(Ordering::SeqCst)).kick();
        if home.awaited == [false; 3] {
            self.0.remove(index);
        }
        None
    }

    /// Is not home of this session any more.
    pub(super) fn leave(&mut self, index: usize, io: &mut Io) -> Option<Arc<Core>> {
        let home = self.0.get_mut(index)?;
        home.left = true;
        let core = home.core.clone();
        for (priority, _) in home.awaited.iter().enumerate().filter(|(_, awaited)| **awaited) {
            io.cancel((index as u64) << 2 | priority as u64);
        }
        if home.awaited == [false; 3] {
            self.0.remove(index);
        }
        Some(core)
    }

    /// Leaves sessions that are closing.
    pub(super) fn leave_closed(&mut self, io: &mut Io) {
        let closed: Vec<usize> =
            self.all().filter(|(_, core)| core.closing()).map(|(index, _)| index).collect();
        for index in closed {
            self.leave(index, io);
        }
    }
}
