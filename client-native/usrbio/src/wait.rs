//! How a waiter waits: first with its eyes open, where that paid lately, then asleep on the ring's semaphore.
//!
//! A sleeping waiter costs the daemon a futex call and itself the way through the scheduler, 20 µs and more
//! between CPUs. An idle waiter that spins costs a CPU. [`Spin`] keeps score.

use crate::sem::RingSem;
use rustix::fs::Timespec;
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a waiter looks before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Best score: so many lost spins are forgiven (halved each time).
const CREDIT_MAX: u32 = 16;

/// Longest sleep before the ring is looked at again. A post cannot get lost between one waiter and the daemon, so
/// this only matters to several waiters on one ring, which 3FS does not promise to serve. 3FS sleeps 1 ms.
const SLICE: Duration = Duration::from_millis(10);
/// Sets [`SLICE`], in ms.
const SLICE_VARIABLE: &str = "HF3FS_USRBIO_WAIT_JITTER_MS";

/// Whether spinning paid lately: each spin that saw its completion earns a point, each that did not costs half of
/// them, and a sleep so short that a spin would have done earns one.
#[derive(Debug)]
pub(crate) struct Spin {
    credit: AtomicU32,
}

impl Default for Spin {
    fn default() -> Spin {
        Spin { credit: AtomicU32::new(CREDIT_MAX / 4) }
    }
}

impl Spin {
    fn is_worthwhile(&self) -> bool {
        self.credit.load(Ordering::Relaxed) > 0
    }

    fn paid(&self) {
        let credit = self.credit.load(Ordering::Relaxed);
        self.credit.store((credit + 1).min(CREDIT_MAX), Ordering::Relaxed);
    }

    fn was_lost(&self) {
        self.credit.store(self.credit.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
    }
}

/// A moment on the real-time clock, as `sem_timedwait` and the C interface count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    seconds: i64,
    nanos: i64,
}

impl Deadline {
    /// From a C `struct timespec`; `None` if the nanoseconds are not below a second.
    pub fn new(seconds: i64, nanos: i64) -> Option<Deadline> {
        (0..1_000_000_000).contains(&nanos).then_some(Deadline { seconds, nanos })
    }

    /// When `timeout`, counted from now, is over.
    pub fn after(timeout: Duration) -> Deadline {
        now() + timeout
    }
}

impl std::ops::Add<Duration> for Deadline {
    type Output = Deadline;

    fn add(self, delay: Duration) -> Deadline {
        let nanos = self.nanos + i64::from(delay.subsec_nanos());
        let seconds = i64::try_from(delay.as_secs()).unwrap_or(i64::MAX);
        Deadline {
            seconds: self.seconds.saturating_add(seconds).saturating_add(nanos / 1_000_000_000),
            nanos: nanos % 1_000_000_000,
        }
    }
}

/// The pauses of one call of `wait`.
pub(crate) struct Sleep {
    deadline: Option<Deadline>,
    slice: Option<Duration>,
}

impl Sleep {
    pub(crate) fn new(deadline: Option<Deadline>) -> Sleep {
        Sleep { deadline, slice: None }
    }

    /// Is the deadline over?
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| now() >= deadline)
    }

    /// Comes back when `has_news`, or at the deadline, or for no reason.
    pub(crate) fn until_woken(&mut self, done: &RingSem, spin: &Spin, has_news: impl Fn() -> bool) {
        if spin.is_worthwhile() {
            let start = Instant::now();
            while start.elapsed() < SPIN && !self.is_over() {
                // The daemon may need this very CPU.
                std::thread::yield_now();
                if has_news() {
                    spin.paid();
                    return;
                }
            }
            spin.was_lost();
        }
        // Posts for completions that were seen without sleeping are still there. After this, look once more: a post
        // that came in between is gone, but it came after its completions.
        done.drain();
        if has_news() {
            return;
        }
        let slice = *self.slice.get_or_insert_with(slice_from_environment);
        let wake = now() + slice;
        let wake = self.deadline.map_or(wake, |deadline| deadline.min(wake));
        let start = Instant::now();
        done.wait_until(Timespec { tv_sec: wake.seconds, tv_nsec: wake.nanos });
        if start.elapsed() < SPIN && has_news() {
            spin.paid();
        }
    }
}

fn slice_from_environment() -> Duration {
    let set = std::env::var(SLICE_VARIABLE).ok().and_then(|ms| ms.trim().parse().ok());
    set.filter(|ms| (1..=60_000).contains(ms)).map_or(SLICE, Duration::from_millis)
}

fn now() -> Deadline {
    let now = clock_gettime(ClockId::Realtime);
    Deadline { seconds: now.tv_sec, nanos: now.tv_nsec }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_waiter_stops_spinning_and_a_quick_answer_brings_it_back() {
        let spin = Spin::default();
        for _ in 0..5 {
            spin.was_lost();
        }
        assert!(!spin.is_worthwhile());
        spin.paid();
        assert!(spin.is_worthwhile());
    }

    #[test]
    fn a_deadline_far_away_does_not_overflow() {
        let deadline = Deadline::after(Duration::MAX);
        assert!(now() < deadline && Deadline::new(deadline.seconds, deadline.nanos).is_some());
        assert_eq!(Deadline::new(1, 1_000_000_000), None);
    }
}
