//! A daemon dies in the middle of a request: its successor answers it as if nothing had happened.
//!
//! The test itself is the daemon that dies: it reads the request, does a part of the work, and leaves the state as a crash
//! at that point would.

mod fuse_mount;

use fuse_mount::{Mount, Setup, mount, session, shared};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};
use usrbiod::fuse::abi::{InHeader, OutHeader, op};
use usrbiod::fuse::reply;
use usrbiod::fuse::request::{Op, Request};
use usrbiod::session::{Session, SessionFds, Shared};
use usrbiod::state::records::ReplyRec;
use usrbiod::types::{Caller, NodeId};
use zerocopy::{FromBytes, IntoBytes};

/// How far the daemon comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// It only read the request.
    Unnoted,
    /// It noted that it begins.
    Begun,
    /// It did what was asked, and noted nothing more.
    Unconcluded,
    /// It noted what came of it, and did not answer.
    Unanswered,
}

const POINTS: [Dies; 4] = [Dies::Unnoted, Dies::Begun, Dies::Unconcluded, Dies::Unanswered];

/// A request by a program, and what a daemon does for it.
struct Case {
    opcode: u32,
    prepare: fn(&Mount),
    call: fn(&Path) -> io::Result<()>,
    /// Does it, with what the reply would name: node and file handle.
    work: fn(&Session) -> (u64, u64),
    /// The program's result was a success; what else must be true.
    check: fn(&Mount),
}

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

fn nothing(_: &Mount) {}

fn cases() -> Vec<Case> {
    vec![
        Case {
            opcode: op::MKDIR,
            prepare: nothing,
            call: |root| fs::create_dir(root.join("dir")),
            work: |s| (s.fs.mkdir(NodeId::ROOT, c"dir", 0o755, 0, &ROOT).unwrap().node.0, 0),
            check: |m| assert!(fs::metadata(m.path("dir")).unwrap().is_dir()),
        },
        Case {
            opcode: op::SYMLINK,
            prepare: nothing,
            call: |root| symlink("target", root.join("link")),
            work: |s| (s.fs.symlink(NodeId::ROOT, c"link", c"target", &ROOT).unwrap().node.0, 0),
            check: |m| assert_eq!(fs::read_link(m.path("link")).unwrap(), Path::new("target")),
        },
        Case {
            opcode: op::UNLINK,
            prepare: |m| fs::write(m.path("file"), "").unwrap(),
            call: |root| fs::remove_file(root.join("file")),
            work: |s| {
                s.fs.unlink(NodeId::ROOT, c"file").unwrap();
                (0, 0)
            },
            check: |m| assert!(!m.path("file").exists()),
        },
        Case {
            opcode: op::RMDIR,
            prepare: |m| fs::create_dir(m.path("dir")).unwrap(),
            call: |root| fs::remove_dir(root.join("dir")),
            work: |s| {
                s.fs.rmdir(NodeId::ROOT, c"dir").unwrap();
                (0, 0)
            },
            check: |m| assert!(!m.path("dir").exists()),
        },
        Case {
            opcode: op::RENAME2,
            prepare: |m| fs::write(m.path("old"), "text").unwrap(),
            call: |root| rename(root, rustix::fs::RenameFlags::NOREPLACE),
            work: |s| {
                s.fs.rename(NodeId::ROOT, c"old", NodeId::ROOT, c"new", libc::RENAME_NOREPLACE).unwrap();
                (0, 0)
            },
            check: |m| {
                assert!(!m.path("old").exists());
                assert_eq!(fs::read(m.path("new")).unwrap(), b"text");
            },
        },
        Case {
            opcode: op::RENAME2,
            prepare: |m| {
                fs::write(m.path("old"), "first").unwrap();
                fs::write(m.path("new"), "second").unwrap();
            },
            call: |root| rename(root, rustix::fs::RenameFlags::EXCHANGE),
            work: |s| {
                s.fs.rename(NodeId::ROOT, c"old", NodeId::ROOT, c"new", libc::RENAME_EXCHANGE).unwrap();
                (0, 0)
            },
            check: |m| {
                assert_eq!(fs::read(m.path("old")).unwrap(), b"second");
                assert_eq!(fs::read(m.path("new")).unwrap(), b"first");
            },
        },
        Case {
            opcode: op::LINK,
            prepare: |m| fs::write(m.path("old"), "text").unwrap(),
            call: |root| fs::hard_link(root.join("old"), root.join("new")),
            work: |s| {
                let old = s.fs.lookup(NodeId::ROOT, c"old").unwrap();
                s.fs.forget(old.node, 1);
                (s.fs.link(old.node, NodeId::ROOT, c"new").unwrap().node.0, 0)
            },
            check: |m| assert_eq!(fs::metadata(m.path("new")).unwrap().nlink(), 2),
        },
        Case {
            opcode: op::CREATE,
            prepare: nothing,
            call: |root| {
                let mut file = OpenOptions::new().write(true).create_new(true).open(root.join("file"))?;
                io::Write::write_all(&mut file, b"text")
            },
            work: |s| {
                let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL) as u32;
                let (entry, opened) =
                    s.fs.create(NodeId::ROOT, c"file", flags, 0o100644, 0o22, &ROOT, 1).unwrap();
                assert_eq!(opened.backing_id, None, "the case is made without passthrough");
                (entry.node.0, opened.fh)
            },
            check: |m| assert_eq!(fs::read(m.path("file")).unwrap(), b"text"),
        },
    ]
}

fn rename(root: &Path, flags: rustix::fs::RenameFlags) -> io::Result<()> {
    let cwd = rustix::fs::CWD;
    Ok(rustix::fs::renameat_with(cwd, root.join("old"), cwd, root.join("new"), flags)?)
}

/// Waits for a request of that kind, and answers those that the kernel makes before it.
fn read_request(session: &Session, opcode: u32) -> InHeader {
    let fuse = &session.channel.fd;
    let mut bytes = vec![0; (1 << 20) + 4096];
    loop {
        let mut fds = [PollFd::new(fuse, PollFlags::IN)];
        let longest = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&longest)), Ok(1), "the request does not come");
        let len = rustix::io::read(fuse, &mut bytes[..]).unwrap();
        let request = Request::parse(&bytes[..len], true).unwrap();
        if request.opcode == opcode {
            return InHeader::read_from_prefix(&bytes).unwrap().0;
        }
        match request.op {
            Op::Lookup { name } => match session.fs.lookup(request.node, name) {
                Ok(entry) => answer(fuse, request.unique, reply::entry(&entry).as_bytes()),
                Err(errno) => session.channel.answer(request.unique, Err(errno)).unwrap(),
            },
            Op::Getattr(_) => {
                let attr = session.fs.getattr(request.node).unwrap();
                answer(fuse, request.unique, reply::attr(&attr).as_bytes());
            }
            Op::Release(arg) => {
                session.fs.release(request.node, arg.fh);
                session.channel.answer(request.unique, Ok(())).unwrap();
            }
            Op::Forget { nlookup } => session.fs.forget(request.node, nlookup),
            _ => panic!("opcode {} before {opcode}", request.opcode),
        }
    }
}

fn answer(fuse: &OwnedFd, unique: u64, body: &[u8]) {
    let header = OutHeader { len: (16 + body.len()) as u32, error: 0, unique };
    rustix::io::write(fuse, &[header.as_bytes(), body].concat()).unwrap();
}

/// The clock of inode times.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Does as much of a request as a daemon that dies at that point.
fn work_until(dies: Dies, case: &Case, session: &Session, unique: u64, moved: u64) {
    if dies == Dies::Unnoted {
        return;
    }
    let note =
        ReplyRec { tag: 1, opcode: case.opcode, unique, begun: now(), ino: moved, ..ReplyRec::default() };
    let index = session.state.replies.insert(&note).unwrap();
    if dies == Dies::Begun {
        return;
    }
    let (node, fh) = (case.work)(session);
    if dies == Dies::Unanswered {
        session.state.replies.put(index, &ReplyRec { tag: 2, node, fh, ..note });
    }
}

/// A successor on the mount of `m`.
fn succeed(m: &Mount, passthrough: bool) -> (Arc<Session>, Shared) {
    let again = |fd: &OwnedFd| fd.as_fd().try_clone_to_owned().unwrap();
    let fds = SessionFds { fuse: again(&m.session.channel.fd), backing: again(&m.directory), shm: None };
    let shared = shared(|_| ());
    let setup = Setup { passthrough, ..Setup::default() };
    let new = session(setup, fds, m.session.state.clone(), &m.path(""), &shared, 2);
    shared.pool.resume(&new).unwrap();
    shared.pool.add(new.clone()).unwrap();
    (new, shared)
}

#[test]
fn a_request_that_was_begun_or_done_is_answered_once_and_rightly() {
    for case in cases() {
        for dies in POINTS {
            let setup = Setup { passthrough: false, ..Setup::default() };
            let m = mount(setup);
            eprintln!("opcode {} dies {dies:?}", case.opcode);
            (case.prepare)(&m);
            let moved = fs::symlink_metadata(m.backing("old")).map_or(0, |meta| meta.ino());
            m.shared.pool.remove("test", Duration::from_secs(10)).unwrap();
            let root = &m.path("");
            let successor = std::thread::scope(|scope| {
                let caller = scope.spawn(|| (case.call)(root));
                let header = read_request(&m.session, case.opcode);
                work_until(dies, &case, &m.session, header.unique, moved);
                let successor = succeed(&m, false);
                caller.join().unwrap().unwrap_or_else(|e| panic!("opcode {} {dies:?}: {e}", case.opcode));
                successor
            });
            (case.check)(&m);
            // The worker drops its note just after it answers.
            let noted = || successor.0.state.replies.iter().filter(|(_, r)| matches!(r.tag, 1 | 2)).count();
            let deadline = Instant::now() + Duration::from_secs(10);
            while noted() > 0 {
                assert!(Instant::now() < deadline, "a note stays");
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn what_somebody_else_made_is_not_taken_for_the_predecessors() {
    let m = mount(Setup { passthrough: false, ..Setup::default() });
    m.shared.pool.remove("test", Duration::from_secs(10)).unwrap();
    let root = &m.path("");
    let case = &cases()[0];
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| (case.call)(root));
        let mkdir = read_request(&m.session, op::MKDIR);
        fs::create_dir(m.backing("dir")).unwrap();
        let made = fs::metadata(m.backing("dir")).unwrap().created().unwrap();
        while now() <= made.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 {
            std::thread::yield_now();
        }
        work_until(Dies::Begun, case, &m.session, mkdir.unique, 0);
        let _successor = succeed(&m, false);
        assert_eq!(caller.join().unwrap().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    });
}

#[test]
fn open_files_and_locks_survive() {
    for passthrough in [false, true] {
        let m = mount(Setup { passthrough, ..Setup::default() });
        let file = File::options().read(true).write(true).create_new(true).open(m.path("file")).unwrap();
        io::Write::write_all(&mut &file, b"before").unwrap();
        file.lock().unwrap();
        let other = File::open(m.path("file")).unwrap();
        m.shared.pool.remove("test", Duration::from_secs(10)).unwrap();
        let (_new, _shared) = succeed(&m, passthrough);
        io::Write::write_all(&mut &file, b" and after").unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::read(m.path("file")).unwrap(), b"before and after");
        assert!(other.try_lock().is_err(), "the lock is held");
        file.unlock().unwrap();
        other.try_lock().unwrap();
    }
}
