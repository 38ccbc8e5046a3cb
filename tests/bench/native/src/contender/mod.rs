//! The ways to do the same I/O. Each has buffers of its own, touched before the first request.

mod posix;
mod uring;
mod usrbio;

use anyhow::{Result, ensure};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use posix::{Positioned, Streamed};
pub use uring::Uring;
pub use usrbio::{IdleRing, Usrbio};

use crate::pattern::PAGE;

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// File to buffer.
    Read,
    /// Buffer to file.
    Write,
}

impl Direction {
    /// The word in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// One way to do I/O on one file, with requests of one length and direction.
pub trait Contender {
    /// Does one request per offset, request `i` with buffer `i`. All are complete, and of full length, on return.
    fn run(&mut self, offsets: &[u64]) -> Result<()>;

    /// Buffer `index`.
    fn slot(&self, index: usize) -> &[u8];
}

/// Refuses a request that moved fewer bytes than asked: a benchmark that counts failures as work lies.
fn expect_full(moved: i64, block: usize, offset: u64) -> Result<()> {
    ensure!(moved == block as i64, "a request of {block} bytes at offset {offset} returned {moved}");
    Ok(())
}

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Page-aligned memory, every page touched.
pub struct Buffers {
    pages: Vec<Page>,
    block: usize,
}

impl Buffers {
    /// `count` buffers of `block` bytes; `fill` writes what each holds at first.
    pub fn new(count: usize, block: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut pages = vec![Page([1; PAGE]); (count * block).div_ceil(PAGE)];
        fill(pages.as_mut_slice().as_mut_bytes());
        Self { pages, block }
    }

    /// Buffer `index`.
    pub fn slot(&self, index: usize) -> &[u8] {
        &self.pages.as_slice().as_bytes()[index * self.block..][..self.block]
    }

    /// Buffer `index`, to be written.
    pub fn slot_mut(&mut self, index: usize) -> &mut [u8] {
        &mut self.pages.as_mut_slice().as_mut_bytes()[index * self.block..][..self.block]
    }

    /// All buffers, one after the other.
    pub fn whole_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_slice().as_mut_bytes()
    }
}
