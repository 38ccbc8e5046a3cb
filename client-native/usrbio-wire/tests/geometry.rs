//! Ring geometry and index arithmetic against plain modular arithmetic.

use proptest::prelude::*;
use std::ops::Range;
use usrbio_wire::Geometry;

/// Every structure of the ring as a byte range, in file order.
fn ranges(g: Geometry) -> Vec<Range<usize>> {
    let of = |at: usize, len: usize| at..at + len;
    let slots = || (0..g.slots()).map(|i| g.slot(i as i32).unwrap());
    let mut all: Vec<_> = (0..4).map(|word| of(4 * word, 4)).collect();
    all.extend((0..g.slots()).map(|i| of(g.args_at(i), 56)));
    all.extend(slots().map(|s| of(g.cqe_at(s), 24)));
    all.extend(slots().map(|s| of(g.sqe_at(s), 16)));
    all.push(of(g.sem_at(), 32));
    all.push(of(g.sem_at() + 32, 4096));
    all
}

proptest! {
    #[test]
    fn the_structures_cover_the_file_without_gap_or_overlap(entries in 1u32..3000) {
        let g = Geometry::for_entries(entries).unwrap();
        let mut end = 0;
        for range in ranges(g) {
            prop_assert_eq!(range.start, end);
            prop_assert!(range.start % 8 == 0 || range.end <= 16);
            end = range.end;
        }
        prop_assert_eq!(end, g.file_len());
    }

    #[test]
    fn the_file_length_gives_the_entries_back(entries in 1u32..22_000_000, more in 0u64..96) {
        let g = Geometry::for_entries(entries).unwrap();
        prop_assert_eq!(g.entries(), entries);
        prop_assert_eq!(g.file_len() as u64, 4144 + 96 * (u64::from(entries) + 1));
        prop_assert_eq!(Geometry::for_file_len(g.file_len() as u64 + more), Some(g));
        prop_assert_ne!(Geometry::for_file_len(g.file_len() as u64 - 1), Some(g));
    }

    #[test]
    fn a_geometry_never_exceeds_its_file(len in prop_oneof![0u64..20_000, any::<u64>()]) {
        if let Some(g) = Geometry::for_file_len(len) {
            prop_assert!(g.file_len() as u64 <= len);
            prop_assert!(g.file_len() <= i32::MAX as usize);
            prop_assert!(len - (g.file_len() as u64) < 96);
        }
    }

    #[test]
    fn only_numbers_inside_the_ring_are_slots(entries in 1u32..5000, raw in prop_oneof![any::<i32>(), -2..5002i32]) {
        let g = Geometry::for_entries(entries).unwrap();
        let inside = (0..=i64::from(entries)).contains(&i64::from(raw));
        prop_assert_eq!(g.slot(raw).map(|s| s.raw()), inside.then_some(raw));
    }

    #[test]
    fn steps_and_distances_are_those_of_modular_arithmetic(
        entries in 1u32..5000, a in any::<u32>(), b in any::<u32>(), n in any::<u32>(),
    ) {
        let g = Geometry::for_entries(entries).unwrap();
        let slots = i64::from(g.slots());
        let [a, b] = [a, b].map(|x| i64::from(x) % slots);
        let [from, to] = [a, b].map(|x| g.slot(x as i32).unwrap());
        prop_assert_eq!(i64::from(g.next(from).raw()), (a + 1) % slots);
        prop_assert_eq!(i64::from(g.advance(from, n).raw()), (a + i64::from(n)) % slots);
        prop_assert_eq!(i64::from(g.distance(from, to)), (b - a).rem_euclid(slots));
        prop_assert_eq!(g.advance(from, g.distance(from, to)), to);
    }
}
