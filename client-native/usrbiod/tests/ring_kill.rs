//! `kill -9` of the process that serves a ring, again and again under load: every request is answered once, with the right
//! data. Successors find the state file and reopen the shared memory, as the peer's fds would let them.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
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
use usrbiod::types::{Errno, NodeId, Owner, Result};

const IOV_ID: &str = "11111111-2222-4333-8444-555555555555";
const RING: &str = "11111111-2222-4333-8444-666666666666.r0.t0";
const ENTRIES: u32 = 64;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 1024;
const DIR: &str = "USRBIOD_RING_KILL_DIR";

/// Inode 1 is read through the page cache, inode 2 past it.
struct TwoFiles([Arc<BackingFile>; 2]);

impl Files for TwoFiles {
    fn ring_file(&self, ino: Ino, _: &Owner, _: bool) -> Result<Arc<BackingFile>> {
        self.0.get(ino.0 as usize - 1).cloned().ok_or(Errno::BADF)
    }
    fn written(&self, _: &BackingFile) {}
}

fn backing(path: &Path, ino: u64) -> Arc<BackingFile> {
    use rustix::fs::{Mode, OFlags, open};
    let direct = open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
    Arc::new(BackingFile {
        held: usrbiod::budget::Share::default().take_anyway(1),
        fd: File::open(path).unwrap().into(),
        direct: direct.ok().filter(|_| ino == 2),
        node: NodeId(ino),
        ino: Ino(ino),
        unlinked: false,
        in_memory: false,
        closed: AtomicBool::new(false),
        dense_end: AtomicU64::new(0),
    })
}

fn shared(dir: &Path, name: &str) -> File {
    File::options().read(true).write(true).open(dir.join(name)).unwrap()
}

/// Not a test: the process that is killed. It serves until then.
#[test]
fn server_process() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let config = RingsConfig {
        session: "kill".into(),
        files: Arc::new(TwoFiles([backing(&dir.join("data"), 1), backing(&dir.join("data"), 2)])),
        state: Arc::new(SessionState::open(File::open(dir).unwrap(), "kill").unwrap()),
        metrics: Arc::new(SessionMetrics::default()),
        keeper: Arc::new(Keeper::default()),
        shm: Some(File::open(dir.join("shm")).unwrap().into()),
        limits: Limits::default(),
        fds: usrbiod::budget::Share::default(),
        read_only: false,
    };
    let rings = SessionRings::new(config, &Engine::start(2).unwrap()).unwrap();
    let fd = |name| OwnedFd::from(shared(&dir.join("shm"), name));
    let kept = HashMap::from([(IOV_ID.to_owned(), fd("iov")), (RING.to_owned(), fd("ring"))]);
    assert_eq!(rings.resume(kept), 0);
    if rings.list().is_empty() {
        let owner = Owner { uid: 0, gid: 0, tgid: 1, start: 1 };
        rings.register(IOV_ID, "/dev/shm/iov", &owner).unwrap();
        rings.register(RING, "/dev/shm/ring", &owner).unwrap();
        std::fs::write(dir.join("submit"), rings.semaphore_target(Priority::Normal).unwrap()).unwrap();
    }
    loop {
        std::thread::park();
    }
}

fn start(dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "server_process", "--nocapture"]).env(DIR, dir);
    command.stdout(Stdio::null()).spawn().unwrap()
}

fn map(file: &File, len: usize) -> *mut u8 {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(base, libc::MAP_FAILED);
    base.cast()
}

fn wait_for(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if !text.is_empty() => return text,
            _ => assert!(Instant::now() < deadline, "{} did not appear", path.display()),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Client {
    ring: ClientRing<SharedMem>,
    submit: *mut libc::sem_t,
    complete: *mut libc::sem_t,
    iov: SharedMem,
    /// Block that is being read, by argument slot.
    busy: Vec<Option<u64>>,
    sent: u64,
    answered: u64,
    random: u64,
}

impl Client {
    fn new(dir: &Path, submit: &str) -> Client {
        let geometry = Geometry::for_entries(ENTRIES).unwrap();
        let (len, iov_len) = (geometry.file_len(), (u64::from(ENTRIES) * BLOCK) as usize);
        let base = map(&shared(dir, "ring"), len);
        let submit = map(&shared(dir, submit.strip_prefix("/dev/shm/").unwrap()), 32);
        // SAFETY: the mappings live until the end of the process; the semaphore lies inside the ring's.
        unsafe {
            Client {
                ring: ClientRing::new(SharedMem::new(base, len), geometry),
                submit: submit.cast(),
                complete: base.add(geometry.sem_at()).cast(),
                iov: SharedMem::new(map(&shared(dir, "iov"), iov_len), iov_len),
                busy: vec![None; ENTRIES as usize],
                sent: 0,
                answered: 0,
                random: 88_172_645_463_325_252,
            }
        }
    }

    fn fill(&mut self) {
        use usrbio_wire::RingMem;
        for slot in 0..ENTRIES {
            if self.busy[slot as usize].is_some() {
                continue;
            }
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let block = self.random % BLOCKS;
            let at = u64::from(slot) * BLOCK;
            self.iov.store(at as usize, u64::MAX);
            self.sent += 1;
            let args = Args {
                buf_id: *uuid::Uuid::parse_str(IOV_ID).unwrap().as_bytes(),
                buf_off: at,
                file_iid: Ino(1 + self.random / 7 % 2),
                file_off: block * BLOCK,
                io_len: BLOCK,
                userdata: block,
            };
            assert!(self.ring.push(slot, &args).unwrap());
            self.busy[slot as usize] = Some(block);
        }
        // SAFETY: a live semaphore.
        unsafe { libc::sem_post(self.submit) };
    }

    fn reap(&mut self) {
        use usrbio_wire::RingMem;
        let mut cqes = [Cqe::default(); ENTRIES as usize];
        let popped = self.ring.pop(&mut cqes).unwrap();
        for cqe in &cqes[..popped] {
            let block = self.busy[cqe.index as usize].take();
            assert_eq!(block, Some(cqe.userdata), "slot {} was answered twice", cqe.index);
            assert_eq!(cqe.result, BLOCK as i64);
            let at = cqe.index as usize * BLOCK as usize;
            for word in [at, at + BLOCK as usize - 8] {
                assert_eq!(self.iov.load(word), cqe.userdata, "wrong data");
            }
            self.answered += 1;
        }
        if popped == 0 {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            let nanos = now.tv_nsec + 1_000_000;
            let until =
                libc::timespec { tv_sec: now.tv_sec + nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
            // SAFETY: a live semaphore.
            unsafe { libc::sem_timedwait(self.complete, &until) };
        }
    }
}

#[test]
fn kill_9_under_load_loses_no_request_and_repeats_none() {
    let place = tempfile::Builder::new().prefix("usrbiod-kill-").tempdir_in("/tmp").unwrap();
    let shm = tempfile::Builder::new().prefix("usrbiod-kill-").tempdir_in("/dev/shm").unwrap();
    let dir = place.path();
    std::os::unix::fs::symlink(shm.path(), dir.join("shm")).unwrap();
    let content: Vec<u8> = (0..BLOCKS).flat_map(|i| i.to_ne_bytes().repeat(BLOCK as usize / 8)).collect();
    std::fs::write(dir.join("data"), content).unwrap();
    for (name, len) in [
        ("ring", Geometry::for_entries(ENTRIES).unwrap().file_len() as u64),
        ("iov", u64::from(ENTRIES) * BLOCK),
    ] {
        File::create(shm.path().join(name)).unwrap().set_len(len).unwrap();
    }
    let mut server = start(dir);
    let mut client = Client::new(shm.path(), &wait_for(&dir.join("submit")));
    let begun = Instant::now();
    let (mut kills, mut served_since) = (0, 0);
    let mut killed_at = Instant::now();
    while kills < 40 {
        client.fill();
        client.reap();
        // Kills only what has served, at moments that have nothing to do with it.
        if client.answered > served_since + 200
            && killed_at.elapsed() > Duration::from_millis(5 + kills * 7 % 20)
        {
            server.kill().unwrap();
            server.wait().unwrap();
            server = start(dir);
            (kills, served_since, killed_at) = (kills + 1, client.answered, Instant::now());
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{kills} kills, {} answers", client.answered);
    }
    while client.busy.iter().any(Option::is_some) {
        client.reap();
        assert!(begun.elapsed() < Duration::from_secs(120), "{} were lost", client.sent - client.answered);
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(client.answered, client.sent);
    let generations = kills + 1;
    println!("{} requests through {generations} processes in {:?}", client.sent, begun.elapsed());
    assert!(client.sent > 40 * 200);
}
