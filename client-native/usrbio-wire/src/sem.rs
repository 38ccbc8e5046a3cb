//! The 64-bit glibc `sem_t` (`struct new_sem`, sysdeps/nptl/internaltypes.h) where futexes must be waited for
//! without `sem_wait`: offsets and bit fields of its first word. Posting and initialising go through libc.
//!
//! How a daemon sleeps on a submit semaphore and misses no request (`tests/loom.rs` checks it):
//!
//! * client: stores `sqeHead`, then posts: adds 1 to the value and, if it saw waiters, wakes the futex.
//! * daemon: adds [`ONE_WAITER`]; takes the value down to 0 ([`drained`]); looks at every ring; if all are empty,
//!   waits for the futex while the value is 0.
//!
//! A post before the drain is seen in the rings, one after it makes the wait return at once. Looking first and
//! draining then would lose requests. A client may set the value to anything: draining costs one step for all.

/// The futex word: the low half of the first 8 bytes holds the value.
pub const VALUE_AT: usize = 0;
/// The high half counts waiters; `sem_post` makes a futex call only when it is not 0.
pub const WAITERS_SHIFT: u32 = 32;
/// One waiter, in the first 8 bytes.
pub const ONE_WAITER: u64 = 1 << WAITERS_SHIFT;

/// The value in the first word.
pub fn value(word: u64) -> u32 {
    word as u32
}

/// The number of waiters in the first word.
pub fn waiters(word: u64) -> u32 {
    (word >> WAITERS_SHIFT) as u32
}

/// The first word without its value: what draining leaves.
pub fn drained(word: u64) -> u64 {
    word & !u64::from(u32::MAX)
}
