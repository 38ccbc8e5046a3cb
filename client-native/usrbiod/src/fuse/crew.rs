//! Who works for a session, and how many may: budgets by session and by backing device.
//!
//! Storage that hangs keeps the workers that wait for it. So a session gets its first worker whatever others have, a device
//! its first few, and everybody more only as long as what he has is less than what is left: whoever takes much leaves as
//! much again, and all hung devices together never take the last workers.

use super::gate::Gate;
use super::replay::Journal;
use crate::fuse::abi::init;
use crate::session::Session;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// Most workers of one session.
const SHARE: u32 = 32;
/// Most workers of the sessions of one device, beside the first one of each.
const DEVICE_SHARE: u32 = 64;
/// Workers that a device may have whatever others have.
const DEVICE_FLOOR: u32 = 4;
/// Most workers, beside those that sessions and devices have whatever others have.
const MOST: u32 = 128;

/// May a session that has `mine` workers have one more, when its device has `device` and all have `total`?
fn admits(mine: u32, device: u32, total: u32) -> bool {
    let left = MOST.saturating_sub(total);
    let left_here = DEVICE_SHARE.saturating_sub(device);
    mine == 0 || device < DEVICE_FLOOR || (mine < SHARE && mine < left_here && device < left)
}

/// The workers of all sessions.
#[derive(Default)]
pub(super) struct Budget {
    total: AtomicU32,
    devices: Mutex<HashMap<u64, Weak<Device>>>,
    /// Sessions that were refused a worker by what others have.
    owed: Mutex<Vec<u32>>,
}

/// The workers of one backing device.
#[derive(Default)]
pub(super) struct Device {
    workers: AtomicU32,
}

impl Budget {
    pub(super) fn device(&self, id: u64) -> Arc<Device> {
        let mut devices = self.devices.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(device) = devices.get(&id).and_then(Weak::upgrade) {
            return device;
        }
        devices.retain(|_, device| device.strong_count() > 0);
        let device = Arc::new(Device::default());
        devices.insert(id, Arc::downgrade(&device));
        device
    }

    /// Threads that are enough for every budget, with `sessions` sessions.
    pub(super) fn threads(&self, sessions: usize) -> u32 {
        let devices = self.devices.lock().unwrap_or_else(|e| e.into_inner()).len();
        MOST + DEVICE_FLOOR * devices as u32 + sessions as u32
    }

    pub(super) fn take_owed(&self) -> Vec<u32> {
        std::mem::take(&mut *self.owed.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// A session in the pool.
pub(super) struct Served {
    pub(super) session: Arc<Session>,
    pub(super) journal: Journal,
    /// No request of it may be read now.
    pub(super) closed: AtomicBool,
    /// A panic was logged: one is enough.
    pub(super) panicked: AtomicBool,
    device: Arc<Device>,
    crew: Mutex<Crew>,
    idle: Condvar,
}

/// Who works for a session.
#[derive(Default)]
struct Crew {
    workers: u32,
    /// The session was to have another worker when it had its share: whoever leaves arms it.
    owed: bool,
    /// The mount is gone: whoever leaves last ends the session.
    gone: bool,
}

/// What is left to do for who left a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    /// To arm it.
    Arm,
    /// To end it: its mount is gone, and nothing runs any more.
    End,
}

impl Served {
    pub(super) fn new(session: Arc<Session>, budget: &Budget) -> Served {
        Served {
            journal: Journal::new(session.state.clone()),
            device: budget.device(session.device),
            session,
            closed: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            crew: Mutex::default(),
            idle: Condvar::new(),
        }
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One worker more. False: it may have none now, and is armed again when it may.
    pub(super) fn join(&self, budget: &Budget) -> bool {
        let mut crew = self.crew();
        let (device, total) =
            (self.device.workers.load(Ordering::Relaxed), budget.total.load(Ordering::Relaxed));
        if !admits(crew.workers, device, total) {
            crew.owed = true;
            drop(crew);
            budget.owed.lock().unwrap_or_else(|e| e.into_inner()).push(self.session.number);
            return false;
        }
        crew.workers += 1;
        self.device.workers.fetch_add(1, Ordering::Relaxed);
        budget.total.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// One worker less.
    pub(super) fn leave(&self, budget: &Budget) -> Left {
        let mut crew = self.crew();
        crew.workers -= 1;
        self.device.workers.fetch_sub(1, Ordering::Relaxed);
        budget.total.fetch_sub(1, Ordering::Relaxed);
        if crew.workers == 0 {
            self.idle.notify_all();
        }
        let owed = std::mem::take(&mut crew.owed);
        match crew.workers {
            0 if crew.gone => Left::End,
            _ if owed => Left::Arm,
            _ => Left::Nothing,
        }
    }

    /// Would it get a worker now, and wants one?
    pub(super) fn is_owed(&self, budget: &Budget) -> Option<bool> {
        let mut crew = self.crew();
        if !crew.owed {
            return None;
        }
        let (device, total) =
            (self.device.workers.load(Ordering::Relaxed), budget.total.load(Ordering::Relaxed));
        let admitted = admits(crew.workers, device, total);
        crew.owed &= !admitted;
        Some(admitted)
    }

    pub(super) fn keep_owed(&self, budget: &Budget) {
        budget.owed.lock().unwrap_or_else(|e| e.into_inner()).push(self.session.number);
    }

    /// Its mount is gone; for a worker of its crew.
    pub(super) fn gone(&self) {
        self.crew().gone = true;
    }

    /// Workers that are at a request, without those whose work waits at the gate.
    pub(super) fn running(&self) -> u32 {
        let workers = self.crew().workers;
        workers.saturating_sub(self.gate().parked())
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.session.channel.gate
    }

    /// Waits until nobody works for it; false: somebody still does.
    pub(super) fn wait_idle(&self, longest: Duration) -> bool {
        let waited = self.idle.wait_timeout_while(self.crew(), longest, |crew| crew.workers > 0);
        let (crew, _) = waited.unwrap_or_else(|e| e.into_inner());
        crew.workers == 0
    }

    /// Does `SETXATTR` have its longer form?
    pub(super) fn setxattr_ext(&self) -> bool {
        self.session.channel.agreed() & init::SETXATTR_EXT != 0
    }

    #[cfg(test)]
    pub(super) fn workers(&self) -> u32 {
        self.crew().workers
    }
}

/// What other threads see of a worker.
#[derive(Default)]
pub(super) struct Face {
    /// The session that it owes to arm again, plus 1.
    pub(super) duty: AtomicU64,
    /// The session that it works for, plus 1.
    pub(super) works_for: AtomicU64,
    /// Since when it is at a request, in µs of the pool's clock; 0 when it is not.
    pub(super) busy: AtomicU64,
    /// The request takes as long as its caller likes, and can wait at the gate.
    pub(super) by_steps: AtomicBool,
}

impl Face {
    /// How long it has been at its request, by the pool's clock.
    pub(super) fn age(&self, clock: Instant) -> Option<Duration> {
        let busy = self.busy.load(Ordering::Relaxed);
        let now = clock.elapsed().as_micros() as u64 + 1;
        (busy != 0).then(|| Duration::from_micros(now.saturating_sub(busy)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hung sessions take workers in turns until none gets another one; what each has, by device.
    fn hang(sessions_per_device: &[usize]) -> Vec<Vec<u32>> {
        let mut crews: Vec<Vec<u32>> = sessions_per_device.iter().map(|n| vec![0; *n]).collect();
        loop {
            let before = crews.clone();
            for device in 0..crews.len() {
                for session in 0..crews[device].len() {
                    let total = crews.iter().flatten().sum();
                    let here = crews[device].iter().sum();
                    if admits(crews[device][session], here, total) {
                        crews[device][session] += 1;
                    }
                }
            }
            if crews == before {
                return crews;
            }
        }
    }

    #[test]
    fn whatever_hangs_a_session_of_another_device_gets_workers() {
        for devices in [1, 2, 3, 10, 100] {
            for sessions in [1, 3, 40] {
                let crews = hang(&vec![sessions; devices]);
                let total: u32 = crews.iter().flatten().sum();
                for mine in 0..DEVICE_FLOOR {
                    assert!(admits(mine, mine, total + mine), "{devices} devices hang: {total} workers");
                }
                let bound = Budget::default().threads(devices * sessions) + DEVICE_FLOOR * devices as u32;
                assert!(total < bound, "{total} of {bound}");
            }
        }
    }

    #[test]
    fn three_hung_volumes_leave_a_good_part_of_the_workers() {
        for crews in [hang(&[1, 1, 1]), hang(&[3]), hang(&[2, 1])] {
            let total: u32 = crews.iter().flatten().sum();
            let victim = hang_beside(total);
            assert!(victim >= 16, "{crews:?} leave {victim}");
        }
    }

    fn hang_beside(others: u32) -> u32 {
        (0..).take_while(|mine| admits(*mine, *mine, others + mine)).count() as u32
    }

    #[test]
    fn a_session_alone_has_its_share_and_one_on_a_busy_device_some_of_it() {
        assert_eq!(hang(&[1]), [[SHARE]]);
        let busy = hang(&[3]).concat();
        assert!(busy.iter().all(|workers| *workers >= 8), "{busy:?}");
    }
}
