//! Both ends of a ring in two threads under the model checker loom: every interleaving (with a bounded number of
//! preemptions) and every value that the memory model lets a load see. loom takes SeqCst loads and stores for
//! acquire and release, so what passes here needs no stronger order.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p usrbio-wire --test loom --release --target-dir target/loom`
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use usrbio_wire::{Args, ClientRing, Cqe, Geometry, Ino, RingMem, ServerRing, Slot, sem};

const ENTRIES: u32 = 2;

/// Index words are loom's atomics. Data words are loom's cells, which is stricter than relaxed atomics: an access
/// that does not happen after the last write of the other thread fails the test.
struct LoomMem {
    index: [AtomicI32; 4],
    data: Vec<UnsafeCell<u64>>,
}

// SAFETY: `data` is reached through `RingMem` only, and loom checks that no two accesses to a cell race.
unsafe impl Sync for LoomMem {}

impl LoomMem {
    fn new(g: Geometry) -> LoomMem {
        let data = (0..g.sem_at() / 8).map(|_| UnsafeCell::new(0)).collect();
        LoomMem { index: std::array::from_fn(|_| AtomicI32::new(0)), data }
    }
}

impl RingMem for LoomMem {
    fn load_index(&self, at: usize) -> i32 {
        self.index[at / 4].load(Ordering::SeqCst)
    }
    fn store_index(&self, at: usize, value: i32) {
        self.index[at / 4].store(value, Ordering::SeqCst);
    }
    fn replace_index(&self, at: usize, current: i32, new: i32) -> bool {
        self.index[at / 4].compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
    fn load(&self, at: usize) -> u64 {
        // SAFETY: loom fails the test if another thread writes the cell now.
        self.data[at / 8].with(|word| unsafe { *word })
    }
    fn store(&self, at: usize, value: u64) {
        // SAFETY: loom fails the test if another thread touches the cell now.
        self.data[at / 8].with_mut(|word| unsafe { *word = value });
    }
}

/// A glibc semaphore whose futex is a mutex and a condition variable: checking the value and going to sleep are
/// one step for a waker, as in the kernel.
struct Semaphore {
    word: AtomicU64,
    futex: Mutex<()>,
    woken: Condvar,
}

impl Semaphore {
    fn new() -> Semaphore {
        Semaphore { word: AtomicU64::new(0), futex: Mutex::new(()), woken: Condvar::new() }
    }

    /// `sem_post`.
    fn post(&self) {
        if sem::waiters(self.word.fetch_add(1, Ordering::Release)) > 0 {
            drop(self.futex.lock().unwrap());
            self.woken.notify_one();
        }
    }

    /// `FUTEX_WAIT` for a value of 0.
    fn wait_while_zero(&self) {
        let futex = self.futex.lock().unwrap();
        if sem::value(self.word.load(Ordering::Relaxed)) == 0 {
            drop(self.woken.wait(futex).unwrap());
        }
    }

    fn register(&self) {
        self.word.fetch_add(sem::ONE_WAITER, Ordering::Relaxed);
    }

    fn drain(&self) {
        self.word.fetch_and(sem::drained(u64::MAX), Ordering::Acquire);
    }
}

fn args(serial: u64) -> Args {
    Args {
        file_iid: Ino(serial + 10),
        file_off: serial + 20,
        io_len: serial + 30,
        userdata: serial,
        ..Args::default()
    }
}

/// Claims all that is published and answers it; the number of requests.
fn serve(server: &mut ServerRing<&LoomMem>, seen: &mut u64) -> u32 {
    let n = server.published().unwrap();
    for i in 0..n {
        let (sqe, request) = server.claim().unwrap();
        assert_eq!((sqe.userdata, request), (*seen, args(*seen)), "in order and complete");
        server
            .stage(i, &Cqe { index: sqe.index, result: request.io_len as i64, userdata: *seen, reserved: 0 });
        *seen += 1;
    }
    server.publish(n);
    n
}

fn reap(client: &ClientRing<&LoomMem>, seen: &mut u64) {
    let mut out = [Cqe::default(); ENTRIES as usize];
    let n = client.pop(&mut out).unwrap();
    for cqe in &out[..n] {
        let expected = Cqe {
            index: (*seen % u64::from(ENTRIES)) as i32,
            result: *seen as i64 + 30,
            userdata: *seen,
            reserved: 0,
        };
        assert_eq!(*cqe, expected, "in order and complete");
        *seen += 1;
    }
}

/// Pushes `requests` and reaps them all, no more than `ENTRIES` in flight; `pushed` and `idle` run after a push
/// and while the server has the next step.
fn run_client(client: &ClientRing<&LoomMem>, requests: u64, pushed: impl Fn(), idle: impl Fn()) {
    let (mut sent, mut seen) = (0, 0);
    while seen < requests {
        while sent < requests && sent - seen < u64::from(ENTRIES) {
            let args_slot = (sent % u64::from(ENTRIES)) as u32;
            assert_eq!(client.push(args_slot, &args(sent)), Ok(true), "a free argument slot has its SQ slot");
            sent += 1;
            pushed();
        }
        let before = seen;
        reap(client, &mut seen);
        if seen == before {
            idle();
        }
    }
}

fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(run);
}

fn check_exchange(requests: u64, preemptions: usize) {
    model(preemptions, move || {
        let g = Geometry::for_entries(ENTRIES).unwrap();
        let mem = Arc::new(LoomMem::new(g));
        let server = thread::spawn({
            let mem = mem.clone();
            move || {
                let mut server = ServerRing::new(&*mem, g, Slot::ZERO, Slot::ZERO);
                let mut seen = 0;
                while seen < requests {
                    if serve(&mut server, &mut seen) == 0 {
                        thread::yield_now();
                    }
                }
            }
        });
        run_client(&ClientRing::new(&*mem, g), requests, || (), thread::yield_now);
        server.join().unwrap();
    });
}

#[test]
fn each_request_and_completion_is_seen_complete_and_once() {
    check_exchange(5, 4);
}

/// More requests than slots: both queues wrap and each slot is written a second time.
#[test]
fn slots_are_reused_only_after_the_other_side_is_done_with_them() {
    check_exchange(9, 3);
}

/// The submit semaphore of `sem`: a lost wake-up would leave both threads asleep, which loom reports as a deadlock.
#[test]
fn no_wake_up_is_lost_between_the_last_look_and_sleep() {
    model(4, || {
        let g = Geometry::for_entries(ENTRIES).unwrap();
        let shared = Arc::new((LoomMem::new(g), Semaphore::new(), Semaphore::new()));
        const REQUESTS: u64 = 3;
        let daemon = thread::spawn({
            let shared = shared.clone();
            move || {
                let (mem, submit, completion) = &*shared;
                let mut server = ServerRing::new(mem, g, Slot::ZERO, Slot::ZERO);
                let mut seen = 0;
                submit.register();
                while seen < REQUESTS {
                    submit.drain();
                    if serve(&mut server, &mut seen) > 0 {
                        completion.post();
                    } else {
                        submit.wait_while_zero();
                    }
                }
            }
        });
        let (mem, submit, completion) = &*shared;
        completion.register();
        let sleep = || {
            completion.wait_while_zero();
            completion.drain();
        };
        run_client(&ClientRing::new(mem, g), REQUESTS, || submit.post(), sleep);
        daemon.join().unwrap();
    });
}

/// Two threads that pop at once share the completions: the compare-and-swap gives each to one of them.
#[test]
fn two_popping_threads_take_each_completion_once() {
    model(4, || {
        let g = Geometry::for_entries(ENTRIES).unwrap();
        let mem = Arc::new(LoomMem::new(g));
        let client = ClientRing::new(&*mem, g);
        let mut server = ServerRing::new(&*mem, g, Slot::ZERO, Slot::ZERO);
        for serial in 0..u64::from(ENTRIES) {
            client.push(serial as u32, &args(serial)).unwrap();
        }
        serve(&mut server, &mut 0);
        let pop = move |mem: &LoomMem| {
            let mut out = [Cqe::default(); ENTRIES as usize];
            let n = ClientRing::new(mem, g).pop(&mut out).unwrap();
            out[..n].iter().map(|cqe| cqe.userdata).collect::<Vec<_>>()
        };
        let other = thread::spawn({
            let mem = mem.clone();
            move || pop(&mem)
        });
        let mut taken = pop(&mem);
        taken.extend(other.join().unwrap());
        taken.extend(pop(&mem));
        taken.sort_unstable();
        assert_eq!(taken, [0, 1]);
    });
}
