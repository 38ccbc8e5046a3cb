//! Both ends of a ring against a model: honest peers lose, repeat and reorder nothing.

use proptest::prelude::*;
use std::collections::VecDeque;
use usrbio_wire::layout::Word;
use usrbio_wire::mem::{RingMem, SharedMem, VecMem};
use usrbio_wire::{Args, ClientRing, Cqe, Geometry, Ino, RingFault, ServerRing, Slot};

#[derive(Debug, Clone)]
enum Step {
    Push,
    Claim(u32),
    Publish(u32),
    Pop(usize),
    /// A successor takes the server's end over, from what a journal holds.
    TakeOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Push),
        2 => (1u32..6).prop_map(Step::Claim),
        2 => (0u32..6).prop_map(Step::Publish),
        2 => (0usize..6).prop_map(Step::Pop),
        1 => Just(Step::TakeOver),
    ];
    prop::collection::vec(step, 1..300)
}

/// A client, a server and what should be where between them.
struct World<'a> {
    client: ClientRing<&'a VecMem>,
    server: ServerRing<&'a VecMem>,
    free_args: Vec<u32>,
    serial: u64,
    queued: VecDeque<(u32, u64)>,
    claimed: VecDeque<(u32, u64)>,
    completed: VecDeque<(u32, u64)>,
}

impl<'a> World<'a> {
    fn new(mem: &'a VecMem, g: Geometry, start: Slot) -> World<'a> {
        for word in [Word::SqeHead, Word::SqeTail, Word::CqeHead, Word::CqeTail] {
            mem.store_index(word as usize, start.raw());
        }
        World {
            client: ClientRing::new(mem, g),
            server: ServerRing::new(mem, g, start, start),
            free_args: (0..g.entries()).collect(),
            serial: 0,
            queued: VecDeque::new(),
            claimed: VecDeque::new(),
            completed: VecDeque::new(),
        }
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Push => self.push(),
            Step::Claim(n) => self.claim(n),
            Step::Publish(n) => self.publish(n),
            Step::Pop(n) => self.pop(n),
            Step::TakeOver => self.take_over(),
        }
    }

    fn push(&mut self) -> Result<(), TestCaseError> {
        let Some(args_slot) = self.free_args.pop() else { return Ok(()) };
        self.serial += 1;
        let args = Args {
            buf_id: [self.serial as u8; 16],
            buf_off: self.serial + 1,
            file_iid: Ino(self.serial + 2),
            file_off: self.serial + 3,
            io_len: self.serial + 4,
            userdata: self.serial,
        };
        prop_assert_eq!(
            self.client.push(args_slot, &args),
            Ok(true),
            "a free argument slot means a free SQ slot"
        );
        self.queued.push_back((args_slot, self.serial));
        Ok(())
    }

    fn claim(&mut self, most: u32) -> Result<(), TestCaseError> {
        let published = self.server.published();
        prop_assert_eq!(published, Ok(self.queued.len() as u32), "an honest client always leaves room");
        prop_assert_eq!(self.server.has_published(), !self.queued.is_empty());
        for _ in 0..most.min(self.queued.len() as u32) {
            let (args_slot, serial) = self.queued.pop_front().unwrap();
            let (sqe, args) = self.server.claim().unwrap();
            prop_assert_eq!((sqe.index, sqe.userdata), (args_slot as i32, serial));
            prop_assert_eq!((args.buf_id, args.buf_off), ([serial as u8; 16], serial + 1));
            prop_assert_eq!((args.file_iid, args.file_off), (Ino(serial + 2), serial + 3));
            prop_assert_eq!((args.io_len, args.userdata), (serial + 4, serial));
            self.claimed.push_back((args_slot, serial));
        }
        prop_assert_eq!(self.server.claimed() as usize, self.claimed.len());
        Ok(())
    }

    fn publish(&mut self, most: u32) -> Result<(), TestCaseError> {
        let n = most.min(self.claimed.len() as u32);
        let mut staged = Vec::new();
        for i in 0..n {
            let (args_slot, serial) = self.claimed.pop_front().unwrap();
            let cqe =
                Cqe { index: args_slot as i32, reserved: 0, result: -(serial as i64), userdata: serial };
            self.server.stage(i, &cqe);
            staged.push((args_slot, serial));
            let shown = self.client.completed();
            prop_assert_eq!(shown, Ok(self.completed.len() as u32), "staged is not published");
        }
        self.completed.extend(staged);
        let expected = self.server.after(n);
        self.server.publish(n);
        prop_assert_eq!(self.server.after(0), expected);
        Ok(())
    }

    fn pop(&mut self, most: usize) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.client.completed(), Ok(self.completed.len() as u32));
        let mut out = vec![Cqe::default(); most];
        let n = self.client.pop(&mut out).unwrap();
        prop_assert_eq!(n, most.min(self.completed.len()));
        for cqe in &out[..n] {
            let (args_slot, serial) = self.completed.pop_front().unwrap();
            prop_assert_eq!(
                (cqe.index, cqe.result, cqe.userdata),
                (args_slot as i32, -(serial as i64), serial)
            );
            self.free_args.push(args_slot);
        }
        Ok(())
    }

    /// Claimed requests that were not published run again.
    fn take_over(&mut self) -> Result<(), TestCaseError> {
        let (sq_tail, cq_head) = self.server.after(0);
        self.server = ServerRing::new(self.server.mem(), self.server.geometry(), sq_tail, cq_head);
        self.server.restore();
        while let Some(request) = self.claimed.pop_back() {
            self.queued.push_front(request);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn every_request_is_answered_once_and_in_order(
        entries in 1u32..9, start in 0u32..9, steps in steps(),
    ) {
        let g = Geometry::for_entries(entries).unwrap();
        let mem = VecMem::new(g.file_len());
        let start = g.advance(Slot::ZERO, start);
        let mut world = World::new(&mem, g, start);
        for step in &steps {
            world.take(step)?;
        }
        let all = [Step::Claim(u32::MAX), Step::Publish(u32::MAX), Step::Pop(64)];
        for step in &all {
            world.take(step)?;
        }
        prop_assert_eq!(world.free_args.len() as u32, entries, "every argument slot came back");
    }
}

fn ring_of(entries: u32) -> (Geometry, VecMem) {
    let g = Geometry::for_entries(entries).unwrap();
    (g, VecMem::new(g.file_len()))
}

#[test]
fn a_full_submission_queue_takes_nothing_and_says_so() {
    let (g, mem) = ring_of(2);
    let client = ClientRing::new(&mem, g);
    assert_eq!(client.push(0, &Args::default()), Ok(true));
    assert_eq!(client.push(1, &Args::default()), Ok(true));
    assert_eq!(client.push(0, &Args { io_len: 9, ..Args::default() }), Ok(false));
    let server = ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO);
    assert_eq!(server.request(Slot::ZERO).unwrap().1.io_len, 0, "the refused request wrote nothing");
}

#[test]
fn requests_wait_while_the_client_keeps_completions_unreaped() {
    let (g, mem) = ring_of(2);
    let client = ClientRing::new(&mem, g);
    let mut server = ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO);
    for args_slot in 0..2 {
        client.push(args_slot, &Args::default()).unwrap();
        server.claim().unwrap();
    }
    server.publish(2);
    client.push(0, &Args::default()).unwrap();
    assert_eq!(server.published(), Ok(0));
    assert_eq!(client.pop(&mut [Cqe::default(); 1]), Ok(1));
    assert_eq!(server.published(), Ok(1));
}

#[test]
fn a_pop_starts_behind_what_another_thread_took() {
    let (g, mem) = ring_of(4);
    let client = ClientRing::new(&mem, g);
    let mut server = ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO);
    for args_slot in 0..3 {
        client.push(args_slot, &Args::default()).unwrap();
        server.claim().unwrap();
        server.stage(args_slot, &Cqe { index: args_slot as i32, ..Cqe::default() });
    }
    server.publish(3);
    assert!(mem.replace_index(Word::CqeTail as usize, 0, 1), "the other thread takes one");
    assert!(!mem.replace_index(Word::CqeTail as usize, 0, 1));
    let mut out = [Cqe::default(); 4];
    assert_eq!(client.pop(&mut out), Ok(2));
    assert_eq!((out[0].index, out[1].index), (1, 2));
}

#[test]
fn the_client_reports_index_words_outside_the_ring() {
    let (g, mem) = ring_of(4);
    let client = ClientRing::new(&mem, g);
    for raw in [-1, 5, i32::MAX, i32::MIN] {
        for word in [Word::SqeHead, Word::SqeTail, Word::CqeHead, Word::CqeTail] {
            mem.store_index(word as usize, raw);
            let fault = RingFault::IndexOutOfRange { word, raw, slots: 5 };
            if matches!(word, Word::SqeHead | Word::SqeTail) {
                assert_eq!(client.push(0, &Args::default()), Err(fault));
            } else {
                assert_eq!(client.completed(), Err(fault));
                assert_eq!(client.pop(&mut [Cqe::default()]), Err(fault));
            }
            mem.store_index(word as usize, 0);
        }
    }
}

#[test]
#[should_panic(expected = "completion 1 of 1 claimed requests")]
fn staging_beyond_what_was_claimed_panics() {
    let (g, mem) = ring_of(4);
    ClientRing::new(&mem, g).push(0, &Args::default()).unwrap();
    let mut server = ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO);
    server.claim().unwrap();
    server.stage(1, &Cqe::default());
}

#[test]
#[should_panic(expected = "1 completions of 0 claimed requests")]
fn publishing_more_than_was_claimed_panics() {
    let (g, mem) = ring_of(4);
    ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO).publish(1);
}

#[test]
#[should_panic(expected = "on a ring of 3 slots")]
fn slots_of_another_geometry_are_refused() {
    let (g, mem) = ring_of(2);
    let other = Geometry::for_entries(9).unwrap().slot(9).unwrap();
    ServerRing::new(&mem, g, other, Slot::ZERO);
}

/// `SharedMem` and `VecMem` behave alike, at each edge of the memory too.
#[test]
fn shared_memory_checks_every_offset() {
    let mut words = [0u64; 4];
    // SAFETY: `words` is aligned to 8, has 32 bytes, outlives `mem` and is touched through `mem` only.
    let mem = unsafe { SharedMem::new(words.as_mut_ptr().cast(), 32) };
    assert_eq!((mem.len(), mem.is_empty()), (32, false));
    mem.store(24, u64::MAX - 1);
    assert_eq!((mem.load(24), mem.load_index(24), mem.load_index(28)), (u64::MAX - 1, -2, -1));
    assert!(mem.replace_index(28, -1, 7));
    assert!(!mem.replace_index(28, -1, 8));
    mem.store_index(24, 3);
    assert_eq!(mem.load(24), 7 << 32 | 3);
    for at in [4, 31, 32, 33, 1 << 32, usize::MAX, usize::MAX - 7] {
        assert!(std::panic::catch_unwind(|| mem.load(at)).is_err(), "data word at {at}");
    }
    for at in [1, 2, 30, 32, usize::MAX, usize::MAX - 3] {
        assert!(std::panic::catch_unwind(|| mem.load_index(at)).is_err(), "index word at {at}");
    }
}
