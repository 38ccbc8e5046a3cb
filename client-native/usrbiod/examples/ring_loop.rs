//! Measures the ring workers against raw io_uring with registered buffers and files, in one run on one file: random 4 KiB
//! reads, in thousands per second.
//!
//! ```sh
//! cargo run --release --example ring_loop -- /tmp/file            # cached; add `direct` for O_DIRECT, `plain` to register nothing
//! ```
//!
//! The client is a process of its own. It waits for the whole batch, as fio does: first looking for up to 50 µs, then
//! on the ring's semaphore (`spin`), or on the semaphore at once (`sleep`).

use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};
use usrbio_wire::mem::SharedMem;
use usrbio_wire::{Args, ClientRing, Cqe, Geometry, Ino, Priority};
use usrbiod::control::Keeper;
use usrbiod::fs::BackingFile;
use usrbiod::metrics::SessionMetrics;
use usrbiod::ring::{Engine, Files, RingsConfig, SessionRings};
use usrbiod::session::Limits;
use usrbiod::state::SessionState;
use usrbiod::types::{NodeId, Owner, Result};

const BLOCK: u64 = 4096;
const ENTRIES: u32 = 256;
const BATCHES: [u32; 3] = [1, 32, 128];
const IOV_ID: &str = "11111111-2222-4333-8444-555555555555";
const RING_ID: &str = "11111111-2222-4333-8444-666666666666";

struct OneFile(Arc<BackingFile>);

impl Files for OneFile {
    fn ring_file(&self, _: Ino, _: &Owner, _: bool) -> Result<Arc<BackingFile>> {
        Ok(self.0.clone())
    }
    fn written(&self, _: &BackingFile) {}
}

fn open(path: &str, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn map(fd: impl AsFd, len: usize) -> *mut u8 {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED | MapFlags::POPULATE, fd, 0) };
    base.expect("mmap").cast()
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Raw io_uring, registered buffers and files, whole batches.
fn raw(file: &str, direct: bool, fixed: bool, batch: u32, time: Duration) -> f64 {
    use io_uring::{IoUring, opcode, types};
    let fd = open(file, OFlags::RDONLY | if direct { OFlags::DIRECT } else { OFlags::empty() });
    let blocks = rustix::fs::fstat(&fd).expect("stat").st_size as u64 / BLOCK;
    let memory = rustix::fs::memfd_create("raw", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let len = BLOCK as usize * 128;
    rustix::fs::ftruncate(&memory, len as u64).expect("ftruncate");
    let base = map(&memory, len);
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build(256)
        .expect("io_uring");
    let vec = libc::iovec { iov_base: base.cast(), iov_len: len };
    // SAFETY: mapped until the end of the process.
    unsafe { ring.submitter().register_buffers(&[vec]) }.expect("register buffers");
    ring.submitter().register_files(&[fd.as_raw_fd()]).expect("register files");
    let (mut random, mut done, begun) = (Random(0x9e37_79b9_7f4a_7c15), 0u64, Instant::now());
    while begun.elapsed() < time {
        for i in 0..batch {
            // SAFETY: inside the mapping, for `i < 128`.
            let to = unsafe { base.add(i as usize * BLOCK as usize) };
            let off = random.below(blocks) * BLOCK;
            let read = if fixed {
                opcode::ReadFixed::new(types::Fixed(0), to, BLOCK as u32, 0).offset(off).build()
            } else {
                opcode::Read::new(types::Fd(fd.as_raw_fd()), to, BLOCK as u32).offset(off).build()
            };
            // SAFETY: file and memory outlive the ring.
            unsafe { ring.submission().push(&read) }.expect("room for a batch");
        }
        let mut got = 0;
        while got < batch {
            ring.submit_and_wait((batch - got) as usize).expect("submit");
            for cqe in ring.completion() {
                assert_eq!(cqe.result(), BLOCK as i32);
                got += 1;
            }
        }
        done += u64::from(batch);
    }
    done as f64 / begun.elapsed().as_secs_f64()
}

struct Semaphore(*mut libc::sem_t);

impl Semaphore {
    fn post(&self) {
        // SAFETY: a live semaphore.
        unsafe { libc::sem_post(self.0) };
    }

    /// Waits a millisecond at most, as the client library of 3FS does.
    fn wait(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let nanos = now.tv_nsec + 1_000_000;
        let until =
            libc::timespec { tv_sec: now.tv_sec + nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
        // SAFETY: a live semaphore.
        unsafe { libc::sem_timedwait(self.0, &until) };
    }
}

/// The client process: `client DIR SUBMIT BLOCKS BATCH MS SPIN_US DEPTH`; prints requests per second. With a depth above the
/// batch it keeps that many in flight.
fn client(args: &[String]) {
    let number = |i: usize| args[i].parse::<u64>().expect("a number");
    let (blocks, batch, time) = (number(2), number(3) as u32, Duration::from_millis(number(4)));
    let (spin, depth) = (Duration::from_micros(number(5)), number(6) as u32);
    let file = |name: &str| open(Path::new(&args[0]).join(name).to_str().expect("utf-8"), OFlags::RDWR);
    let geometry = Geometry::for_entries(ENTRIES).expect("geometry");
    let (ring, submit) = (map(file("ring"), geometry.file_len()), Semaphore(map(file(&args[1]), 32).cast()));
    // SAFETY: inside the mapping.
    let complete = Semaphore(unsafe { ring.add(geometry.sem_at()) }.cast());
    // SAFETY: mapped until the end of the process, page-aligned.
    let ring = ClientRing::new(unsafe { SharedMem::new(ring, geometry.file_len()) }, geometry);
    let id = *uuid::Uuid::parse_str(IOV_ID).expect("uuid").as_bytes();
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut done, begun) = (0u64, Instant::now());
    let mut cqes = vec![Cqe::default(); ENTRIES as usize];
    let mut free: Vec<u32> = (0..depth.max(batch)).collect();
    while begun.elapsed() < time {
        for _ in 0..batch.min(free.len() as u32) {
            let slot = free.pop().expect("a slot");
            let args = Args {
                buf_id: id,
                buf_off: u64::from(slot) * BLOCK,
                file_iid: Ino(42),
                file_off: random.below(blocks) * BLOCK,
                io_len: BLOCK,
                userdata: u64::from(slot),
            };
            assert!(ring.push(slot, &args).expect("a sound ring"));
        }
        submit.post();
        let mut looked = Instant::now();
        let mut got = 0;
        while got < batch as usize {
            let popped = ring.pop(&mut cqes).expect("a sound ring");
            for cqe in &cqes[..popped] {
                assert_eq!(cqe.result, BLOCK as i64);
                free.push(cqe.userdata as u32);
            }
            got += popped;
            if popped == 0 && looked.elapsed() < spin {
                std::thread::yield_now();
            } else if popped == 0 {
                complete.wait();
            } else {
                looked = Instant::now();
            }
        }
        done += got as u64;
    }
    println!("{}", done as f64 / begun.elapsed().as_secs_f64());
}

struct Bench {
    _rings: SessionRings,
    dir: tempfile::TempDir,
    submit: String,
    blocks: u64,
}

fn session(path: &str, direct: bool, engine: &Arc<Engine>) -> Bench {
    let fd = open(path, OFlags::RDONLY);
    let stat = rustix::fs::fstat(&fd).expect("stat");
    let in_memory = rustix::fs::fstatfs(&fd).expect("statfs").f_type == libc::TMPFS_MAGIC;
    let file = BackingFile {
        held: usrbiod::budget::Share::default().take_anyway(1),
        fd,
        direct: direct.then(|| open(path, OFlags::RDONLY | OFlags::DIRECT)),
        node: NodeId(2),
        ino: Ino(42),
        unlinked: false,
        in_memory,
        closed: AtomicBool::new(false),
        dense_end: AtomicU64::new(0),
    };
    let dir = tempfile::Builder::new().prefix("ring_loop").tempdir_in("/dev/shm").expect("tempdir");
    let geometry = Geometry::for_entries(ENTRIES).expect("geometry");
    for (name, len) in [("ring", geometry.file_len() as u64), ("hf3fs-iov-x", BLOCK * u64::from(ENTRIES))] {
        let file = std::fs::File::create(dir.path().join(name)).expect("create");
        file.set_len(len).expect("ftruncate");
    }
    let config = RingsConfig {
        session: "bench".into(),
        files: Arc::new(OneFile(Arc::new(file))),
        state: Arc::new(SessionState::anonymous().expect("state")),
        metrics: Arc::new(SessionMetrics::default()),
        keeper: Arc::new(Keeper::default()),
        shm: Some(open(dir.path().to_str().expect("utf-8"), OFlags::RDONLY | OFlags::DIRECTORY)),
        limits: Limits::default(),
        fds: usrbiod::budget::Share::default(),
        read_only: false,
    };
    let rings = SessionRings::new(config, engine).expect("rings");
    let owner = Owner { uid: 0, gid: 0, tgid: std::process::id(), start: 0 };
    rings.register(IOV_ID, "/dev/shm/hf3fs-iov-x", &owner).expect("iov");
    rings.register(&format!("{RING_ID}.r0.t0"), "/dev/shm/ring", &owner).expect("ring");
    let submit = rings.semaphore_target(Priority::Normal).expect("semaphore");
    let submit = submit.rsplit('/').next().unwrap_or_default().to_owned();
    Bench { _rings: rings, dir, submit, blocks: stat.st_size as u64 / BLOCK }
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Bench {
    /// Requests per second, and cores that the workers used.
    fn run(&self, batch: u32, time: Duration, spin_us: u64, depth: u32) -> (f64, f64) {
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let output = std::process::Command::new(std::env::current_exe().expect("self"))
            .args(["client", self.dir.path().to_str().expect("utf-8"), &self.submit])
            .args(
                [self.blocks, batch.into(), time.as_millis() as u64, spin_us, depth.into()]
                    .map(|n| n.to_string()),
            )
            .stderr(std::process::Stdio::inherit())
            .output()
            .expect("client");
        assert!(output.status.success(), "{:?}", output.status);
        let rate = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a rate");
        (rate, (cpu_seconds() - cpu) / begun.elapsed().as_secs_f64())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "client") {
        return client(&args[1..]);
    }
    let path = args.first().expect("usage: ring_loop FILE [direct] [plain] [rounds=5] [ms=500] [batch=N]");
    let direct = args.iter().any(|arg| arg == "direct");
    let plain = args.iter().any(|arg| arg == "plain");
    let option = |key: &str| args.iter().find_map(|arg| arg.strip_prefix(key)?.parse::<u64>().ok());
    let (rounds, time) =
        (option("rounds=").unwrap_or(5), Duration::from_millis(option("ms=").unwrap_or(500)));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let engine = Engine::start(workers).expect("engine");
    let bench = session(path, direct, &engine);
    println!("batch     io_uring      spin  ratio cores     sleep  ratio cores      deep  ratio cores");
    for batch in BATCHES.into_iter().filter(|b| option("batch=").is_none_or(|only| only == u64::from(*b))) {
        let mut raws = Vec::new();
        let mut modes = [const { (Vec::new(), Vec::new(), Vec::new()) }; 3];
        for _ in 0..rounds {
            let base = raw(path, direct, !plain, batch, time);
            raws.push(base);
            for (mode, (spin, depth)) in
                modes.iter_mut().zip([(50, batch), (0, batch), (50, (batch * 2).min(ENTRIES))])
            {
                let (rate, cores) = bench.run(batch, time, spin, depth);
                mode.0.push(rate);
                mode.1.push(rate / base);
                mode.2.push(cores);
            }
        }
        print!("{batch:5} {:12.1}", median(raws) / 1e3);
        for (rates, ratios, cores) in modes {
            print!(" {:9.1} {:6.2} {:5.2}", median(rates) / 1e3, median(ratios), median(cores));
        }
        println!();
    }
    let idle: Vec<Bench> = (1..100).map(|_| session(path, direct, &engine)).collect();
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    std::thread::sleep(Duration::from_secs(3));
    let share = (cpu_seconds() - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    println!("{} idle sessions with a ring each: {share:.2} % of a core", idle.len() + 1);
    engine.stop();
}
