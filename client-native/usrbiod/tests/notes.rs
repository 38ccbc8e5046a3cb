//! What the kernel is told to forget, while a process holds the lock that it needs for that.

mod fuse_mount;

use fuse_mount::{Setup, mount};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};
use usrbiod::fuse::Note;
use usrbiod::fuse::abi::OutHeader;
use usrbiod::fuse::reply;
use usrbiod::fuse::request::{Op, Request};
use usrbiod::session::Session;
use zerocopy::IntoBytes;

/// Reads requests until the one that looks up `name`, and does not answer that one.
fn wait_for_lookup(session: &Session, name: &CStr) {
    let mut bytes = vec![0; (1 << 20) + 4096];
    loop {
        let mut fds = [PollFd::new(&session.channel.fd, PollFlags::IN)];
        let longest = Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&longest)), Ok(1), "the request does not come");
        let len = rustix::io::read(&session.channel.fd, &mut bytes[..]).unwrap();
        let request = Request::parse(&bytes[..len], true).unwrap();
        match request.op {
            Op::Lookup { name: found } if found == name => return,
            Op::Release(arg) => {
                session.fs.release(request.node, arg.fh);
                session.channel.answer(request.unique, Ok(())).unwrap();
            }
            Op::Getattr(_) => {
                let attr = session.fs.getattr(request.node).unwrap();
                let body = reply::attr(&attr);
                let header =
                    OutHeader { len: 16 + size_of_val(&body) as u32, error: 0, unique: request.unique };
                rustix::io::write(&session.channel.fd, &[header.as_bytes(), body.as_bytes()].concat())
                    .unwrap();
            }
            Op::Forget { nlookup } => session.fs.forget(request.node, nlookup),
            op => panic!("{op:?} before the lookup"),
        }
    }
}

#[test]
fn a_directory_whose_lock_is_held_costs_one_thread_and_its_answers_do_not_wait_for_it() {
    let m = mount(Setup::default());
    std::fs::create_dir(m.path("dir")).unwrap();
    std::fs::write(m.path("dir/old"), "").unwrap();
    let dir = m.session.fs.lookup(usrbiod::types::NodeId::ROOT, c"dir").unwrap().node;
    // From here on nobody answers: the caller of mkdir keeps the directory's lock.
    m.shared.pool.remove("test", Duration::from_secs(10)).unwrap();
    std::thread::scope(|scope| {
        let path = m.path("dir/new");
        let caller = scope.spawn(move || std::fs::create_dir(path));
        wait_for_lookup(&m.session, c"new");

        let notes = &m.session.channel.notes;
        let begun = Instant::now();
        let mut last = None;
        for i in 0..2000 {
            let ticket = notes.push(Note::forget(dir, &CString::new(format!("name-{i}")).unwrap()));
            notes.settle(ticket);
            last = Some(ticket);
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "the answers waited: {:?}", begun.elapsed());
        assert_eq!(m.shared.notifier.threads(), 1);
        assert!(!notes.is_told(last.unwrap()), "the lock was not held");

        m.shared.pool.resume(&m.session).unwrap();
        m.shared.pool.add(m.session.clone()).unwrap();
        caller.join().unwrap().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !notes.is_told(last.unwrap()) {
            assert!(Instant::now() < deadline, "the notes do not get through");
            std::thread::yield_now();
        }
    });
    m.session.fs.forget(dir, 1);
}
