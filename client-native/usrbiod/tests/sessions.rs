//! Sessions from attach to take-over, with this test as the peer that mounts and keeps.

mod common;

use common::daemon::{DaemonProcess, receive, request};
use common::{LONG, wait_until};
use rustix::fs::{AtFlags, Mode, OFlags};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use usrbiod::control::socket::Seqpacket;
use usrbiod::sys::mount::{mount_fuse, unmount};

const IOV: &str = "50f3d3cf-0000-4000-8000-0000001db8d6";

/// A mount of ours, and the fds that it stands on.
struct Mounted {
    dir: tempfile::TempDir,
    fds: [OwnedFd; 3],
}

impl Mounted {
    fn new() -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        let sub = |name: &str| {
            fs::create_dir(dir.path().join(name)).unwrap();
            File::open(dir.path().join(name)).unwrap().into()
        };
        let (data, shm): (OwnedFd, OwnedFd) = (sub("data"), sub("shm"));
        let _: OwnedFd = sub("mnt");
        let fuse = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        mount_fuse(&fuse, "test", &dir.path().join("mnt")).unwrap();
        Mounted { dir, fds: [fuse, data, shm] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn attach(&self, socket: &Seqpacket, name: &str, resume: bool) -> Value {
        let config = json!({"name": name, "cluster": "test", "mount_point": self.path("mnt")});
        self.attach_as(socket, config, resume)
    }

    /// Attaches a volume that has a size of its own.
    fn attach_sized(&self, socket: &Seqpacket, name: &str, space: Value, resume: bool) -> Value {
        let mount_point = self.path("mnt");
        let config = json!({"name": name, "cluster": "test", "mount_point": mount_point, "space": space});
        self.attach_as(socket, config, resume)
    }

    fn attach_as(&self, socket: &Seqpacket, config: Value, resume: bool) -> Value {
        let attach =
            json!({"op": "attach", "config": config, "fds": ["fuse", "backing", "shm"], "resume": resume});
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        request(socket, &attach, &fds).0
    }

    /// Registers an Iov of a page, and returns its file.
    fn register(&self) -> File {
        let file =
            File::options().create_new(true).read(true).write(true).open(self.path("shm/buffer")).unwrap();
        file.set_len(4096).unwrap();
        symlink("/dev/shm/buffer", self.path("mnt/3fs-virt/iovs").join(IOV)).unwrap();
        file
    }

    fn is_registered(&self) -> bool {
        fs::read_link(self.path("mnt/3fs-virt/iovs").join(IOV)).is_ok()
    }

    /// Bytes that `df` shows: all and free.
    fn space(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.path("mnt")).unwrap();
        assert_eq!(stat.f_bfree, stat.f_bavail, "more is left below than the volume has");
        (stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)
    }

    fn semaphores(&self) -> usize {
        let files = fs::read_dir(self.path("shm")).unwrap().flatten();
        files.filter(|f| f.file_name().to_str().unwrap().starts_with("sem.")).count()
    }
}

/// A process with an open file on the mount. Not this one: it starts daemons, and the `exec` of a child closes the file, for
/// which it needs the very daemon that it is to become.
struct Writer(Child);

impl Writer {
    fn open(path: PathBuf) -> Writer {
        let script = "exec 3>\"$0\" && echo open && read -r text && printf %s \"$text\" >&3";
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut writer = Writer(command.spawn().unwrap());
        writer.0.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        writer
    }

    fn write(mut self, text: &str) {
        writeln!(self.0.stdin.take().unwrap(), "{text}").unwrap();
        let mut status = None;
        wait_until("the writer to end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.path("mnt"));
    }
}

fn ok(reply: &Value) {
    assert_eq!(reply["ok"], true, "{reply}");
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or("none")
}

fn keeper(daemon: &DaemonProcess) -> Seqpacket {
    let keeper = daemon.connect();
    ok(&request(&keeper, &json!({"op": "keep"}), &[]).0);
    keeper
}

fn inode(fd: impl AsFd) -> (u64, u64) {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH).unwrap();
    (stat.st_dev, stat.st_ino)
}

#[test]
fn a_session_is_attached_listed_and_detached_and_nothing_stays() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    ok(&request(&socket, &json!({"op": "hello"}), &[]).0);
    let fds = daemon.open_fds();
    let mounted = Mounted::new();
    ok(&mounted.attach(&socket, "s", false));
    assert_eq!(code(&mounted.attach(&socket, "s", false)), "session-exists");
    fs::write(mounted.path("mnt/file"), "text").unwrap();
    assert_eq!(fs::read_to_string(mounted.path("data/file")).unwrap(), "text");
    let buffer = mounted.register();
    let (list, _) = request(&socket, &json!({"op": "list"}), &[]);
    let listed = &list["sessions"][0];
    assert_eq!(
        (&listed["session"], &listed["iovs"], &listed["iov_bytes"]),
        (&json!("s"), &json!(1), &json!(4096))
    );
    let (stats, _) = request(&socket, &json!({"op": "stats", "session": "s"}), &[]);
    assert!(stats["fuse"]["requests"].as_u64().unwrap() > 0, "{stats}");
    assert!(daemon.http_get("/metrics").contains("usrbiod_iovs{session=\"s\"} 1"));
    assert_eq!(mounted.semaphores(), 3);

    unmount(&mounted.path("mnt")).unwrap();
    wait_until("the session to end", || {
        let (list, _) = request(&socket, &json!({"op": "list"}), &[]);
        list["sessions"].as_array().unwrap().is_empty()
    });
    wait_until("the semaphores to go", || mounted.semaphores() == 0);
    wait_until("the state file to go", || fs::read_dir(daemon.state_dir()).unwrap().count() == 0);
    // One is left: the daemon watches this process, the owner of the Iov, until it ends.
    wait_until("the session's fds to be closed", || daemon.open_fds() <= fds + 1);
    drop(buffer);
}

#[test]
fn detach_ends_a_session_whose_mount_is_still_there() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let mounted = Mounted::new();
    ok(&mounted.attach(&socket, "s", false));
    fs::write(mounted.path("mnt/file"), "text").unwrap();
    let detach = json!({"op": "detach", "session": "s"});
    ok(&request(&socket, &detach, &[]).0);
    assert_eq!(code(&request(&socket, &detach, &[]).0), "session-unknown");
    assert_eq!(mounted.semaphores(), 0);
    assert_eq!(fs::read_dir(daemon.state_dir()).unwrap().count(), 0);
}

#[test]
fn the_keeper_gets_what_is_registered_and_hears_when_it_goes() {
    let daemon = DaemonProcess::start();
    let (keeper, socket) = (keeper(&daemon), daemon.connect());
    let mounted = Mounted::new();
    ok(&mounted.attach(&socket, "s", false));
    let buffer = mounted.register();
    let (event, fds) = receive(&keeper);
    assert_eq!(event, json!({"event": "keep", "session": "s", "key": IOV}));
    assert_eq!(inode(&fds[0]), inode(&buffer));

    let (all, fds) = request(&socket, &json!({"op": "fds"}), &[]);
    assert_eq!((&all["session"], &all["more"]), (&json!("s"), &json!(true)));
    assert_eq!(all["keys"], json!(["fuse", "backing", "shm", IOV]));
    let expected: Vec<_> = mounted.fds.iter().map(inode).chain([inode(&buffer)]).collect();
    assert_eq!(fds.iter().map(inode).collect::<Vec<_>>(), expected);
    assert_eq!(receive(&socket).0, json!({"ok": true, "keys": []}));

    fs::remove_file(mounted.path("mnt/3fs-virt/iovs").join(IOV)).unwrap();
    assert_eq!(receive(&keeper).0, json!({"event": "forget", "session": "s", "key": IOV}));
    unmount(&mounted.path("mnt")).unwrap();
    assert_eq!(receive(&keeper).0, json!({"event": "detached", "session": "s", "unmounted": true}));
}

#[test]
fn a_killed_daemon_is_succeeded_by_one_that_gets_everything_back() {
    let mut daemon = DaemonProcess::start();
    let kept = keeper(&daemon);
    let mounted = Mounted::new();
    ok(&mounted.attach(&daemon.connect(), "s", false));
    let buffer = mounted.register();
    let writer = Writer::open(mounted.path("mnt/open"));
    daemon.kill();
    let (event, fds) = receive(&kept);
    assert_eq!(event["key"], IOV);
    assert!(kept.recv_within(LONG).unwrap().is_none());

    daemon.restart();
    let socket = daemon.connect();
    let give = json!({"op": "give", "session": "s", "keys": [IOV]});
    ok(&request(&socket, &give, &[fds[0].as_fd()]).0);
    ok(&mounted.attach(&socket, "s", true));
    assert!(mounted.is_registered());
    writer.write("still open");
    assert_eq!(fs::read_to_string(mounted.path("data/open")).unwrap(), "still open");
    assert_eq!(mounted.semaphores(), 3);
    drop(buffer);
}

#[test]
fn what_the_peer_does_not_give_back_is_dropped_alone() {
    let mut daemon = DaemonProcess::start();
    let mounted = Mounted::new();
    ok(&mounted.attach(&daemon.connect(), "s", false));
    let buffer = mounted.register();
    daemon.kill();
    daemon.restart();
    let keeper = keeper(&daemon);
    ok(&mounted.attach(&daemon.connect(), "s", true));
    assert_eq!(receive(&keeper).0, json!({"event": "forget", "session": "s", "key": IOV}));
    assert!(!mounted.is_registered());
    fs::write(mounted.path("mnt/file"), "text").unwrap();
    drop(buffer);
}

#[test]
fn a_volume_has_its_own_size_for_df_and_a_successor_knows_it() {
    let mut daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let mounted = Mounted::new();
    let (total, used) = (4 << 20, 1 << 20);
    ok(&mounted.attach_sized(&socket, "s", json!({"total": total}), false));
    assert_eq!(mounted.space(), (total, total));
    let mut space = json!({"op": "space", "session": "s", "total": total, "used": used});
    ok(&request(&socket, &space, &[]).0);
    assert_eq!(mounted.space(), (total, total - used));
    space["total"] = json!(2 * total);
    ok(&request(&socket, &space, &[]).0);
    assert_eq!(mounted.space(), (2 * total, 2 * total - used));

    daemon.kill();
    daemon.restart();
    let socket = daemon.connect();
    assert_eq!(code(&request(&socket, &space, &[]).0), "session-unknown");
    ok(&mounted.attach_sized(&socket, "s", json!({"total": 2 * total, "used": used}), true));
    assert_eq!(mounted.space(), (2 * total, 2 * total - used));
}

#[test]
fn a_volume_without_a_size_shows_the_file_system_below() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let mounted = Mounted::new();
    ok(&mounted.attach(&socket, "s", false));
    let shown = |name| rustix::fs::statvfs(mounted.path(name)).unwrap();
    assert_eq!(
        (shown("mnt").f_blocks, shown("mnt").f_frsize),
        (shown("data").f_blocks, shown("data").f_frsize)
    );
    ok(&request(&socket, &json!({"op": "space", "session": "s", "total": 8192}), &[]).0);
    assert_eq!(mounted.space().0, 8192);
    assert_eq!((shown("mnt").f_files, shown("mnt").f_bsize), (shown("data").f_files, shown("data").f_bsize));
    ok(&request(&socket, &json!({"op": "space", "session": "s", "total": 0}), &[]).0);
    assert_eq!(shown("mnt").f_blocks, shown("data").f_blocks);
}

#[test]
fn prune_removes_the_states_that_nobody_will_resume_and_no_other() {
    let mut daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let mounted = Mounted::new();
    ok(&mounted.attach(&socket, "s", false));
    let path = |name| daemon.state_dir().join(name);
    for name in ["gone.state", "kept.state", "no-state", ".state"] {
        fs::write(path(name), "whatever").unwrap();
    }
    let prune = |exist: &[&str]| json!({"op": "prune", "sessions": exist});
    let (pruned, _) = request(&socket, &prune(&["kept", "never-was"]), &[]);
    assert_eq!(pruned, json!({"ok": true, "removed": 1}));
    assert!(!path("gone.state").exists());
    assert!(["s.state", "kept.state", "no-state", ".state"].iter().all(|name| path(name).exists()));

    daemon.kill();
    daemon.restart();
    let socket = daemon.connect();
    let (pruned, _) = request(&socket, &prune(&["s"]), &[]);
    assert_eq!(pruned["removed"], 1);
    ok(&mounted.attach(&socket, "s", true));
    fs::write(mounted.path("mnt/file"), "text").unwrap();
}

#[test]
fn a_drained_daemon_leaves_all_states_to_its_successor() {
    let old = DaemonProcess::start();
    let mounted = Mounted::new();
    request(&old.connect(), &json!({"op": "drain"}), &[]);
    let new = old.successor();
    ok(&mounted.attach(&new.connect(), "s", false));
    let prune = json!({"op": "prune", "sessions": []});
    assert_eq!(code(&request(&old.connect(), &prune, &[]).0), "draining");
    assert_eq!(request(&new.connect(), &prune, &[]).0["removed"], 0);
}

#[test]
fn a_resume_needs_a_state_of_this_version() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let mounted = Mounted::new();
    assert_eq!(code(&mounted.attach(&socket, "s", true)), "no-state");
    let state = daemon.state_dir().join("s.state");
    fs::write(&state, "of another version").unwrap();
    assert_eq!(code(&mounted.attach(&socket, "s", true)), "state-version");
    assert_eq!(fs::read(&state).unwrap()[..18], *b"of another version");
    // A new mount is no successor of anything.
    ok(&mounted.attach(&socket, "s", false));
    fs::write(mounted.path("mnt/file"), "text").unwrap();
}

#[test]
fn a_drained_daemon_hands_its_sessions_over_without_being_killed() {
    let mut old = DaemonProcess::start();
    let kept = keeper(&old);
    let mounted = Mounted::new();
    ok(&mounted.attach(&old.connect(), "s", false));
    let buffer = mounted.register();
    let writer = Writer::open(mounted.path("mnt/open"));
    let (_, fds) = receive(&kept);
    let (drained, _) = request(&old.connect(), &json!({"op": "drain"}), &[]);
    assert_eq!(drained, json!({"ok": true, "sessions": 1}));

    let new = old.successor();
    let socket = new.connect();
    let give = json!({"op": "give", "session": "s", "keys": [IOV]});
    ok(&request(&socket, &give, &[fds[0].as_fd()]).0);
    ok(&mounted.attach(&socket, "s", true));
    writer.write("served by the new one");
    assert!(mounted.is_registered());
    assert!(old.terminate().success());
    assert!(mounted.is_registered());
    fs::write(mounted.path("mnt/file"), "text").unwrap();
    assert_eq!(mounted.semaphores(), 3);
    drop(buffer);
}

#[test]
fn a_hundred_idle_sessions_cost_no_threads_and_little_memory() {
    let daemon = DaemonProcess::start();
    let socket = daemon.connect();
    let mounts: Vec<Mounted> = (0..100).map(|_| Mounted::new()).collect();
    for (index, mounted) in mounts.iter().enumerate() {
        ok(&mounted.attach(&socket, &format!("s-{index}"), false));
        fs::write(mounted.path("mnt/file"), "text").unwrap();
    }
    let status = || fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let field = |status: &str, name: &str| -> usize {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let cores = std::thread::available_parallelism().unwrap().get();
    // Control, metrics, two for FUSE, one that watches rings, and one for each core that serves them.
    wait_until("the extra threads to end", || field(&status(), "Threads:") <= cores + 5);
    let rss = field(&status(), "VmRSS:");
    eprintln!("100 sessions: {rss} KiB, {} threads", field(&status(), "Threads:"));
    assert!(rss < 24 << 10, "{rss} KiB");
}

#[test]
fn a_folder_is_served_by_one_daemon_and_its_successors() {
    let mut daemon = DaemonProcess::start();
    let stranger = DaemonProcess::start();
    let mut first = Mounted::new();
    let data = first.path("data");
    fs::create_dir(data.join("inside")).unwrap();
    // As of other pods: opened by themselves.
    let beside = |dir: PathBuf| {
        let mut mounted = Mounted::new();
        mounted.fds[1] = File::open(dir).unwrap().into();
        mounted
    };
    let (second, third, fourth) = (beside(data.clone()), beside(data.join("inside")), beside(data.clone()));
    ok(&first.attach(&daemon.connect(), "s", false));
    assert_eq!(code(&second.attach(&stranger.connect(), "t", false)), "folder-served");
    ok(&second.attach(&daemon.connect(), "t", false));

    // Not while nobody serves it either; its sessions come back in any order.
    daemon.kill();
    assert_eq!(code(&fourth.attach(&stranger.connect(), "v", false)), "folder-served");
    daemon.restart();
    ok(&second.attach(&daemon.connect(), "t", true));
    ok(&first.attach(&daemon.connect(), "s", true));
    assert_eq!(code(&third.attach(&stranger.connect(), "u", false)), "folder-served");

    // A successor takes over from a daemon that runs still.
    let new = daemon.successor();
    ok(&request(&daemon.connect(), &json!({"op": "drain"}), &[]).0);
    ok(&first.attach(&new.connect(), "s", true));
    ok(&second.attach(&new.connect(), "t", true));
    ok(&third.attach(&new.connect(), "u", false));
    fs::write(first.path("mnt/f"), "x").unwrap();
    assert_eq!(fs::read_to_string(second.path("mnt/f")).unwrap(), "x");

    // It is free when the daemon has detached and the peer has closed its fds.
    for name in ["s", "t", "u"] {
        ok(&request(&new.connect(), &json!({"op": "detach", "session": name}), &[]).0);
    }
    drop((second, third));
    daemon.kill();
    first.fds[1] = File::open(&data).unwrap().into();
    ok(&fourth.attach(&stranger.connect(), "v", false));
}
