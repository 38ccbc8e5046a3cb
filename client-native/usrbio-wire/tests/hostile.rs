//! A peer that writes anything anywhere at any time: the server's end stays inside the ring and never panics.

use proptest::prelude::*;
use std::cell::Cell;
use usrbio_wire::layout::Word;
use usrbio_wire::mem::{RingMem, VecMem};
use usrbio_wire::peer::HostilePeer;
use usrbio_wire::{Args, ClientRing, Cqe, Geometry, RingFault, ServerRing, Slot};

/// The server's view of a ring: panics on an access that the protocol does not give the server, and lets the peer
/// run between any two loads.
struct Watched<'a, F> {
    mem: &'a VecMem,
    geometry: Geometry,
    between: F,
    loads: Cell<u32>,
}

impl<'a, F: Fn()> Watched<'a, F> {
    fn new(mem: &'a VecMem, geometry: Geometry, between: F) -> Self {
        Watched { mem, geometry, between, loads: Cell::new(0) }
    }
}

impl<F: Fn()> RingMem for Watched<'_, F> {
    fn load_index(&self, at: usize) -> i32 {
        assert!([Word::SqeHead as usize, Word::CqeTail as usize].contains(&at), "reads its own word at {at}");
        (self.between)();
        self.loads.set(self.loads.get() + 1);
        self.mem.load_index(at)
    }
    fn store_index(&self, at: usize, value: i32) {
        assert!(
            [Word::SqeTail as usize, Word::CqeHead as usize].contains(&at),
            "writes the client's word at {at}"
        );
        assert!(self.geometry.slot(value).is_some(), "stores {value}");
        self.mem.store_index(at, value);
    }
    fn replace_index(&self, at: usize, _: i32, _: i32) -> bool {
        panic!("the server never swaps an index word, but did at {at}");
    }
    fn load(&self, at: usize) -> u64 {
        let zero = Slot::ZERO;
        let g = self.geometry;
        let args = g.args_at(0)..g.args_at(g.entries());
        assert!(args.contains(&at) || (g.sqe_at(zero)..g.sem_at()).contains(&at), "reads {at}");
        (self.between)();
        self.loads.set(self.loads.get() + 1);
        self.mem.load(at)
    }
    fn store(&self, at: usize, value: u64) {
        let g = self.geometry;
        assert!((g.cqe_at(Slot::ZERO)..g.sqe_at(Slot::ZERO)).contains(&at), "writes {at}");
        self.mem.store(at, value);
    }
}

fn serve<M: RingMem>(server: &mut ServerRing<M>, publish: u32) -> Result<(), RingFault> {
    let g = server.geometry();
    let n = server.published()?;
    assert!(server.claimed() + n <= g.entries());
    for _ in 0..n {
        let (sqe, _) = server.claim()?;
        assert!((0..g.entries() as i32).contains(&sqe.index));
    }
    let n = publish.min(server.claimed());
    for i in 0..n {
        server.stage(i, &Cqe::default());
    }
    server.publish(n);
    Ok(())
}

proptest! {
    #[test]
    fn a_hostile_peer_gets_faults_and_nothing_else(
        entries in 1u32..20, seed in any::<u64>(), turns in prop::collection::vec((0u32..8, 0u32..8), 1..200),
    ) {
        let g = Geometry::for_entries(entries).unwrap();
        let mem = VecMem::new(g.file_len());
        let peer = std::cell::RefCell::new(HostilePeer::new(&mem, g, seed));
        let every = 1 + (seed % 13) as u32;
        let calls = Cell::new(0u32);
        let watched = Watched::new(&mem, g, || {
            calls.set(calls.get() + 1);
            if calls.get().is_multiple_of(every) {
                peer.borrow_mut().step();
            }
        });
        let mut server = ServerRing::new(&watched, g, Slot::ZERO, Slot::ZERO);
        for (steps, publish) in turns {
            for _ in 0..steps {
                peer.borrow_mut().step();
            }
            watched.loads.set(0);
            let _ = serve(&mut server, publish);
            prop_assert!(watched.loads.get() <= 2 + 9 * entries, "one read of each word");
            prop_assert!(server.claimed() <= entries);
        }
    }

    #[test]
    fn any_four_index_words_give_a_bounded_count_or_a_fault(
        entries in 1u32..6, words in prop::array::uniform4(prop_oneof![-1..7i32, any::<i32>()]),
        tail in 0u32..6, head in 0u32..6, claims in 0u32..6,
    ) {
        let g = Geometry::for_entries(entries).unwrap();
        let mem = VecMem::new(g.file_len());
        let mut server = ServerRing::new(&mem, g, g.advance(Slot::ZERO, tail), g.advance(Slot::ZERO, head));
        for _ in 0..claims.min(entries) {
            server.claim().unwrap();
        }
        for (i, raw) in words.into_iter().enumerate() {
            mem.store_index(4 * i, raw);
        }
        match server.published() {
            Ok(n) => prop_assert!(n + server.claimed() <= entries),
            Err(RingFault::IndexOutOfRange { word, raw, slots }) => {
                prop_assert_eq!(raw, words[word as usize / 4]);
                prop_assert!(!(0..slots as i32).contains(&raw));
            }
            Err(RingFault::Overflow { inflight, entries }) => prop_assert!(inflight > entries),
            Err(fault) => prop_assert!(false, "{}", fault),
        }
    }

    #[test]
    fn a_hostile_server_never_makes_the_client_panic(entries in 1u32..20, seed in any::<u64>()) {
        let g = Geometry::for_entries(entries).unwrap();
        let mem = VecMem::new(g.file_len());
        let client = ClientRing::new(&mem, g);
        let mut peer = HostilePeer::new(&mem, g, seed);
        let mut out = [Cqe::default(); 32];
        for i in 0..200 {
            peer.step();
            let _ = client.push(i % entries, &Args::default());
            if let Ok(n) = client.pop(&mut out) {
                prop_assert!(n as u32 <= entries);
            }
            prop_assert!(client.completed().unwrap_or(0) <= entries);
        }
    }
}

fn claimed_ring(mem: &VecMem, g: Geometry, n: u32) -> ServerRing<&VecMem> {
    let client = ClientRing::new(mem, g);
    let mut server = ServerRing::new(mem, g, Slot::ZERO, Slot::ZERO);
    for args_slot in 0..n {
        client.push(args_slot, &Args::default()).unwrap();
        server.claim().unwrap();
    }
    server
}

#[test]
fn head_moved_back_over_executing_requests_is_an_overflow() {
    let g = Geometry::for_entries(4).unwrap();
    let mem = VecMem::new(g.file_len());
    let server = claimed_ring(&mem, g, 3);
    mem.store_index(Word::SqeHead as usize, 2);
    assert_eq!(server.published(), Err(RingFault::Overflow { inflight: 7, entries: 4 }));
}

#[test]
fn completions_taken_back_are_an_overflow() {
    let g = Geometry::for_entries(4).unwrap();
    let mem = VecMem::new(g.file_len());
    let server = claimed_ring(&mem, g, 3);
    ClientRing::new(&mem, g).push(3, &Args::default()).unwrap();
    mem.store_index(Word::CqeTail as usize, 2);
    assert_eq!(server.published(), Err(RingFault::Overflow { inflight: 6, entries: 4 }));
}

#[test]
fn claiming_more_than_the_entries_is_refused_and_moves_nothing() {
    let g = Geometry::for_entries(2).unwrap();
    let mem = VecMem::new(g.file_len());
    let mut server = claimed_ring(&mem, g, 2);
    let cursor = server.cursor();
    assert_eq!(server.claim(), Err(RingFault::Overflow { inflight: 3, entries: 2 }));
    assert_eq!((server.cursor(), server.claimed()), (cursor, 2));
}

#[test]
fn a_request_that_names_no_argument_slot_is_a_fault_with_its_numbers() {
    let g = Geometry::for_entries(4).unwrap();
    for raw in [-1, 4, 5, i32::MAX, i32::MIN] {
        let mem = VecMem::new(g.file_len());
        ClientRing::new(&mem, g).push(0, &Args::default()).unwrap();
        mem.store(g.sqe_at(Slot::ZERO), u64::from(raw as u32));
        let mut server = ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO);
        assert_eq!(server.claim(), Err(RingFault::ArgsOutOfRange { slot: 0, raw, entries: 4 }));
        assert_eq!(server.claimed(), 0);
    }
}

#[test]
fn equal_seeds_take_equal_steps() {
    let g = Geometry::for_entries(8).unwrap();
    let run = || {
        let mem = VecMem::new(g.file_len());
        let mut peer = HostilePeer::new(&mem, g, 42);
        (0..500).map(|_| peer.step()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn the_hostile_peer_reaches_every_fault_and_honest_requests_too() {
    let g = Geometry::for_entries(4).unwrap();
    let mem = VecMem::new(g.file_len());
    let mut peer = HostilePeer::new(&mem, g, 1);
    let mut server = ServerRing::new(&mem, g, Slot::ZERO, Slot::ZERO);
    let mut seen = [0u32; 4];
    for i in 0..20_000 {
        peer.step();
        let outcome = match serve(&mut server, i % 3) {
            Ok(()) => 0,
            Err(RingFault::IndexOutOfRange { .. }) => 1,
            Err(RingFault::ArgsOutOfRange { .. }) => 2,
            Err(RingFault::Overflow { .. }) => 3,
            Err(fault @ RingFault::UnknownCompletion { .. }) => unreachable!("the client's to find: {fault}"),
        };
        seen[outcome] += 1;
    }
    assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
}
