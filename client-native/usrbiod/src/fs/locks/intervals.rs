//! A map from ranges of bytes, which may overlap, to values: whatever overlaps a range is found in the logarithm of their
//! number. A treap in the order of the starts, each node of which knows the greatest end below it.

use super::ByteRange;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;

/// Names an entry: its start, and the number that the caller gave it.
pub(super) type Place = (u64, u64);

type Link<T> = Option<Box<Node<T>>>;

#[derive(Debug)]
struct Node<T> {
    place: Place,
    end: u64,
    /// The greatest end of this node and those below.
    max_end: u64,
    /// No child has a greater one.
    priority: u64,
    value: T,
    left: Link<T>,
    right: Link<T>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Intervals<T> {
    root: Link<T>,
    /// Makes priorities that a client cannot guess, which keeps the tree flat.
    random: RandomState,
}

impl<T> Default for Intervals<T> {
    fn default() -> Self {
        Intervals { root: None, random: RandomState::new() }
    }
}

impl<T> Intervals<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Adds an entry. `number` makes its place unique.
    pub(super) fn insert(&mut self, range: ByteRange, number: u64, value: T) -> Place {
        let place = (range.start, number);
        let priority = self.random.hash_one(place);
        let node = Box::new(Node {
            place,
            end: range.end,
            max_end: range.end,
            priority,
            value,
            left: None,
            right: None,
        });
        let (before, after) = split(self.root.take(), place);
        self.root = join(join(before, Some(node)), after);
        place
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        let (before, rest) = split(self.root.take(), place);
        let (found, after) = split(rest, (place.0, place.1 + 1));
        self.root = join(before, after);
        Some(found?.value)
    }

    /// Does `each` for what overlaps `range`, in the order of the starts, until it breaks.
    pub(super) fn overlapping<'a, B>(
        &'a self,
        range: ByteRange,
        mut each: impl FnMut(Place, ByteRange, &'a T) -> ControlFlow<B>,
    ) -> Option<B> {
        visit(&self.root, range, &mut each).break_value()
    }

    /// Everything that overlaps `range`.
    pub(super) fn all_in(&self, range: ByteRange) -> Vec<(Place, ByteRange, &T)> {
        let mut all = Vec::new();
        self.overlapping(range, |place, range, value| {
            all.push((place, range, value));
            ControlFlow::<()>::Continue(())
        });
        all
    }

    /// What lies at `place`.
    pub(super) fn get(&self, place: Place) -> Option<(ByteRange, &T)> {
        let mut link = &self.root;
        while let Some(node) = link {
            count_step();
            if node.place == place {
                return Some((node.range(), &node.value));
            }
            link = if place < node.place { &node.left } else { &node.right };
        }
        None
    }
}

impl<T> Node<T> {
    fn range(&self) -> ByteRange {
        ByteRange { start: self.place.0, end: self.end }
    }

    fn update(&mut self) {
        let below = [&self.left, &self.right].into_iter().flatten().map(|node| node.max_end);
        self.max_end = below.fold(self.end, u64::max);
    }
}

/// Those before `at`, and the others.
fn split<T>(link: Link<T>, at: Place) -> (Link<T>, Link<T>) {
    let Some(mut node) = link else { return (None, None) };
    count_step();
    if node.place < at {
        let (before, after) = split(node.right.take(), at);
        node.right = before;
        node.update();
        (Some(node), after)
    } else {
        let (before, after) = split(node.left.take(), at);
        node.left = after;
        node.update();
        (before, Some(node))
    }
}

/// All of `before` lies before all of `after`.
fn join<T>(before: Link<T>, after: Link<T>) -> Link<T> {
    count_step();
    match (before, after) {
        (None, link) | (link, None) => link,
        (Some(mut left), Some(mut right)) => {
            if left.priority > right.priority {
                left.right = join(left.right.take(), Some(right));
                left.update();
                Some(left)
            } else {
                right.left = join(Some(left), right.left.take());
                right.update();
                Some(right)
            }
        }
    }
}

fn visit<'a, T, B>(
    link: &'a Link<T>,
    range: ByteRange,
    each: &mut impl FnMut(Place, ByteRange, &'a T) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let Some(node) = link else { return ControlFlow::Continue(()) };
    count_step();
    if node.max_end < range.start {
        return ControlFlow::Continue(());
    }
    visit(&node.left, range, each)?;
    if node.place.0 > range.end {
        return ControlFlow::Continue(());
    }
    if node.end >= range.start {
        each(node.place, node.range(), &node.value)?;
    }
    visit(&node.right, range, each)
}

#[cfg(not(test))]
fn count_step() {}

#[cfg(test)]
thread_local! {
    /// Nodes that this thread looked at.
    pub(super) static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
fn count_step() {
    STEPS.set(STEPS.get() + 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64),
        Remove(usize),
        Find(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0..60u64, 0..20u64);
        prop_oneof![
            3 => range.clone().prop_map(|(start, len)| Step::Insert(start, start + len)),
            1 => any::<usize>().prop_map(Step::Remove),
            2 => range.prop_map(|(start, len)| Step::Find(start, start + len)),
        ]
    }

    proptest! {
        /// It answers as a list would that is searched from end to end.
        #[test]
        fn it_finds_what_a_list_would_find(steps in prop::collection::vec(step(), 1..200)) {
            let mut map = Intervals::default();
            let mut list: Vec<(Place, ByteRange, usize)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(start, end) => {
                        let range = ByteRange { start, end };
                        let place = map.insert(range, number as u64, number);
                        list.push((place, range, number));
                        list.sort_by_key(|(place, ..)| *place);
                    }
                    Step::Remove(which) if !list.is_empty() => {
                        let (place, _, value) = list.remove(which % list.len());
                        prop_assert_eq!(map.remove(place), Some(value));
                        prop_assert_eq!(map.remove(place), None);
                    }
                    Step::Remove(_) => {}
                    Step::Find(start, end) => {
                        let wanted = ByteRange { start, end };
                        let found: Vec<_> = map.all_in(wanted).into_iter().map(|(p, r, v)| (p, r, *v)).collect();
                        let expected: Vec<_> =
                            list.iter().filter(|(_, range, _)| range.overlaps(&wanted)).copied().collect();
                        prop_assert_eq!(found, expected);
                    }
                }
                prop_assert_eq!(map.is_empty(), list.is_empty());
                for (place, range, value) in &list {
                    prop_assert_eq!(map.get(*place), Some((*range, value)));
                }
            }
        }
    }

    #[test]
    fn one_of_many_is_found_in_few_steps_whatever_the_order_of_insertion() {
        let mut map = Intervals::default();
        for i in 0..100_000 {
            map.insert(ByteRange { start: 2 * i, end: 2 * i }, i, ());
        }
        STEPS.set(0);
        for i in 0..1000 {
            let at = 2 * i * 97;
            assert_eq!(map.all_in(ByteRange { start: at, end: at }).len(), 1);
            map.remove((at, i * 97)).unwrap();
            map.insert(ByteRange { start: at, end: at }, i * 97, ());
        }
        assert!(STEPS.get() < 1000 * 400, "{} steps", STEPS.get());
    }
}
