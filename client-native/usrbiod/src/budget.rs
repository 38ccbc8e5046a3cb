//! What one session may take of what the daemon has for all: fds.
//!
//! A session may have one more as long as it has less than what is left for others. So one alone may have half of all,
//! and however many take as much as they can, as much again is left as each of them has. What sessions cannot take is kept for
//! control: sessions to come, and the few fds that each request has for a moment.

use crate::types::{Errno, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a session may have whatever others have.
const FLOOR: u64 = 8;

/// Fds that all sessions may have together.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    /// For a process that may open `limit` fds, of which `cached` are used for a cache.
    pub fn new(limit: u64, cached: u64) -> Arc<Budget> {
        let reserve = (limit / 8).clamp(128, 8192);
        Arc::new(Budget { limit: limit.saturating_sub(reserve + cached), used: AtomicU64::new(0) })
    }

    /// The share of a session, which has nothing yet.
    pub fn share(self: &Arc<Self>, session: &str) -> Share {
        let (used, warned) = (AtomicU64::new(0), AtomicBool::new(false));
        Share(Arc::new(Account { budget: self.clone(), session: session.to_owned(), used, warned }))
    }
}

/// What one session has. Clones are the same share; the default one is of no daemon, and unlimited.
#[derive(Debug, Clone)]
pub struct Share(Arc<Account>);

#[derive(Debug)]
struct Account {
    budget: Arc<Budget>,
    session: String,
    used: AtomicU64,
    warned: AtomicBool,
}

impl Default for Share {
    fn default() -> Share {
        Arc::new(Budget { limit: u64::MAX, used: AtomicU64::new(0) }).share("")
    }
}

/// Fds that count as a session's until this is dropped.
#[derive(Debug)]
pub struct Held {
    share: Share,
    count: u64,
}

impl Share {
    /// One fd more. `ENFILE`: not before the session closes others.
    pub fn take(&self) -> Result<Held> {
        let Account { budget, session, used, warned } = &*self.0;
        let all = budget.used.load(Ordering::Relaxed);
        let left = budget.limit.saturating_sub(all);
        let one_more = |mine| (mine < FLOOR || mine < left).then_some(mine + 1);
        let Err(mine) = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) else {
            budget.used.fetch_add(1, Ordering::Relaxed);
            return Ok(Held { share: self.clone(), count: 1 });
        };
        if !warned.swap(true, Ordering::Relaxed) {
            let limit = budget.limit;
            tracing::warn!(
                session,
                "the session has {mine} open files in the daemon, all sessions have {all} of {limit} (RLIMIT_NOFILE less \
                 a reserve): it gets no others before it closes some"
            );
        }
        Err(Errno::NFILE)
    }

    /// Fds that are there already: a mount's own, or what a predecessor had.
    pub fn take_anyway(&self, count: u64) -> Held {
        self.0.used.fetch_add(count, Ordering::Relaxed);
        self.0.budget.used.fetch_add(count, Ordering::Relaxed);
        Held { share: self.clone(), count }
    }

    /// Fds that the session has.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let account = &*self.share.0;
        account.used.fetch_sub(self.count, Ordering::Relaxed);
        account.budget.used.fetch_sub(self.count, Ordering::Relaxed);
        account.warned.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as much as there is to have.
    fn hog(share: &Share) -> Vec<Held> {
        std::iter::from_fn(|| share.take().ok()).collect()
    }

    #[test]
    fn one_session_has_half_at_most_and_many_leave_as_much_as_each_has() {
        let budget = Budget::new(20_000, 5_000);
        let limit = budget.limit;
        let first = budget.share("first");
        let held = hog(&first);
        assert_eq!(first.used(), limit / 2);
        assert_eq!(first.take().err(), Some(Errno::NFILE));
        let others: Vec<_> = (0..50).map(|i| budget.share(&i.to_string())).collect();
        let taken: Vec<_> = others.iter().map(hog).collect();
        let victim = budget.share("victim");
        assert!(hog(&victim).len() as u64 >= FLOOR);
        drop((held, taken));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert_eq!(hog(&victim).len() as u64, limit / 2);
    }

    #[test]
    fn a_reserve_is_left_whatever_is_taken() {
        for limit in [1024, 20_000, 1 << 20] {
            let budget = Budget::new(limit, limit / 4);
            let taken: Vec<_> = (0..20).map(|i| hog(&budget.share(&i.to_string()))).collect();
            let taken: usize = taken.iter().map(Vec::len).sum();
            assert!((taken as u64) < limit - limit / 4, "{taken} of {limit}");
        }
    }

    #[test]
    fn what_a_predecessor_had_counts() {
        let share = Budget::new(1024, 0).share("s");
        let held = share.take_anyway(2000);
        assert_eq!(share.take().err(), Some(Errno::NFILE));
        drop(held);
        assert!(share.take().is_ok());
    }
}
