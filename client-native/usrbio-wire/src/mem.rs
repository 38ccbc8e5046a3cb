//! Access to ring memory. The ring is written against [`RingMem`], so that the same code runs on a shared
//! mapping, on a `Vec`, and under a model checker. This is the only module with `unsafe`.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Memory that holds a ring. Offsets are in bytes; every implementation checks them.
///
/// Index words are sequentially consistent on both sides of the protocol (3FS uses `std::atomic<int>` with the
/// default order). Data words are relaxed: a data word is written before the index that publishes it is stored,
/// and read after that index was loaded.
pub trait RingMem {
    /// Loads the index word at `at`.
    fn load_index(&self, at: usize) -> i32;
    /// Stores the index word at `at`.
    fn store_index(&self, at: usize, value: i32);
    /// Replaces the index word at `at` if it is `current`; says whether it did.
    fn replace_index(&self, at: usize, current: i32, new: i32) -> bool;
    /// Loads the data word at `at`, a multiple of 8.
    fn load(&self, at: usize) -> u64;
    /// Stores the data word at `at`, a multiple of 8.
    fn store(&self, at: usize, value: u64);
}

impl<M: RingMem + ?Sized> RingMem for &M {
    fn load_index(&self, at: usize) -> i32 {
        (**self).load_index(at)
    }
    fn store_index(&self, at: usize, value: i32) {
        (**self).store_index(at, value);
    }
    fn replace_index(&self, at: usize, current: i32, new: i32) -> bool {
        (**self).replace_index(at, current, new)
    }
    fn load(&self, at: usize) -> u64 {
        (**self).load(at)
    }
    fn store(&self, at: usize, value: u64) {
        (**self).store(at, value);
    }
}

/// A view of shared memory that another process may change at any moment. No Rust reference to the bytes is
/// ever made: words are touched as atomics only.
#[derive(Debug, Clone, Copy)]
pub struct SharedMem {
    base: *mut u8,
    len: usize,
}

// SAFETY: the memory is shared with other processes anyway; all access is atomic.
unsafe impl Send for SharedMem {}
// SAFETY: as above.
unsafe impl Sync for SharedMem {}

impl SharedMem {
    /// A view of `base..base + len`.
    ///
    /// # Safety
    /// The range must be mapped readable and writable for as long as the view is used, and `base` must be a
    /// multiple of 8. Other processes may write to it; this process may only do so through atomics.
    pub unsafe fn new(base: *mut u8, len: usize) -> SharedMem {
        assert!(base.addr().is_multiple_of(8), "ring memory at {base:p} is not aligned to 8 bytes");
        SharedMem { base, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there nothing?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn at(&self, at: usize, size: usize) -> *mut u8 {
        assert!(
            at.is_multiple_of(size) && at <= self.len && size <= self.len - at,
            "offset {at} in {} bytes",
            self.len
        );
        // SAFETY: in range, as just checked.
        unsafe { self.base.add(at) }
    }

    #[inline]
    fn index(&self, at: usize) -> &AtomicI32 {
        // SAFETY: `at` is in range and aligned (`SharedMem::at`); the mapping outlives `self` (`SharedMem::new`);
        // the peer may write the word at any moment, so it is only ever touched as an atomic.
        unsafe { AtomicI32::from_ptr(self.at(at, 4).cast()) }
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: as for `index`.
        unsafe { AtomicU64::from_ptr(self.at(at, 8).cast()) }
    }
}

impl RingMem for SharedMem {
    #[inline]
    fn load_index(&self, at: usize) -> i32 {
        self.index(at).load(Ordering::SeqCst)
    }
    #[inline]
    fn store_index(&self, at: usize, value: i32) {
        self.index(at).store(value, Ordering::SeqCst);
    }
    #[inline]
    fn replace_index(&self, at: usize, current: i32, new: i32) -> bool {
        self.index(at).compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
    #[inline]
    fn load(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }
    #[inline]
    fn store(&self, at: usize, value: u64) {
        self.word(at).store(value, Ordering::Relaxed);
    }
}

/// Ring memory in a `Vec`, for tests and examples.
#[derive(Debug)]
pub struct VecMem(Vec<AtomicU64>);

impl VecMem {
    /// `len` zero bytes, rounded up to 8.
    pub fn new(len: usize) -> VecMem {
        VecMem((0..len.div_ceil(8)).map(|_| AtomicU64::new(0)).collect())
    }

    fn half(at: usize) -> u32 {
        assert!(at.is_multiple_of(4), "index word at {at}");
        (at % 8 * 8) as u32
    }
}

impl RingMem for VecMem {
    fn load_index(&self, at: usize) -> i32 {
        (self.0[at / 8].load(Ordering::SeqCst) >> Self::half(at)) as u32 as i32
    }
    fn store_index(&self, at: usize, value: i32) {
        while !self.replace_index(at, self.load_index(at), value) {}
    }
    fn replace_index(&self, at: usize, current: i32, new: i32) -> bool {
        let shift = Self::half(at);
        self.0[at / 8]
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                ((word >> shift) as u32 == current as u32)
                    .then(|| word & !(0xffff_ffff << shift) | u64::from(new as u32) << shift)
            })
            .is_ok()
    }
    fn load(&self, at: usize) -> u64 {
        assert!(at.is_multiple_of(8), "data word at {at}");
        self.0[at / 8].load(Ordering::Relaxed)
    }
    fn store(&self, at: usize, value: u64) {
        assert!(at.is_multiple_of(8), "data word at {at}");
        self.0[at / 8].store(value, Ordering::Relaxed);
    }
}
