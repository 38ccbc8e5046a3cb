//! Both ends for tests: a session over a few files, and a client with an Iov and a ring.

use crate::control::Keeper;
use crate::fs::BackingFile;
use crate::metrics::SessionMetrics;
use crate::ring::file::Tick;
use crate::ring::io::{Event, Io};
use crate::ring::job::{Now, Ring};
use crate::ring::shm::{RingMap, SharedMap};
use crate::ring::{Engine, Files, RingsConfig, SessionRings};
use crate::session::Limits;
use crate::state::SessionState;
use crate::types::{Errno, Ino, NodeId, Owner, Result};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use usrbio_wire::{Args, ClientRing, Cqe, Geometry, Priority};
use uuid::Uuid;

pub(super) const IOV_LEN: u64 = 1 << 20;
pub(super) const ME: Owner = Owner { uid: 0, gid: 0, tgid: 1, start: 1 };

/// Files by inode number.
#[derive(Default)]
pub(super) struct FewFiles {
    files: Mutex<HashMap<Ino, Arc<BackingFile>>>,
    pub(super) written: AtomicU32,
    pub(super) looked_up: AtomicU32,
    /// Storage of the inodes [`HANGS_AT_LOOKUP`] and [`HANGS_WHEN_TOLD`].
    pub(super) hung: Gate,
}

/// Looking it up takes until the gate opens.
pub(super) const HANGS_AT_LOOKUP: u64 = 900;
/// Telling that it was written takes until the gate opens.
pub(super) const HANGS_WHEN_TOLD: u64 = 901;

/// Where threads wait until it opens, at once if it was never closed.
#[derive(Default)]
pub(super) struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    pub(super) waiting: AtomicU32,
}

impl Gate {
    pub(super) fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub(super) fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.changed.wait_while(self.closed.lock().unwrap(), |closed| *closed).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FewFiles {
    pub(super) fn add(&self, ino: u64, path: &Path) -> Arc<BackingFile> {
        let fd = File::options().read(true).write(true).open(path).unwrap();
        let in_memory = rustix::fs::fstatfs(&fd).unwrap().f_type == libc::TMPFS_MAGIC;
        let direct = rustix::fs::open(
            path,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::DIRECT,
            rustix::fs::Mode::empty(),
        );
        let file = Arc::new(BackingFile {
            held: crate::budget::Share::default().take_anyway(1),
            fd: fd.into(),
            direct: direct.ok().filter(|_| path.extension().is_some_and(|e| e == "direct")),
            node: NodeId(ino),
            ino: Ino(ino),
            unlinked: false,
            in_memory,
            closed: AtomicBool::new(false),
            dense_end: AtomicU64::new(0),
        });
        self.files.lock().unwrap().insert(Ino(ino), file.clone());
        file
    }

    /// A file whose direct reads or writes of whole blocks never end: a pipe's, which is kept by the caller.
    pub(super) fn add_endless(&self, ino: u64, fd: OwnedFd) {
        let file = BackingFile {
            held: crate::budget::Share::default().take_anyway(1),
            direct: Some(fd.try_clone().unwrap()),
            fd,
            node: NodeId(ino),
            ino: Ino(ino),
            unlinked: false,
            in_memory: false,
            closed: AtomicBool::new(false),
            dense_end: AtomicU64::new(u64::MAX),
        };
        self.files.lock().unwrap().insert(Ino(ino), Arc::new(file));
    }
}

impl Files for FewFiles {
    fn ring_file(&self, ino: Ino, owner: &Owner, _write: bool) -> Result<Arc<BackingFile>> {
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        if ino == Ino(HANGS_AT_LOOKUP) {
            self.hung.pass();
        }
        if ino == Ino(403) || owner.uid == 403 {
            return Err(Errno::ACCESS);
        }
        self.files.lock().unwrap().get(&ino).cloned().ok_or(Errno::BADF)
    }
    fn written(&self, file: &BackingFile) {
        if file.ino == Ino(HANGS_WHEN_TOLD) {
            self.hung.pass();
        }
        self.written.fetch_add(1, Ordering::Relaxed);
    }
}

/// A session and the directories that it stands on.
pub(super) struct Server {
    pub(super) shm: Arc<TempDir>,
    pub(super) data: Arc<TempDir>,
    pub(super) files: Arc<FewFiles>,
    pub(super) state: Arc<SessionState>,
    pub(super) metrics: Arc<SessionMetrics>,
    pub(super) engine: Arc<Engine>,
    pub(super) rings: SessionRings,
}

fn tempdir_in(path: &str) -> Arc<TempDir> {
    Arc::new(tempfile::Builder::new().prefix("usrbiod-ring-test-").tempdir_in(path).unwrap())
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i / 4096) as u8).collect()
}

impl Server {
    /// With workers.
    pub(super) fn running() -> Server {
        Server::new(Engine::start(2).unwrap(), Limits::default(), false)
    }

    /// Without: the test takes the turns.
    pub(super) fn stepped() -> Server {
        Server::new(Engine::idle(), Limits::default(), false)
    }

    pub(super) fn new(engine: Arc<Engine>, limits: Limits, read_only: bool) -> Server {
        let state = Arc::new(SessionState::anonymous().unwrap());
        let (shm, data) = (tempdir_in("/dev/shm"), tempdir_in("/tmp"));
        Server::over(shm, data, Arc::default(), state, engine, limits, read_only)
    }

    fn over(
        shm: Arc<TempDir>,
        data: Arc<TempDir>,
        files: Arc<FewFiles>,
        state: Arc<SessionState>,
        engine: Arc<Engine>,
        limits: Limits,
        read_only: bool,
    ) -> Server {
        let metrics = Arc::new(SessionMetrics::default());
        let config = RingsConfig {
            session: "test".into(),
            files: files.clone(),
            state: state.clone(),
            metrics: metrics.clone(),
            keeper: Arc::new(Keeper::default()),
            shm: Some(OwnedFd::from(File::open(shm.path()).unwrap())),
            limits,
            fds: crate::budget::Share::default(),
            read_only,
        };
        let rings = SessionRings::new(config, &engine).unwrap();
        Server { shm, data, files, state, metrics, engine, rings }
    }

    /// A new process over the same state; this one is as good as dead.
    pub(super) fn successor(&self, engine: Arc<Engine>, fds: HashMap<String, OwnedFd>) -> Server {
        let (shm, data, files) = (self.shm.clone(), self.data.clone(), self.files.clone());
        let next = Server::over(shm, data, files, self.state.clone(), engine, Limits::default(), false);
        next.rings.resume(fds);
        next
    }

    /// What the peer would hold.
    pub(super) fn kept_fds(&self) -> HashMap<String, OwnedFd> {
        let path = |target: &str| self.shm.path().join(target.strip_prefix("/dev/shm/").unwrap());
        let open = |target: &str| File::options().read(true).write(true).open(path(target)).unwrap().into();
        self.rings.list().into_iter().map(|info| (info.name, open(&info.target))).collect()
    }

    pub(super) fn data_file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.data.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(super) fn shm_file(&self, name: &str, len: u64) -> File {
        let path = self.shm.path().join(name);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(len).unwrap();
        file
    }

    /// A client with a ring of `entries` and an Iov; `suffix` is that of the ring, as `.r0.t0`.
    pub(super) fn client(&self, entries: u32, suffix: &str) -> Client {
        self.client_of(ME, entries, suffix)
    }

    pub(super) fn client_of(&self, owner: Owner, entries: u32, suffix: &str) -> Client {
        let (iov_id, ring_id) = (Uuid::new_v4(), Uuid::new_v4());
        let iov_file = format!("hf3fs-iov-{iov_id}");
        let iov = self.shm_file(&iov_file, IOV_LEN);
        let ring_file = format!("ring-{ring_id}");
        let geometry = Geometry::for_entries(entries).unwrap();
        let ring = self.shm_file(&ring_file, geometry.file_len() as u64);
        for file in [&iov, &ring] {
            std::os::unix::fs::fchown(file, Some(owner.uid), Some(owner.gid)).unwrap();
        }
        let (iov_name, ring_name) = (iov_id.to_string(), format!("{ring_id}{suffix}"));
        self.rings.register(&iov_name, &format!("/dev/shm/{iov_file}"), &owner).unwrap();
        self.rings.register(&ring_name, &format!("/dev/shm/{ring_file}"), &owner).unwrap();
        let attrs = usrbio_wire::IovName::parse(&ring_name).unwrap().ring.unwrap();
        let submit = self.rings.semaphore_target(attrs.priority).unwrap();
        let submit = self.shm_file(submit.strip_prefix("/dev/shm/").unwrap(), 32);
        let map = Arc::new(SharedMap::new(&ring, geometry.file_len() as u64, true).unwrap());
        Client {
            ring: ClientRing::new(RingMap::new(&map), geometry),
            map,
            iov: SharedMap::new(&iov, IOV_LEN, true).unwrap(),
            submit: SharedMap::new(&submit, 32, true).unwrap(),
            geometry,
            iov_id,
            iov_name,
            ring_name,
            iov_file: iov,
            ring_file: ring,
            submit_file: submit,
        }
    }

    /// Takes turns with all rings until none does anything.
    pub(super) fn serve(&self, io: &mut Io, at: Instant) {
        loop {
            let mut worked = false;
            for ring in self.all_rings() {
                worked |= ring.turn(io, Now { instant: at, tick: Tick::at(at, at) }, true).worked;
            }
            io.submit();
            let mut events = Vec::new();
            if io.in_flight() > 0 {
                io.sleep(Some(Duration::from_secs(5)), &mut events);
            }
            for event in events {
                let Event::Io(mut op, result) = event else { continue };
                worked = true;
                match op.advance(result) {
                    Some(answer) => op.ring.clone().complete(&op, answer),
                    None => io.start(op),
                }
            }
            if !worked && io.in_flight() == 0 {
                return;
            }
        }
    }

    pub(super) fn all_rings(&self) -> Vec<Arc<Ring>> {
        self.rings.core().rings().to_vec()
    }
}

/// A client's end of everything.
pub(super) struct Client {
    pub(super) ring: ClientRing<RingMap>,
    pub(super) map: Arc<SharedMap>,
    pub(super) iov: SharedMap,
    pub(super) submit: SharedMap,
    pub(super) geometry: Geometry,
    pub(super) iov_id: Uuid,
    pub(super) iov_name: String,
    pub(super) ring_name: String,
    pub(super) iov_file: File,
    pub(super) ring_file: File,
    pub(super) submit_file: File,
}

impl Client {
    /// A request of `len` bytes at `off` of file `ino`, for the Iov from `at`.
    pub(super) fn args(&self, ino: u64, at: u64, off: u64, len: u64) -> Args {
        let buf_id = *self.iov_id.as_bytes();
        Args { buf_id, buf_off: at, file_iid: Ino(ino), file_off: off, io_len: len, userdata: 0 }
    }

    pub(super) fn push(&self, slot: u32, args: Args) {
        let args = Args { userdata: 1000 + u64::from(slot), ..args };
        assert!(self.ring.push(slot, &args).unwrap(), "the submission queue is full");
    }

    pub(super) fn post(&self) {
        super::super::sem::post(&self.submit, 0);
    }

    pub(super) fn pop(&self) -> Vec<Cqe> {
        let mut cqes = vec![Cqe::default(); self.geometry.entries() as usize];
        let popped = self.ring.pop(&mut cqes).unwrap();
        cqes.truncate(popped);
        cqes
    }

    pub(super) fn results(&self) -> Vec<i64> {
        self.pop().iter().map(|cqe| cqe.result).collect()
    }

    /// Waits until `count` completions were popped.
    pub(super) fn wait(&self, count: usize) -> Vec<Cqe> {
        let mut got = Vec::new();
        wait_until(&format!("{count} completions"), || {
            got.extend(self.pop());
            got.len() >= count
        });
        got
    }

    /// Posts one request and waits for its result.
    pub(super) fn request(&self, args: Args) -> i64 {
        self.push(0, args);
        self.post();
        self.wait(1)[0].result
    }

    pub(super) fn fill(&self, byte: u8) {
        let word = u64::from_ne_bytes([byte; 8]);
        (0..IOV_LEN as usize / 8).for_each(|i| self.iov.word(8 * i).store(word, Ordering::Relaxed));
    }

    pub(super) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len).map(|i| self.iov.word(i & !7).load(Ordering::Relaxed).to_ne_bytes()[i % 8]).collect()
    }

    pub(super) fn put(&self, at: usize, bytes: &[u8]) {
        for (i, chunk) in bytes.chunks_exact(8).enumerate() {
            self.iov.word(at + 8 * i).store(u64::from_ne_bytes(chunk.try_into().unwrap()), Ordering::Relaxed);
        }
    }

    /// Tokens in the completion semaphore.
    pub(super) fn tokens(&self) -> u32 {
        usrbio_wire::sem::value(self.map.word(self.geometry.sem_at()).load(Ordering::SeqCst))
    }
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::yield_now();
    }
}

pub(super) fn errno(error: Errno) -> i64 {
    -i64::from(error.raw_os_error())
}

pub(super) const PRIORITIES: [(&str, Priority); 3] =
    [(".r0.ph.t0", Priority::High), (".r0.t0", Priority::Normal), (".r0.pl.t0", Priority::Low)];
