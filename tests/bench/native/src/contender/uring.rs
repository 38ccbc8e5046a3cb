//! io_uring at its best: registered buffers, a registered file, one issuer, deferred task work.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, types};

use super::{Buffers, Contender, expect_full};
use crate::pattern;

/// Reads in batches: one `io_uring_enter` submits a batch and waits for all of it.
pub struct Uring {
    // First, so that the kernel lets go of the buffers before they are freed.
    ring: IoUring,
    // Keeps the registered file's description for as long as the ring; the ring has its own reference too.
    _file: File,
    buffers: Buffers,
    block: usize,
}

impl Uring {
    /// Up to `batch` reads of `block` bytes of `file` in flight.
    pub fn new(file: File, batch: usize, block: usize) -> Result<Self> {
        let mut buffers = Buffers::new(batch, block, |all| pattern::fill(all, 0));
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(batch.next_power_of_two() as u32)
            .context("cannot set up io_uring (is kernel.io_uring_disabled set?)")?;
        let memory = buffers.whole_mut();
        let iovec = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
        // SAFETY: the memory is owned by `buffers`, which neither moves nor shrinks and is dropped after the ring.
        unsafe { ring.submitter().register_buffers(&[iovec]) }
            .context("cannot register io_uring buffers (is RLIMIT_MEMLOCK too low?)")?;
        ring.submitter()
            .register_files(&[file.as_raw_fd()])
            .context("cannot register the file with io_uring")?;
        Ok(Self { ring, _file: file, buffers, block })
    }

    fn queue(&mut self, offsets: &[u64]) -> Result<()> {
        let mut queue = self.ring.submission();
        for (index, &offset) in offsets.iter().enumerate() {
            let buffer = self.buffers.slot_mut(index).as_mut_ptr();
            let read = opcode::ReadFixed::new(types::Fixed(0), buffer, self.block as u32, 0)
                .offset(offset)
                .build()
                .user_data(index as u64);
            // SAFETY: the buffer lies inside registered memory that outlives the ring, and `run` waits for every
            // request before it returns, so nobody reads a buffer while the kernel writes it.
            unsafe { queue.push(&read) }.context("the io_uring submission queue is full")?;
        }
        Ok(())
    }
}

impl Contender for Uring {
    fn run(&mut self, offsets: &[u64]) -> Result<()> {
        self.queue(offsets)?;
        let mut left = offsets.len();
        while left > 0 {
            self.ring.submit_and_wait(left)?;
            for completion in self.ring.completion() {
                expect_full(
                    completion.result().into(),
                    self.block,
                    offsets[completion.user_data() as usize],
                )?;
                left -= 1;
            }
        }
        Ok(())
    }

    fn slot(&self, index: usize) -> &[u8] {
        self.buffers.slot(index)
    }
}
