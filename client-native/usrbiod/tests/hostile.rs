//! A client that breaks every rule of the ring protocol, against a live daemon.

mod common;

use common::served::Served;
use common::wait_until;
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use usrbio_wire::mem::SharedMem;
use usrbio_wire::peer::HostilePeer;
use usrbio_wire::{Args, ClientRing, Geometry, Ino, RingMem};
use uuid::Uuid;

const RING_STEPS: u64 = 900_000;
const NAMES: u64 = 100_000;
const ENTRIES: u32 = 16;
const IOV_LEN: usize = 64 << 10;
const PATTERN: u64 = 0x5ca1_ab1e_0ddb_a115;

/// A file in /dev/shm, mapped, and removed when dropped; the mapping stays until the process ends.
struct Shm {
    path: PathBuf,
    mem: SharedMem,
}

impl Shm {
    fn new(len: usize) -> Shm {
        let path = Path::new("/dev/shm").join(format!("hf3fs-iov-{}", Uuid::new_v4()));
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).unwrap();
        file.set_len(len as u64).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, never unmapped.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0).unwrap()
        };
        // SAFETY: mapped for the rest of the process's life, aligned to a page.
        Shm { path, mem: unsafe { SharedMem::new(base.cast(), len) } }
    }

    fn fill(&self, word: u64) {
        (0..self.mem.len()).step_by(8).for_each(|at| self.mem.store(at, word));
    }

    fn holds_only(&self, word: u64) -> bool {
        (0..self.mem.len()).step_by(8).all(|at| self.mem.load(at) == word)
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

struct Client {
    iovs: PathBuf,
    submit: Shm,
}

impl Client {
    fn new(served: &Served) -> Client {
        let iovs = served.mount().join("3fs-virt/iovs");
        let path = fs::read_link(iovs.join("submit-ios")).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: a new mapping, never unmapped.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                32,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
            .unwrap()
        };
        // SAFETY: mapped for the rest of the process's life, aligned to a page.
        let mem = unsafe { SharedMem::new(base.cast(), 32) };
        // The semaphore's file is the daemon's: dropping `submit` must not remove it.
        Client { iovs, submit: Shm { path: PathBuf::new(), mem } }
    }

    fn register(&self, name: &str, shm: &Shm) {
        symlink(&shm.path, self.iovs.join(name)).unwrap_or_else(|e| panic!("register {name}: {e}"));
    }

    fn unregister(&self, name: &str) {
        fs::remove_file(self.iovs.join(name)).unwrap_or_else(|e| panic!("unregister {name}: {e}"));
    }

    fn post(&self) {
        // A sem_t starts with its value; the post of a hostile client need not be a correct one.
        let value = self.submit.mem.load(0);
        self.submit.mem.store(0, value + 1);
    }
}

/// Does the server run, and answer?
fn alive(served: &Served) -> bool {
    Path::new(&format!("/proc/{}", served.pid())).exists() && fs::metadata(served.mount()).is_ok()
}

/// The daemon below the supervisor: the same one before and after, or it crashed.
fn daemon(served: &Served) -> String {
    fs::read_to_string(format!("/proc/{0}/task/{0}/children", served.pid())).unwrap()
}

/// A correct client must be served while, and after, hostile ones are. It reads a file of its own: a hostile ring may
/// write what it likes to a file that its owner may write.
fn correct_read(client: &Client, mount: &Path) {
    let file = mount.join("correct");
    fs::write(&file, PATTERN.to_ne_bytes().repeat(512)).unwrap();
    let geometry = Geometry::for_entries(ENTRIES).unwrap();
    let (ring, iov) = (Shm::new(geometry.file_len()), Shm::new(IOV_LEN));
    let (ring_name, iov_id) = (format!("{}.r0.t0", Uuid::new_v4()), Uuid::new_v4());
    client.register(&iov_id.to_string(), &iov);
    client.register(&ring_name, &ring);
    let open = File::open(&file).unwrap();
    let args = Args {
        buf_id: *iov_id.as_bytes(),
        file_iid: Ino(open.metadata().unwrap().ino()),
        io_len: 4096,
        ..Args::default()
    };
    let end = ClientRing::new(ring.mem, geometry);
    assert!(end.push(0, &args).unwrap());
    wait_until("a correct request is answered", || {
        client.post();
        end.completed().unwrap() == 1
    });
    let mut cqes = [usrbio_wire::Cqe::default()];
    assert_eq!(end.pop(&mut cqes).unwrap(), 1);
    assert_eq!(cqes[0].result, 4096);
    assert!((0..4096).step_by(8).all(|at| iov.mem.load(at) == PATTERN));
    client.unregister(&ring_name);
    client.unregister(&iov_id.to_string());
    fs::remove_file(&file).unwrap();
}

#[test]
fn a_million_broken_rings_and_names_hurt_nobody_but_their_owner() {
    let served = Served::on_disk();
    let first = daemon(&served);
    let client = Client::new(&served);
    let file = served.mount().join("file");
    fs::write(&file, PATTERN.to_ne_bytes().repeat(IOV_LEN / 4)).unwrap();
    let open = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    let ino = Ino(open.metadata().unwrap().ino());

    // Neighbours that the daemon maps on both sides of the Iov in use: what it writes astray lands there.
    let (before, iov, after) = (Shm::new(IOV_LEN), Shm::new(IOV_LEN), Shm::new(IOV_LEN));
    let id = Uuid::new_v4();
    client.register(&Uuid::new_v4().to_string(), &before);
    client.register(&id.to_string(), &iov);
    client.register(&Uuid::new_v4().to_string(), &after);
    before.fill(PATTERN);
    after.fill(PATTERN);

    let geometry = Geometry::for_entries(ENTRIES).unwrap();
    let mut steps = 0;
    let mut seed = 0;
    while steps < RING_STEPS {
        seed += 1;
        let ring = Shm::new(geometry.file_len());
        let direction = if seed % 4 == 0 { 'w' } else { 'r' };
        let name = format!("{}.{direction}{}.t0", Uuid::new_v4(), [0, 0, 4, -4][seed as usize % 4]);
        client.register(&name, &ring);
        let end = ClientRing::new(ring.mem, geometry);
        for slot in 0..ENTRIES - 1 {
            let args = Args {
                buf_id: *id.as_bytes(),
                buf_off: u64::from(slot) * 512,
                file_iid: ino,
                file_off: u64::from(slot) * 4096,
                io_len: 4096,
                userdata: 1,
            };
            end.push(slot, &args).unwrap();
        }
        let mut peer = HostilePeer::new(ring.mem, geometry, seed);
        for step in 0..200 {
            peer.step();
            if step % 8 == 0 {
                client.post();
            }
        }
        steps += 200;
        if seed % 64 == 0 {
            ring_is_cut(&ring);
            client.post();
        }
        client.unregister(&name);
        if seed % 512 == 0 {
            correct_read(&client, &served.mount());
        }
    }
    assert!(before.holds_only(PATTERN) && after.holds_only(PATTERN), "bytes outside the Iov were touched");

    broken_names(&client);
    assert!(alive(&served));
    correct_read(&client, &served.mount());
    assert_eq!(daemon(&served), first, "the daemon crashed and was started again");
}

/// Truncates the ring's file under the daemon.
fn ring_is_cut(ring: &Shm) {
    OpenOptions::new().write(true).open(&ring.path).unwrap().set_len(0).unwrap();
}

/// Names and targets that are nearly right.
fn broken_names(client: &Client) {
    let shm = Shm::new(IOV_LEN);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let parts = [
        "r0",
        "w0",
        "r-4",
        "b4096",
        "b0",
        "ph",
        "pl",
        "px",
        "t0",
        "t-1",
        "f1",
        "f12",
        "",
        "gdr.d0",
        "r99999999999",
    ];
    let target = shm.path.to_str().unwrap().to_owned();
    let targets = [
        "/dev/shm/../etc/passwd",
        "/dev/shm/",
        "/etc/passwd",
        "relative",
        "/dev/shm/none",
        "/dev/shm/./x/../y",
    ];
    for _ in 0..NAMES {
        let mut name =
            Uuid::from_u128(u128::from(below(u64::MAX)) << 64 | u128::from(below(u64::MAX))).to_string();
        for _ in 0..below(5) {
            name = format!("{name}.{}", parts[below(parts.len() as u64) as usize]);
        }
        for _ in 0..below(3) {
            let at = below(name.len() as u64) as usize;
            let byte = char::from(b' ' + below(95) as u8);
            if byte != '/' {
                name.replace_range(at..=at, &byte.to_string());
            }
        }
        let to = if below(2) == 0 { &target } else { targets[below(targets.len() as u64) as usize] };
        if symlink(to, client.iovs.join(&name)).is_ok() {
            client.unregister(&name);
        }
    }
}
