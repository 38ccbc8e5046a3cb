//! Requests of all kinds, sensible and not, from a socket in the place of `/dev/fuse`: every one that wants an answer gets
//! one, and nothing panics.

mod fuse_mount;

use fuse_mount::{Setup, session, shared};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use usrbio_wire::ioctl;
use usrbiod::fuse::abi::{self, InHeader, OutHeader, UNIQUE_RESEND, op};
use usrbiod::session::SessionFds;
use usrbiod::state::SessionState;
use usrbiod::state::records::ReplyRec;
use zerocopy::{FromBytes, IntoBytes};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// A request to be made: numbers are picked from `NUMBERS` or from what earlier replies named.
#[derive(Debug, Clone)]
struct Shape {
    opcode: u32,
    node: usize,
    words: Vec<usize>,
    names: Vec<&'static [u8]>,
    junk: Vec<u8>,
    cut: Option<usize>,
    resent: bool,
}

/// No big valid file sizes: a daemon that obeys must not fill the machine.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    3,
    8,
    64,
    4096,
    0o100644,
    65536,
    u32::MAX as u64,
    1 << 63,
    u64::MAX,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_8000_0000,
];
const NAMES: [&[u8]; 14] = [
    b"a\0",
    b"b\0",
    b"dir\0",
    b"3fs-virt\0",
    b"iovs\0",
    b"rm-rf\0",
    b"set-conf\0",
    b"get-conf\0",
    b"50f3d3cf-0000-4000-8000-00001db8d600.r0.t0\0",
    b"/dev/shm/x\0",
    b"user.key\0",
    b"system.posix_acl_access\0",
    b"..\0",
    b"no terminator",
];
const IOCTLS: [u32; 10] = [
    ioctl::GET_MOUNT_NAME,
    ioctl::GET_PATH_OFFSET,
    ioctl::GET_MAGIC_NUM,
    ioctl::GET_IOCTL_VERSION,
    ioctl::RECURSIVE_RM,
    ioctl::FSYNC,
    ioctl::HARDLINK,
    ioctl::PUNCH_HOLE,
    ioctl::MOVE,
    ioctl::REMOVE,
];

fn shape() -> impl Strategy<Value = Shape> {
    let opcode = prop_oneof![20 => 1..54u32, 1 => any::<u32>()];
    let junk = prop_oneof![vec(any::<u8>(), 0..64), (0..1200usize).prop_map(|n| vec![0; 8 * n])];
    let names = vec(prop::sample::select(&NAMES[..]), 0..3);
    let cut = prop::option::weighted(0.1, 0..200usize);
    let words = vec(0..64usize, 0..12);
    (opcode, 0..64usize, words, names, junk, cut, prop::bool::weighted(0.1)).prop_map(
        |(opcode, node, words, names, junk, cut, resent)| Shape {
            opcode,
            node,
            words,
            names,
            junk,
            cut,
            resent,
        },
    )
}

/// Bytes of fixed-size arguments before names or data, by opcode.
fn fixed(opcode: u32) -> usize {
    match opcode {
        op::FORGET | op::BATCH_FORGET | op::MKDIR | op::RENAME | op::LINK | op::OPEN | op::OPENDIR => 8,
        op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::ACCESS | op::INTERRUPT => 8,
        op::GETATTR | op::MKNOD | op::RENAME2 | op::CREATE | op::TMPFILE | op::FSYNC | op::FSYNCDIR => 16,
        op::INIT => 64,
        op::RELEASE | op::RELEASEDIR | op::FLUSH | op::LSEEK | op::STATX => 24,
        op::FALLOCATE | op::IOCTL => 32,
        op::READ | op::WRITE | op::READDIR | op::READDIRPLUS => 40,
        op::GETLK | op::SETLK | op::SETLKW => 48,
        op::COPY_FILE_RANGE | op::COPY_FILE_RANGE_64 => 56,
        op::SETATTR => 88,
        _ => 0,
    }
}

/// The kernel's end.
struct Kernel {
    fd: OwnedFd,
    unique: u64,
    /// Nodes and file handles that replies named.
    seen: Vec<u64>,
    /// Opcodes of requests by name, and those that succeeded at least once.
    sent: HashMap<u64, u32>,
    succeeded: BTreeSet<u32>,
}

impl Kernel {
    fn number(&self, pick: usize) -> u64 {
        let all = NUMBERS.len() + self.seen.len();
        let at = pick % all;
        NUMBERS.get(at).or_else(|| self.seen.get(at - NUMBERS.len())).copied().unwrap_or(0)
    }

    fn request(&mut self, shape: &Shape) -> Vec<u8> {
        let mut body = Vec::new();
        for i in 0..fixed(shape.opcode) / 8 {
            let pick = shape.words.get(i % shape.words.len().max(1)).copied().unwrap_or(i);
            body.extend_from_slice(&self.number(pick + i).to_ne_bytes());
        }
        if shape.opcode == op::IOCTL {
            let cmd = IOCTLS[shape.words.first().copied().unwrap_or(0) % IOCTLS.len()];
            let arg = abi::IoctlIn {
                fh: self.number(shape.node),
                cmd,
                in_size: shape.junk.len() as u32,
                out_size: cmd >> 16 & 0x3fff,
                ..abi::IoctlIn::default()
            };
            body = arg.as_bytes().to_vec();
        }
        if shape.opcode == op::WRITE && body.len() == 40 {
            body[16..20].copy_from_slice(&(shape.junk.len() as u32).to_ne_bytes());
        }
        shape.names.iter().for_each(|name| body.extend_from_slice(name));
        body.extend_from_slice(&shape.junk);
        body.truncate(shape.cut.unwrap_or(usize::MAX));
        self.unique += 2;
        let unique = self.unique | if shape.resent { UNIQUE_RESEND } else { 0 };
        self.sent.insert(unique, shape.opcode);
        let nodeid = if shape.node.is_multiple_of(3) { 1 } else { self.number(shape.node) };
        let len = (40 + body.len()) as u32;
        let header = InHeader { len, opcode: shape.opcode, unique, nodeid, ..InHeader::default() };
        [header.as_bytes(), &body].concat()
    }

    fn send(&self, bytes: &[u8]) {
        rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    fn receive(&mut self) -> OutHeader {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let longest = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&longest)), Ok(1), "no answer");
        let mut reply = vec![0; 2 << 20];
        let len = rustix::io::read(&self.fd, &mut reply[..]).unwrap();
        let (header, body) = OutHeader::read_from_prefix(&reply[..len]).unwrap();
        assert_eq!(header.len as usize, len);
        if let Some(opcode) = self.sent.remove(&header.unique).filter(|_| header.error == 0) {
            self.succeeded.insert(opcode);
        }
        if matches!(body.len(), 8 | 16 | 128 | 144) && self.seen.len() < 50 {
            self.seen.push(u64::from_ne_bytes(body[..8].try_into().unwrap()));
        }
        if let Some(fh) = body.get(128..136).filter(|_| body.len() == 144) {
            self.seen.push(u64::from_ne_bytes(fh.try_into().unwrap()));
        }
        header
    }

    /// Sends a request that surely is answered, and reads up to that answer.
    fn settle(&mut self) {
        self.unique += 2;
        let unique = self.unique;
        let arg = abi::GetattrIn::default();
        let header = InHeader { len: 56, opcode: op::GETATTR, unique, nodeid: 1, ..InHeader::default() };
        self.send(&[header.as_bytes(), arg.as_bytes()].concat());
        while self.receive().unique != unique {}
    }
}

/// Records as a crashed, or a mad, predecessor may leave them.
fn leave_records(state: &SessionState) {
    for i in 0..60u64 {
        let record = ReplyRec {
            tag: 1 + (i % 2) as u32,
            opcode: 1 + (i % 53) as u32,
            unique: 2 * i,
            errno: if i % 5 == 0 { 1 << i.min(31) } else { 0 },
            node: i % 7,
            fh: i,
            ino: i % 3,
            ..ReplyRec::default()
        };
        state.replies.insert(&record).unwrap();
    }
}

#[test]
fn any_request_is_answered_and_none_makes_the_daemon_panic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some("usrbiod-fuse") {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        hook(info);
    }));
    let flags = SocketFlags::CLOEXEC;
    let (fuse, kernel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&fuse, 4 << 20).unwrap();
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let backing = rustix::fs::open(dir.path(), open, Mode::empty()).unwrap();
    let shared = shared(|_| ());
    let state = Arc::new(SessionState::anonymous().unwrap());
    leave_records(&state);
    let fds = SessionFds { fuse, backing, shm: None };
    let session = session(Setup::default(), fds, state, Path::new("/nowhere/mount"), &shared, 1);
    shared.pool.add(session.clone()).unwrap();

    let kernel = RefCell::new(Kernel {
        fd: kernel,
        unique: 0,
        seen: Vec::new(),
        sent: HashMap::new(),
        succeeded: BTreeSet::new(),
    });
    let config =
        ProptestConfig { cases: 300, max_shrink_iters: 0, failure_persistence: None, ..Default::default() };
    proptest!(config, |(shapes in vec(shape(), 1..40))| {
        let mut kernel = kernel.borrow_mut();
        for shape in &shapes {
            let bytes = kernel.request(shape);
            kernel.send(&bytes);
            kernel.settle();
            prop_assert_eq!(PANICS.load(Ordering::Relaxed), 0, "{:?}", shape);
        }
    });
    assert!(session.metrics.fuse_requests.load(Ordering::Relaxed) > 1000);
    let succeeded = &kernel.borrow().succeeded;
    assert!(succeeded.len() > 25, "too little gets past the first checks: {succeeded:?}");
    std::fs::metadata(dir.path()).expect("the backing directory itself stays");
}

#[test]
fn a_message_too_short_for_a_header_is_dropped_and_the_next_is_served() {
    let flags = SocketFlags::CLOEXEC;
    let (fuse, kernel) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let backing = rustix::fs::open(dir.path(), open, Mode::empty()).unwrap();
    let shared = shared(|_| ());
    let state = Arc::new(SessionState::anonymous().unwrap());
    let fds = SessionFds { fuse, backing, shm: None };
    let session = session(Setup::default(), fds, state, Path::new("/nowhere/mount"), &shared, 1);
    shared.pool.add(session).unwrap();
    let mut kernel =
        Kernel { fd: kernel, unique: 0, seen: Vec::new(), sent: HashMap::new(), succeeded: BTreeSet::new() };
    kernel.send(&[1; 39]);
    kernel.settle();
}
