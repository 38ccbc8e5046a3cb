//! A hostile peer for tests: it breaks the rules of a ring one step at a time, reproducibly from a seed.
//!
//! ```
//! # use usrbio_wire::{Geometry, ServerRing, Slot, mem::VecMem, peer::HostilePeer};
//! let geometry = Geometry::for_entries(4).unwrap();
//! let mem = VecMem::new(geometry.file_len());
//! let mut server = ServerRing::new(&mem, geometry, Slot::ZERO, Slot::ZERO);
//! let mut peer = HostilePeer::new(&mem, geometry, 7);
//! for _ in 0..1000 {
//!     let step = peer.step();
//!     let taken = server.published().and_then(|n| (0..n).try_for_each(|_| server.claim().map(|_| ())));
//!     assert!(server.claimed() <= geometry.entries(), "after {step:?}: {taken:?}");
//! }
//! ```
//!
//! Most steps change one field and leave the rest, so that a request which an honest client pushed (with a live
//! buffer and inode) stays plausible but for that field: each check of the server is reached, not only the first.
//! One step in three is honest (publish, reap), so that the wrong values are also read.

use crate::index::Geometry;
use crate::layout::{Args, CQE_LEN, SEM_LEN, Sqe, Word};
use crate::mem::RingMem;
use std::mem::offset_of;

/// The one to blame: owns the client's side of a ring and overwrites the server's too.
#[derive(Debug)]
pub struct HostilePeer<M> {
    mem: M,
    geometry: Geometry,
    random: u64,
}

/// What one step did, for the message of a failing test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Moved `sqeHead` forward by this many slots, whatever they hold.
    Publish(u32),
    /// Moved `cqeTail` up to `cqeHead`.
    Reap,
    /// Stored the value in an index word.
    Index(Word, i32),
    /// Named an argument slot in the SQE of an SQ slot.
    SqeIndex(u32, i32),
    /// Changed a 64-bit word at this offset: a field of the arguments, userdata, a CQE, the semaphore or slack.
    Data(usize, u64),
}

impl<M: RingMem> HostilePeer<M> {
    /// A peer on the ring in `mem`; equal seeds take equal steps.
    pub fn new(mem: M, geometry: Geometry, seed: u64) -> Self {
        HostilePeer { mem, geometry, random: seed }
    }

    /// Takes one step.
    pub fn step(&mut self) -> Step {
        match self.below(12) {
            0..=2 => self.publish(),
            3 => self.reap(),
            4 | 5 => self.index(),
            6 | 7 => self.sqe_index(),
            8..=10 => {
                let at = self.args_field();
                self.data(at)
            }
            _ => {
                let at = self.other_word();
                self.data(at)
            }
        }
    }

    fn publish(&mut self) -> Step {
        let g = self.geometry;
        let head = g.slot(self.mem.load_index(Word::SqeHead as usize)).unwrap_or_default();
        let n = 1 + self.below(g.entries().min(4));
        self.mem.store_index(Word::SqeHead as usize, g.advance(head, n).raw());
        Step::Publish(n)
    }

    fn reap(&mut self) -> Step {
        let head = self.mem.load_index(Word::CqeHead as usize);
        self.mem.store_index(Word::CqeTail as usize, head);
        Step::Reap
    }

    fn index(&mut self) -> Step {
        let word = [Word::SqeHead, Word::CqeTail, Word::SqeTail, Word::CqeHead][self.below(4) as usize];
        let value = self.edge_i32();
        self.mem.store_index(word as usize, value);
        Step::Index(word, value)
    }

    fn sqe_index(&mut self) -> Step {
        let slot = self.below(self.geometry.slots());
        let value = self.edge_i32();
        let at = self.sqe_at(slot);
        let pad = self.mem.load(at) & !u64::from(u32::MAX);
        self.mem.store(at, pad | u64::from(value as u32));
        Step::SqeIndex(slot, value)
    }

    fn data(&mut self, at: usize) -> Step {
        let old = self.mem.load(at);
        let value = self.edge_u64(old);
        self.mem.store(at, value);
        Step::Data(at, value)
    }

    fn args_field(&mut self) -> usize {
        let fields = [
            offset_of!(Args, buf_id),
            offset_of!(Args, buf_id) + 8,
            offset_of!(Args, buf_off),
            offset_of!(Args, file_iid),
            offset_of!(Args, file_off),
            offset_of!(Args, io_len),
            offset_of!(Args, userdata),
        ];
        let field = fields[self.below(fields.len() as u32) as usize];
        self.geometry.args_at(self.below(self.geometry.slots())) + field
    }

    /// Everything that no server should believe: userdata, CQEs, semaphore, slack.
    fn other_word(&mut self) -> usize {
        let g = self.geometry;
        let slot = self.below(g.slots());
        match self.below(4) {
            0 => self.sqe_at(slot) + offset_of!(Sqe, userdata),
            1 => {
                let cqe = g.cqe_at(g.advance(Default::default(), slot));
                cqe + 8 * self.below(CQE_LEN as u32 / 8) as usize
            }
            2 => g.sem_at() + 8 * self.below(SEM_LEN as u32 / 8) as usize,
            _ => g.sem_at() + SEM_LEN + 8 * self.below(512) as usize,
        }
    }

    fn sqe_at(&self, slot: u32) -> usize {
        self.geometry.sqe_at(self.geometry.advance(Default::default(), slot))
    }

    fn edge_i32(&mut self) -> i32 {
        let entries = self.geometry.entries() as i32;
        let edges = [i32::MIN, -1, 0, 1, entries - 1, entries, entries + 1, i32::MAX];
        match self.below(3) {
            0 => self.below(self.geometry.slots()) as i32,
            _ => edges[self.below(edges.len() as u32) as usize],
        }
    }

    fn edge_u64(&mut self, old: u64) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            511,
            4095,
            4097,
            u32::MAX as u64,
            1 << 32,
            i64::MAX as u64 - 4095,
            i64::MAX as u64,
            1 << 63,
            u64::MAX - 4095,
            u64::MAX - 7,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.below(6) {
            0 => old.wrapping_add(1),
            1 => old.wrapping_sub(1),
            2 => old ^ 1 << self.below(64),
            3 => self.next(),
            _ => EDGES[self.below(EDGES.len() as u32) as usize],
        }
    }

    fn below(&mut self, n: u32) -> u32 {
        (self.next() % u64::from(n)) as u32
    }

    /// splitmix64: no dependency, any seed will do.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}
