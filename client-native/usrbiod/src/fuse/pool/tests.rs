use super::*;
use crate::fs::{FdCache, Space};
use crate::ring::Engine;
use crate::session::{Limits, SessionConfig, SessionFds};
use crate::state::SessionState;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// One for all tests: it takes long to start.
static ENGINE: std::sync::OnceLock<Arc<Engine>> = std::sync::OnceLock::new();

/// A session whose kernel is a socket, and a pool without workers that has it.
fn pool() -> (Arc<Pool>, Arc<Served>, OwnedFd, tempfile::TempDir) {
    pool_with(|_| ())
}

fn pool_with(
    on_unmounted: impl Fn(Arc<Session>) + Send + Sync + 'static,
) -> (Arc<Pool>, Arc<Served>, OwnedFd, tempfile::TempDir) {
    let flags = SocketFlags::CLOEXEC;
    let (fuse, kernel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let backing = std::fs::File::open(dir.path()).unwrap().into();
    let mut shared = Shared::new(Box::new(on_unmounted)).unwrap();
    // As if it had worked for long.
    shared.clock -= 2 * Hung::AFTER;
    let pool = Arc::new(Pool { shared: Arc::new(shared) });
    let config = SessionConfig {
        name: "test".to_owned(),
        cluster: "test".to_owned(),
        mount_point: dir.path().to_owned(),
        limits: Limits::default(),
        read_only: false,
        passthrough: false,
        idmap: false,
        orders: false,
        device: None,
        space: Space::default(),
    };
    let parts = crate::session::Shared {
        budget: crate::budget::Budget::new(20_000, 5_000),
        keeper: Arc::default(),
        locks: Arc::default(),
        folders: Arc::default(),
        fds: FdCache::new(10),
        pool: pool.clone(),
        engine: ENGINE.get_or_init(|| Engine::start(1).unwrap()).clone(),
        notifier: Default::default(),
    };
    let fds = SessionFds { fuse, backing, shm: None };
    let state = Arc::new(SessionState::anonymous().unwrap());
    let (session, _) = Session::new(config, fds, state, &parts, 7, None).unwrap();
    pool.add(Arc::new(session)).unwrap();
    let served = pool.shared.session(7).unwrap();
    (pool, served, kernel, dir)
}

fn is_ready(shared: &Shared) -> bool {
    loop {
        match shared.poll() {
            Event::Tick => (),
            event => return matches!(event, Event::Session(_)),
        }
    }
}

#[test]
fn a_session_calls_one_worker_until_it_is_armed_again() {
    let (pool, served, kernel, _dir) = pool();
    rustix::io::write(&kernel, b"x").unwrap();
    assert!(is_ready(&pool.shared));
    let face = Face::default();
    pool.shared.take_up(&face, &served);
    assert!(!is_ready(&pool.shared), "the worker has the duty");
    pool.shared.leave(&face, &served);
    assert!(is_ready(&pool.shared), "there still is a request");
}

#[test]
fn a_request_that_takes_long_does_not_hold_up_its_session() {
    let (pool, served, kernel, _dir) = pool();
    rustix::io::write(&kernel, b"x").unwrap();
    assert!(is_ready(&pool.shared));
    let face = Arc::new(Face::default());
    pool.shared.faces().push(face.clone());
    pool.shared.take_up(&face, &served);
    pool.shared.tick();
    assert!(!is_ready(&pool.shared), "it is at no request");
    pool.shared.begin(&face, Instant::now());
    while face.duty.load(Ordering::SeqCst) != 0 {
        pool.shared.tick();
    }
    assert!(is_ready(&pool.shared), "others are called");
    pool.shared.leave(&face, &served);
    assert_eq!(served.workers(), 0);
}

#[test]
fn a_session_whose_requests_hang_leaves_workers_to_others() {
    let (pool, served, kernel, _dir) = pool();
    rustix::io::write(&kernel, b"x").unwrap();
    let mut crew = Vec::new();
    while is_ready(&pool.shared) {
        let face = Face::default();
        if !pool.shared.take_up(&face, &served) {
            break;
        }
        pool.shared.give_duty(&face, &served);
        crew.push(face);
    }
    assert_eq!(crew.len(), 32, "its share");
    assert!(!is_ready(&pool.shared));
    pool.shared.leave(&crew[0], &served);
    assert!(is_ready(&pool.shared), "one has come back");
}

#[test]
fn removing_waits_for_workers_also_the_second_time_and_nothing_calls_them_any_more() {
    let (pool, served, kernel, _dir) = pool();
    rustix::io::write(&kernel, b"x").unwrap();
    assert!(is_ready(&pool.shared));
    let face = Face::default();
    assert!(pool.shared.take_up(&face, &served));
    for _ in 0..3 {
        assert_eq!(pool.remove("test", Duration::ZERO), Err(Errno::TIMEDOUT));
    }
    pool.shared.leave(&face, &served);
    assert_eq!(pool.remove("test", Duration::ZERO), Ok(()));
    assert!(!is_ready(&pool.shared));
}

#[test]
fn a_mount_that_is_gone_ends_its_session_with_its_last_request() {
    let ended = Arc::new(AtomicU32::new(0));
    let count = ended.clone();
    let (pool, served, _kernel, _dir) = pool_with(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
    let (hangs, sees) = (Face::default(), Face::default());
    assert!(pool.shared.take_up(&hangs, &served) && pool.shared.take_up(&sees, &served));
    pool.shared.unmounted(&served);
    pool.shared.leave(&sees, &served);
    assert_eq!(ended.load(Ordering::SeqCst), 0, "a request runs still");
    pool.shared.leave(&hangs, &served);
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

/// What may happen, in any order, while a daemon is asked to hand over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A worker looks for a request, and takes it up if it may.
    Begins,
    /// The oldest request ends: its storage answered at last.
    Ends,
    /// The process that a client was ends.
    ClientEnds,
    /// The daemon is asked to stand still; it goes on when something runs.
    Drains,
}

/// All orders of steps up to a length: nothing runs when the pool says so, nothing begins after, and one that goes on serves
/// as before.
#[test]
fn whatever_the_order_nothing_runs_once_the_pool_says_that_nothing_runs() {
    const STEPS: [Step; 4] = [Step::Begins, Step::Ends, Step::ClientEnds, Step::Drains];
    const LENGTH: u32 = 5;
    for order in 0..STEPS.len().pow(LENGTH) {
        let order: Vec<Step> = (0..LENGTH).map(|i| STEPS[order / STEPS.len().pow(i) % STEPS.len()]).collect();
        hand_over(&order);
    }
}

fn hand_over(order: &[Step]) {
    let (pool, served, kernel, _dir) = pool();
    rustix::io::write(&kernel, b"x").unwrap();
    let shared = &pool.shared;
    let (mut running, mut acted, mut drained) = (Vec::new(), 0, false);
    let acts = Arc::new(AtomicU32::new(0));
    for step in order {
        match step {
            Step::Begins => {
                let face = Face::default();
                if is_ready(shared) && !served.closed.load(Ordering::SeqCst) && shared.take_up(&face, &served)
                {
                    shared.give_duty(&face, &served);
                    running.push(face);
                    assert!(!drained, "{order:?}: a request begins after the end");
                }
            }
            Step::Ends if !running.is_empty() => shared.leave(&running.remove(0), &served),
            Step::Ends => (),
            Step::ClientEnds => {
                let (fd, other) = rustix::pipe::pipe().unwrap();
                let count = acts.clone();
                shared.when_readable(fd, Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
                drop(other);
                acted += 1;
                run_actions(shared);
                let done = acts.load(Ordering::SeqCst);
                assert!(done == acted || drained, "{order:?}: a client's end is not seen");
                acted = done;
            }
            Step::Drains if drained => assert_eq!(pool.running(), None, "{order:?}"),
            Step::Drains => {
                pool.pause();
                drained = pool.running().is_none();
                assert_eq!(drained, running.is_empty(), "{order:?}");
                if !drained {
                    pool.go_on();
                    run_actions(shared);
                }
            }
        }
    }
    if !drained {
        running.iter().for_each(|face| shared.leave(face, &served));
        assert!(is_ready(shared), "{order:?}: the request that waits is not seen");
    }
}

fn run_actions(shared: &Shared) {
    let mut called = None;
    loop {
        match shared.poll() {
            Event::Action(number) => shared.act(number),
            Event::Session(served) => called = Some(served),
            Event::Tick => (),
            _ => break,
        }
    }
    if let Some(served) = called {
        shared.arm(&served);
    }
}

#[test]
fn hung_requests_are_counted_by_session_and_long_removals_are_not() {
    let (pool, served, _kernel, _dir) = pool();
    let [hangs, young, removes] = [(); 3].map(|()| Arc::new(Face::default()));
    let (long_ago, now) = (pool.shared.clock, Instant::now());
    for (face, at) in [(&hangs, long_ago), (&removes, long_ago), (&young, now)] {
        assert!(pool.shared.take_up(face, &served));
        pool.shared.begin(face, at);
        pool.shared.faces().push(face.clone());
    }
    removes.by_steps.store(true, Ordering::SeqCst);
    let hung = pool.hung();
    assert_eq!(hung[&7].requests, 1);
    assert!(hung[&7].oldest >= 2 * Hung::AFTER);
    pool.shared.leave(&hangs, &served);
    assert!(pool.hung().is_empty());
}

#[test]
fn an_action_runs_once_when_its_fd_is_readable() {
    let shared = Arc::new(Shared::new(Box::new(|_| ())).unwrap());
    let (fd, other) = rustix::pipe::pipe().unwrap();
    let ran = Arc::new(AtomicU32::new(0));
    let count = ran.clone();
    shared.when_readable(fd, Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
    assert!(matches!(shared.poll(), Event::Nothing));
    drop(other);
    let Event::Action(number) = shared.poll() else { panic!("the fd is readable") };
    shared.act(number);
    shared.act(number);
    assert!(matches!(shared.poll(), Event::Nothing));
    assert_eq!(ran.load(Ordering::SeqCst), 1);
}
