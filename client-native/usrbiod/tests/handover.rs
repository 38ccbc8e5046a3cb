//! A hand-over while the storage of one session does not answer. That storage is a mount that this test serves itself: it
//! stands still, and goes on, as the test likes.

mod common;
mod fuse_mount;

use common::daemon::{DaemonProcess, request};
use common::{LONG, wait_until};
use fuse_mount::{Mount, Setup, mount};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use usrbiod::control::socket::Seqpacket;
use usrbiod::sys::mount::{mount_fuse, unmount};

/// A mount that a daemon process serves.
struct Mounted {
    point: tempfile::TempDir,
    fds: [OwnedFd; 2],
}

impl Mounted {
    fn new(backing: &Path) -> Mounted {
        let point = tempfile::tempdir().unwrap();
        let open =
            |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let fuse = open(Path::new("/dev/fuse"), OFlags::RDWR);
        mount_fuse(&fuse, "test", point.path()).unwrap();
        Mounted { point, fds: [fuse, open(backing, OFlags::RDONLY | OFlags::DIRECTORY)] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point.path().join(name)
    }

    fn attach(&self, socket: &Seqpacket, name: &str, resume: bool) -> Value {
        let config =
            json!({"name": name, "cluster": "test", "mount_point": self.point.path(), "passthrough": false});
        let attach = json!({"op": "attach", "config": config, "fds": ["fuse", "backing"], "resume": resume});
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        request(socket, &attach, &fds).0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.point.path(), flags);
    }
}

fn ask(socket: &Seqpacket, op: &str) -> Value {
    request(socket, &json!({"op": op}), &[]).0
}

fn ok(reply: &Value) {
    assert_eq!(reply["ok"], true, "{reply}");
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or("none")
}

fn freeze(storage: &Mount) {
    storage.shared.pool.remove("test", LONG).unwrap();
}

fn thaw(storage: &Mount) {
    storage.shared.pool.add(storage.session.clone()).unwrap();
}

fn listed(socket: &Seqpacket, name: &str) -> Value {
    let list = ask(socket, "list");
    let sessions = list["sessions"].as_array().unwrap();
    sessions.iter().find(|s| s["session"] == name).cloned().unwrap_or_default()
}

#[test]
fn a_write_that_hangs_is_not_handed_over_and_hurts_no_other_session() {
    let storage = mount(Setup { passthrough: false, ..Setup::default() });
    let healthy = tempfile::tempdir().unwrap();
    let old = DaemonProcess::start();
    let new = old.successor();
    let (control, successor) = (old.connect(), new.connect());
    let (slow, fast) = (Mounted::new(&storage.path("")), Mounted::new(healthy.path()));
    ok(&slow.attach(&control, "slow", false));
    ok(&fast.attach(&control, "fast", false));
    let file = File::options().create_new(true).read(true).write(true).open(slow.path("file")).unwrap();
    file.write_all_at(b"before", 0).unwrap();
    freeze(&storage);
    let writer = std::thread::spawn(move || {
        file.write_all_at(b"first ", 0).unwrap();
        file.write_all_at(b"second", 0).unwrap();
        file
    });
    wait_until("the write to count as hung", || listed(&control, "slow")["hung"] == 1);
    assert!(listed(&control, "slow")["hung_seconds"].as_u64().unwrap() >= 5);
    assert_eq!(listed(&control, "fast")["hung"], 0);
    assert!(old.http_get("/metrics").contains("usrbiod_hung_requests{session=\"slow\"} 1"));
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(code(&ask(&control, "drain")), "busy");
        assert!(begun.elapsed() < Duration::from_secs(2), "others had to wait for a request that hangs");
        fs::write(fast.path("other"), "goes on").unwrap();
        assert_eq!(code(&slow.attach(&successor, "slow", true)), "busy", "two daemons would do its requests");
    }
    ok(&ask(&control, "health"));
    assert_eq!(ask(&control, "hello")["hung"], 1);

    thaw(&storage);
    let file = writer.join().unwrap();
    wait_until("the daemon to be drained", || ask(&control, "drain")["ok"] == true);
    ok(&slow.attach(&successor, "slow", true));
    ok(&fast.attach(&successor, "fast", true));
    assert_eq!(fs::read(storage.path("file")).unwrap(), b"second", "an older write landed over a newer one");
    assert_eq!(code(&request(&control, &json!({"op": "detach", "session": "fast"}), &[]).0), "draining");
    fs::write(fast.path("other"), "served by the successor").unwrap();
    drop(file);
    unmount(fast.point.path()).unwrap();
}

#[test]
fn a_session_is_not_detached_while_a_request_of_it_runs() {
    let storage = mount(Setup { passthrough: false, ..Setup::default() });
    let daemon = DaemonProcess::start();
    let control = daemon.connect();
    let slow = Mounted::new(&storage.path(""));
    ok(&slow.attach(&control, "slow", false));
    let file = File::options().create_new(true).write(true).open(slow.path("file")).unwrap();
    freeze(&storage);
    let writer = std::thread::spawn(move || (&file).write_all(b"late"));
    wait_until("the write to hang", || listed(&control, "slow")["hung"] == 1);
    let detach = json!({"op": "detach", "session": "slow"});
    assert_eq!(code(&request(&control, &detach, &[]).0), "busy");
    assert_ne!(listed(&control, "slow"), Value::default(), "nobody else may have what it works on");
    thaw(&storage);
    wait_until("the session to go", || {
        let code = request(&control, &detach, &[]).0;
        code["ok"] == true || code["error"]["code"] == "session-unknown"
    });
    let left = fs::read(storage.path("file")).unwrap();
    let flags = rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(slow.point.path(), flags).unwrap();
    let written = writer.join().unwrap();
    assert_eq!(fs::read(storage.path("file")).unwrap(), left, "something ran on: {written:?}");
}
