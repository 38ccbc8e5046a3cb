use super::*;
use proptest::prelude::*;

const FILE: FileId = FileId { dev: 1, ino: 2 };

fn lock(kind: LockKind, start: u64, end: u64, session: u32, id: u64) -> Lock {
    let owner = LockOwner { session, id };
    Lock { kind, range: ByteRange { start, end }, owner, pid: id as u32 }
}

fn write(start: u64, end: u64, id: u64) -> Lock {
    lock(LockKind::Write, start, end, 1, id)
}

fn read(start: u64, end: u64, id: u64) -> Lock {
    lock(LockKind::Read, start, end, 1, id)
}

fn table() -> (LockTable, Arc<SessionState>) {
    let table = LockTable::default();
    let state = Arc::new(SessionState::anonymous().unwrap());
    table.attach(1, state.clone());
    (table, state)
}

fn granted(unique: u64) -> Answer {
    Answer { session: 1, unique, result: Ok(()) }
}

#[test]
fn sessions_over_one_file_see_each_others_locks() {
    let (table, _) = table();
    table.attach(2, Arc::new(SessionState::anonymous().unwrap()));
    table.set(FILE, Space::Posix, &write(0, 9, 7)).unwrap();
    let other = lock(LockKind::Read, 5, 5, 2, 7);
    assert_eq!(table.set(FILE, Space::Posix, &other), Err(Errno::AGAIN));
    assert_eq!(table.get(FILE, Space::Posix, &other), Some(write(0, 9, 7)));
    assert_eq!(table.set(FILE, Space::Flock, &other), Ok(vec![]), "flock is a space of its own");
    table.detach(1);
    assert_eq!(table.set(FILE, Space::Posix, &other), Ok(vec![]));
}

#[test]
fn waiters_are_granted_in_order_when_the_range_is_free() {
    let (table, _) = table();
    table.set(FILE, Space::Posix, &write(0, 9, 1)).unwrap();
    for (unique, wanted) in [(10, read(0, 4, 2)), (11, write(0, 4, 3)), (12, read(4, 9, 4))] {
        assert_eq!(table.wait(FILE, Space::Posix, &wanted, unique), Ok(Waited::Parked(vec![])));
    }
    let freed = table.unlock(FILE, Space::Posix, write(0, 9, 1).owner, ByteRange::ALL).unwrap();
    assert_eq!(freed, [granted(10), granted(12)], "the writer waits for the reader before it");
    assert_eq!(table.release_owner(FILE, Space::Posix, read(0, 4, 2).owner), []);
    assert_eq!(table.release_owner(FILE, Space::Posix, read(4, 9, 4).owner), [granted(11)]);
}

#[test]
fn a_downgrade_lets_readers_in() {
    let (table, _) = table();
    table.set(FILE, Space::Posix, &write(0, 9, 1)).unwrap();
    assert_eq!(table.wait(FILE, Space::Posix, &read(0, 9, 2), 5), Ok(Waited::Parked(vec![])));
    assert_eq!(table.set(FILE, Space::Posix, &read(0, 9, 1)), Ok(vec![granted(5)]));
}

#[test]
fn an_interrupted_request_waits_no_more() {
    let (table, _) = table();
    table.set(FILE, Space::Posix, &write(0, 9, 1)).unwrap();
    table.wait(FILE, Space::Posix, &write(0, 0, 2), 5).unwrap();
    assert!(table.cancel(1, 5));
    assert!(!table.cancel(1, 5));
    assert_eq!(table.release_owner(FILE, Space::Posix, write(0, 0, 1).owner), []);
    assert!(table.lock().files.is_empty() && table.lock().blocked.is_empty());
}

#[test]
fn a_cycle_of_posix_waiters_is_refused_and_a_chain_is_not() {
    let (table, _) = table();
    for id in 1..=3 {
        table.set(FILE, Space::Posix, &write(id, id, id)).unwrap();
    }
    assert_eq!(table.wait(FILE, Space::Posix, &write(2, 2, 1), 10), Ok(Waited::Parked(vec![])));
    assert_eq!(table.wait(FILE, Space::Posix, &write(3, 3, 2), 11), Ok(Waited::Parked(vec![])));
    assert_eq!(table.wait(FILE, Space::Posix, &write(1, 1, 3), 12), Err(Errno::DEADLK));
    assert_eq!(table.release_owner(FILE, Space::Posix, write(3, 3, 3).owner), [granted(11)]);
}

#[test]
fn two_shared_flocks_that_both_want_to_be_exclusive_do_not_wait_for_ever() {
    let (table, _) = table();
    table.set(FILE, Space::Flock, &read(0, 0, 1)).unwrap();
    table.set(FILE, Space::Flock, &read(0, 0, 2)).unwrap();
    assert_eq!(table.set(FILE, Space::Flock, &write(0, 0, 1)), Err(Errno::AGAIN));
    assert_eq!(table.wait(FILE, Space::Flock, &write(0, 0, 1), 10), Ok(Waited::Parked(vec![])));
    assert_eq!(table.wait(FILE, Space::Flock, &write(0, 0, 2), 11), Ok(Waited::Granted(vec![])));
    assert_eq!(table.release_owner(FILE, Space::Flock, read(0, 0, 2).owner), [granted(10)]);
}

#[test]
fn a_resent_request_finds_its_lock_held_and_succeeds() {
    let (first, state) = table();
    first.set(FILE, Space::Posix, &write(3, 5, 1)).unwrap();
    let second = LockTable::default();
    second.attach(1, state.clone());
    assert_eq!(second.wait(FILE, Space::Posix, &write(3, 5, 1), 9), Ok(Waited::Granted(vec![])));
    assert_eq!(second.get(FILE, Space::Posix, &read(5, 5, 2)), Some(write(3, 5, 1)));
    assert_eq!(state.locks.iter().count(), 1);
}

#[test]
fn a_change_cut_short_by_a_crash_is_finished_when_the_request_comes_again() {
    let (_, state) = table();
    // The downgrade wrote its new record and died before it removed the old one.
    for held in [read(0, 9, 1), write(0, 9, 1)] {
        state.locks.insert(&to_record((FILE, Space::Posix), &held)).unwrap();
    }
    let successor = LockTable::default();
    successor.attach(1, state.clone());
    assert_eq!(successor.set(FILE, Space::Posix, &read(0, 9, 2)), Err(Errno::AGAIN), "never a gap");
    assert_eq!(successor.set(FILE, Space::Posix, &read(0, 9, 1)), Ok(vec![]));
    assert_eq!(successor.set(FILE, Space::Posix, &read(0, 9, 2)), Ok(vec![]));
    assert_eq!(state.locks.iter().count(), 2);
}

#[test]
fn a_range_that_is_none_is_refused() {
    let (table, _) = table();
    assert_eq!(table.set(FILE, Space::Posix, &write(5, 4, 1)), Err(Errno::INVAL));
    assert_eq!(table.set(FILE, Space::Posix, &write(0, u64::MAX, 1)), Err(Errno::INVAL));
    assert_eq!(table.set(FILE, Space::Posix, &write(0, ByteRange::ALL.end, 1)), Ok(vec![]));
}

const BYTES: usize = 10;
const OWNERS: usize = 3;
/// What each owner holds of each byte.
type Model = [[Option<LockKind>; BYTES]; OWNERS];

#[derive(Debug, Clone)]
struct Step {
    owner: usize,
    start: usize,
    end: usize,
    kind: Option<LockKind>,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(None), Just(Some(LockKind::Read)), Just(Some(LockKind::Write))];
    (0..OWNERS, 0..BYTES, 0..BYTES, kind).prop_map(|(owner, a, b, kind)| Step {
        owner,
        start: a.min(b),
        end: a.max(b),
        kind,
    })
}

fn model_allows(model: &Model, step: &Step, kind: LockKind) -> bool {
    let others = (0..OWNERS).filter(|o| *o != step.owner);
    !others.flat_map(|o| &model[o][step.start..=step.end]).any(|held| match held {
        Some(LockKind::Write) => true,
        Some(LockKind::Read) => kind == LockKind::Write,
        None => false,
    })
}

fn as_model(table: &LockTable) -> Model {
    let mut model = Model::default();
    for held in table.lock().files.get(&(FILE, Space::Posix)).into_iter().flat_map(|f| &f.held) {
        for byte in held.lock.range.start..=held.lock.range.end {
            let cell = &mut model[held.lock.owner.id as usize][byte as usize];
            assert_eq!(*cell, None, "one owner, one byte, two locks");
            *cell = Some(held.lock.kind);
        }
    }
    model
}

proptest! {
    /// Any sequence of locking and unlocking leaves every byte as a table of bytes would, here and for a successor.
    #[test]
    fn ranges_behave_like_single_bytes(steps in prop::collection::vec(step(), 1..40)) {
        let (table, state) = table();
        let mut model = Model::default();
        for step in &steps {
            let wanted = |kind| lock(kind, step.start as u64, step.end as u64, 1, step.owner as u64);
            let done = match step.kind {
                Some(kind) => {
                    let answer = table.set(FILE, Space::Posix, &wanted(kind));
                    prop_assert_eq!(answer.is_ok(), model_allows(&model, step, kind));
                    answer.is_ok()
                }
                None => {
                    let range = wanted(LockKind::Read).range;
                    table.unlock(FILE, Space::Posix, wanted(LockKind::Read).owner, range).is_ok()
                }
            };
            if done {
                model[step.owner][step.start..=step.end].fill(step.kind);
            }
            prop_assert_eq!(as_model(&table), model);
            let successor = LockTable::default();
            successor.attach(1, state.clone());
            prop_assert_eq!(as_model(&successor), model);
        }
    }
}
