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

/// Nothing is kept of what has ended.
fn is_empty(table: &LockTable) -> bool {
    table.files.iter().all(|shard| super::lock(shard).is_empty()) && super::lock(&table.blocked).is_empty()
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
    assert!(is_empty(&table));
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

#[test]
fn what_one_owner_and_one_session_hold_is_bounded() {
    let (table, state) = table();
    table.attach(2, Arc::new(SessionState::anonymous().unwrap()));
    let mut held = 0;
    let per_owner = u64::from(MOST_OF_OWNER);
    for id in 0.. {
        let taken = (0..=per_owner).take_while(|i| {
            let at = 2 * (id * (per_owner + 1) + i);
            table.set(FILE, Space::Posix, &write(at, at, id)).is_ok()
        });
        let taken = taken.count() as u32;
        held += taken;
        if taken < MOST_OF_OWNER {
            break;
        }
        assert_eq!(taken, MOST_OF_OWNER, "of owner {id}");
    }
    assert_eq!((held, state.locks.iter().count() as u32), (MOST_LOCKS, MOST_LOCKS));
    let more = write(1, 1, 1 << 40);
    assert_eq!(table.set(FILE, Space::Posix, &more), Err(Errno::NOLCK));
    let other = lock(LockKind::Write, 1, 1, 2, 7);
    assert_eq!(table.set(FILE, Space::Posix, &other), Ok(vec![]), "another session is not touched");
    // What would not grow is allowed at the bound: a downgrade, one lock in the place of many, and to let go.
    assert_eq!(table.set(FILE, Space::Posix, &read(0, 0, 0)), Ok(vec![]));
    assert_eq!(table.set(FILE, Space::Posix, &write(4, 4000, 0)), Ok(vec![]));
    assert_eq!(table.set(FILE, Space::Posix, &more), Err(Errno::AGAIN));
    table.detach(1);
    assert_eq!(state.locks.iter().count(), 0);
    table.detach(2);
    assert!(is_empty(&table));
}

#[test]
fn the_waiters_of_a_session_are_bounded_and_each_is_found_at_once() {
    let (table, _) = table();
    table.attach(2, Arc::new(SessionState::anonymous().unwrap()));
    table.set(FILE, Space::Posix, &write(0, 9, 1)).unwrap();
    let most = MOST_WAITING as u64;
    for unique in 0..most {
        let parked = table.wait(FILE, Space::Posix, &write(5, 5, 10 + unique), unique);
        assert_eq!(parked, Ok(Waited::Parked(vec![])));
    }
    assert_eq!(table.wait(FILE, Space::Posix, &write(5, 5, 2), most), Err(Errno::NOLCK));
    let other = lock(LockKind::Write, 0, 0, 2, 7);
    assert_eq!(table.wait(FILE, Space::Posix, &other, 0), Ok(Waited::Parked(vec![])));
    intervals::STEPS.set(0);
    for unique in 0..most {
        assert!(table.cancel(1, unique));
    }
    let each = intervals::STEPS.get() / most;
    assert!(each < 200, "{each} steps for each");
}

#[test]
fn the_cost_of_a_lock_does_not_grow_with_those_that_are_held_or_waited_for() {
    let cost = |locks: u64, waiters: u64| {
        let (table, _) = table();
        for i in 0..locks {
            let owner = i / u64::from(MOST_OF_OWNER);
            table.set(FILE, Space::Posix, &write(2 * i, 2 * i, owner)).unwrap();
        }
        for i in 0..waiters {
            table.wait(FILE, Space::Posix, &write(2 * i, 2 * i, 1000 + i), i).unwrap();
        }
        let free = 2 * locks + 10;
        intervals::STEPS.set(0);
        for _ in 0..100 {
            table.set(FILE, Space::Posix, &write(free, free, 900)).unwrap();
            table.get(FILE, Space::Posix, &read(locks, locks, 901));
            let range = ByteRange { start: free, end: free };
            table.unlock(FILE, Space::Posix, write(0, 0, 900).owner, range).unwrap();
        }
        intervals::STEPS.get() / 100
    };
    let (few, many) = (cost(16, 4), cost(60_000, 4000));
    assert!(many < 40 * few.max(10), "{few} steps with few, {many} with many");
}

#[test]
fn who_never_locked_takes_no_mutex_that_others_hold() {
    let (table, _) = table();
    table.attach(2, Arc::new(SessionState::anonymous().unwrap()));
    table.set(FILE, Space::Posix, &write(0, 9, 1)).unwrap();
    let file = table.known((FILE, Space::Posix)).unwrap();
    let _held = super::lock(&file);
    let _shards: Vec<_> = table.files.iter().map(super::lock).collect();
    let _blocked = super::lock(&table.blocked);
    // It would hang here.
    for session in [1, 2] {
        let owner = LockOwner { session, id: 99 };
        assert_eq!(table.release_owner(FILE, Space::Posix, owner), []);
        assert_eq!(table.unlock(FILE, Space::Posix, owner, ByteRange::ALL), Ok(vec![]));
    }
}

#[test]
fn an_inode_that_is_busy_holds_up_no_other() {
    let (table, _) = table();
    table.set(FILE, Space::Posix, &write(0, 9, 1)).unwrap();
    let busy = table.known((FILE, Space::Posix)).unwrap();
    let _held = super::lock(&busy);
    for ino in 100..300 {
        let file = FileId { dev: 1, ino };
        assert_eq!(table.set(file, Space::Posix, &write(0, 9, 1)), Ok(vec![]));
        assert_eq!(table.wait(file, Space::Posix, &write(0, 9, 2), ino), Ok(Waited::Parked(vec![])));
        let freed = table.release_owner(file, Space::Posix, write(0, 9, 1).owner);
        assert_eq!(freed, [granted(ino)]);
    }
}

#[test]
fn the_search_for_a_deadlock_ends_among_thousands_of_waiters() {
    let (table, _) = table();
    for id in 0..4000 {
        table.set(FILE, Space::Posix, &read(0, 9, id)).unwrap();
        table.set(FileId { dev: 1, ino: 100 + id }, Space::Posix, &write(0, 0, id)).unwrap();
    }
    intervals::STEPS.set(0);
    for id in 0..200 {
        let next = FileId { dev: 1, ino: 101 + id };
        table.wait(next, Space::Posix, &write(0, 0, id), id).unwrap();
    }
    assert!(table.wait(FILE, Space::Posix, &write(0, 9, 9999), 9999).is_ok());
    assert!(intervals::STEPS.get() < 200 * 10_000, "{} steps", intervals::STEPS.get());
}

#[test]
fn threads_that_lock_wait_and_cancel_at_once_leave_nothing_behind() {
    let (table, state) = table();
    let answers = Mutex::new(HashSet::new());
    let note = |all: Vec<Answer>| answers.lock().unwrap().extend(all.into_iter().map(|a| a.unique));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (table, note, answers) = (&table, &note, &answers);
            scope.spawn(move || {
                for round in 0..2000u64 {
                    let unique = round * 4 + thread;
                    let owner = 1 + thread;
                    let file = FileId { dev: 1, ino: 2 + round % 3 };
                    match table.wait(file, Space::Posix, &write(0, 9, owner), unique) {
                        Ok(Waited::Granted(more)) => note(more),
                        Err(error) => assert_eq!(error, Errno::DEADLK),
                        Ok(Waited::Parked(more)) => {
                            note(more);
                            if round % 3 == 0 && table.cancel(1, unique) {
                                continue;
                            }
                            let begun = std::time::Instant::now();
                            while !answers.lock().unwrap().contains(&unique) {
                                assert!(begun.elapsed().as_secs() < 60, "{unique} waits for ever");
                                std::thread::yield_now();
                            }
                        }
                    }
                    note(table.release_owner(file, Space::Posix, write(0, 9, owner).owner));
                }
            });
        }
    });
    assert!(is_empty(&table));
    assert_eq!(state.locks.iter().count(), 0);
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
    let all = table.known((FILE, Space::Posix)).map(|file| super::lock(&file).all());
    for held in all.into_iter().flatten() {
        for byte in held.range.start..=held.range.end {
            let cell = &mut model[held.owner.id as usize][byte as usize];
            assert_eq!(*cell, None, "one owner, one byte, two locks");
            *cell = Some(held.kind);
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
