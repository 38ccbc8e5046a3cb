//! `usrbiod serve`, from its errors to the death of its daemon.

mod common;

use common::{usrbiod, wait_until};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use usrbiod::sys::mount::{mounted_at, unmount};

/// A directory with `data`, `mnt` and `shm`, and `usrbiod serve` on them.
struct Serve {
    dir: tempfile::TempDir,
    child: Child,
}

fn layout() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["data", "mnt", "shm"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    dir
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_usrbiod"));
    command.arg("serve").arg(dir.join("data")).arg(dir.join("mnt")).arg("--shm").arg(dir.join("shm"));
    command.stdin(Stdio::null());
    command
}

impl Serve {
    fn start(extra: &[&str]) -> Serve {
        Serve::start_in(layout(), extra)
    }

    fn start_in(dir: tempfile::TempDir, extra: &[&str]) -> Serve {
        let said = File::create(dir.path().join("said")).unwrap();
        let child = command(dir.path()).args(extra).stdout(said).spawn().unwrap();
        let mut serve = Serve { dir, child };
        wait_until("the ready line", || {
            assert!(serve.child.try_wait().unwrap().is_none(), "serve ended");
            serve.said().contains("stop with Ctrl-C")
        });
        serve
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("said")).unwrap()
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    fn mnt(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    /// The process that serves: the only child of the supervisor.
    fn daemon(&self) -> Option<i32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    fn kill_daemon(&self) {
        let old = self.daemon().unwrap();
        let pid = rustix::process::Pid::from_raw(old).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_until("the next daemon", || self.daemon().is_some_and(|new| new != old));
    }

    fn semaphores(&self) -> usize {
        fs::read_dir(self.dir.path().join("shm")).unwrap().count()
    }

    fn run_dir(&self) -> PathBuf {
        format!("/run/usrbiod.{}", self.child.id()).into()
    }

    fn control(&self) -> String {
        self.run_dir().join("control").to_str().unwrap().to_owned()
    }

    fn mounts(&self) -> Vec<String> {
        mounted_at(&self.dir.path().join("mnt")).unwrap()
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            common::terminate(&mut self.child);
        }
        let _ = unmount(&self.dir.path().join("mnt"));
    }
}

fn refused(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.starts_with("usrbiod: ") && said.contains(words), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn what_is_wrong_with_the_arguments_is_said_in_one_sentence() {
    let dir = layout();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "").unwrap();
    fs::create_dir(path("data/inside")).unwrap();
    symlink(path("data"), path("link")).unwrap();
    let serve = |from: &str, to: &str| usrbiod(&["serve", &path(from), &path(to), "--shm", &path("shm")]);
    refused(&serve("none", "mnt"), 5, "give the directory to serve");
    refused(&serve("file", "mnt"), 6, "is not a directory");
    refused(&serve("data", "none"), 7, "make the directory first");
    refused(&serve("data", "file"), 8, "is not a directory");
    refused(&serve("data", "data/inside"), 10, "one inside the other");
    refused(&serve("data/inside", "data"), 10, "one inside the other");
    refused(&serve("data", "link"), 10, "one inside the other");
    refused(&usrbiod(&["serve", &path("data"), &path("mnt"), "--shm", &path("file")]), 11, "shared-memory");
    refused(&usrbiod(&["serve", &path("data"), "/proc"]), 9, "a proc mount");
    for wrong in [&["serve"][..], &["serve", "a", "b", "--cluster", ""], &["daemon"], &["nonsense"]] {
        assert_eq!(usrbiod(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_user_without_rights_is_told_so() {
    let dir = layout();
    common::open_to_everybody(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let output = common::as_nobody(&["serve", &path("data"), &path("mnt"), "--shm", &path("shm")]);
    refused(&output, 3, "only root can mount");
}

#[test]
fn files_are_served_and_sigterm_leaves_nothing_behind() {
    let mut serve = Serve::start(&[]);
    let text = vec![b'x'; 3 << 20];
    fs::write(serve.mnt("file"), &text).unwrap();
    assert_eq!(fs::read(serve.data("file")).unwrap(), text);
    fs::write(serve.data("other"), "from below").unwrap();
    assert_eq!(fs::read_to_string(serve.mnt("other")).unwrap(), "from below");
    assert_eq!(serve.semaphores(), 3);
    let listed = usrbiod(&["list", "--socket", &serve.control()]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("serve"));

    assert_eq!(serve.mounts(), ["fuse.hf3fs"]);
    assert!(common::terminate(&mut serve.child).success());
    assert!(serve.mounts().is_empty());
    assert_eq!(serve.semaphores(), 0);
    assert!(!serve.run_dir().exists());
    assert_eq!(fs::read_dir(serve.mnt("")).unwrap().count(), 0);
}

#[test]
fn open_files_outlive_the_daemon() {
    for extra in [&[][..], &["--no-passthrough"]] {
        let serve = Serve::start(extra);
        fs::write(serve.data("read"), vec![7; 1 << 20]).unwrap();
        let read = File::open(serve.mnt("read")).unwrap();
        let mut write = OpenOptions::new().create(true).append(true).open(serve.mnt("write")).unwrap();
        for round in 0..3 {
            serve.kill_daemon();
            let mut buf = vec![0; 4096];
            read.read_exact_at(&mut buf, 4096 * round).unwrap();
            assert!(buf.iter().all(|b| *b == 7));
            writeln!(write, "round {round}").unwrap();
            fs::write(serve.mnt(&format!("new-{round}")), "new").unwrap();
        }
        assert_eq!(fs::read_to_string(serve.data("write")).unwrap(), "round 0\nround 1\nround 2\n");
        assert_eq!(serve.semaphores(), 3);
    }
}

#[test]
fn an_open_file_without_a_name_outlives_the_daemon_by_passthrough() {
    let serve = Serve::start(&[]);
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(serve.mnt("gone")).unwrap();
    fs::remove_file(serve.mnt("gone")).unwrap();
    for round in 0..3 {
        serve.kill_daemon();
        file.write_all_at(&[round as u8; 100], 100 * round).unwrap();
        file.sync_all().unwrap();
    }
    let mut all = vec![9; 300];
    file.read_exact_at(&mut all, 0).unwrap();
    assert_eq!(all, [[0; 100], [1; 100], [2; 100]].concat());
    assert_eq!(file.metadata().unwrap().len(), 300);
}

#[test]
fn writers_never_notice_that_the_daemon_is_killed_again_and_again() {
    let serve = Serve::start(&["--no-passthrough"]);
    let path = serve.mnt("steady");
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let done_now = || done.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::create(&path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let count = done_now();
                file.write_all(&count.to_le_bytes()).unwrap();
                let name = path.with_file_name(format!("made-{count}"));
                drop(File::create_new(&name).unwrap());
                fs::rename(&name, path.with_file_name("made")).unwrap();
                done.store(count + 1, Ordering::Relaxed);
            }
        });
        for _ in 0..4 {
            let before = done_now();
            wait_until("the writer to get on", || done_now() > before + 50);
            serve.kill_daemon();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let written = done_now();
    let found = fs::read(serve.data("steady")).unwrap();
    let expected: Vec<u8> = (0..written).flat_map(u64::to_le_bytes).collect();
    assert!(written > 0 && found == expected, "{} of {} bytes", found.len(), expected.len());
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let serve = Serve::start(&["--read-only"]);
    fs::write(serve.data("file"), "text").unwrap();
    assert_eq!(fs::read_to_string(serve.mnt("file")).unwrap(), "text");
    let error = fs::write(serve.mnt("file"), "other").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn an_unmount_from_outside_ends_it_in_good_order() {
    let mut serve = Serve::start(&[]);
    unmount(&serve.dir.path().join("mnt")).unwrap();
    let mut status = None;
    wait_until("serve to end", || {
        status = serve.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
    assert_eq!(serve.semaphores(), 0);
}

#[test]
fn files_that_are_open_do_not_keep_the_mount() {
    let mut serve = Serve::start(&["--no-passthrough"]);
    let file = File::create(serve.mnt("busy")).unwrap();
    assert!(common::terminate(&mut serve.child).success());
    assert!(serve.mounts().is_empty());
    assert_eq!(serve.semaphores(), 0);
    let error = (&file).write(b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
}

#[test]
fn the_mount_of_a_killed_serve_is_cleaned_by_the_next_one() {
    let mut serve = Serve::start(&[]);
    let daemon = serve.daemon().unwrap();
    serve.child.kill().unwrap();
    serve.child.wait().unwrap();
    wait_until("the daemon to follow its parent", || !Path::new(&format!("/proc/{daemon}")).exists());
    assert!(fs::read_dir(serve.mnt("")).is_err(), "the mount should be dead");
    let old_run_dir = serve.run_dir();
    let said = File::create(serve.dir.path().join("said")).unwrap();
    serve.child = command(serve.dir.path()).stdout(said).spawn().unwrap();
    wait_until("the ready line", || serve.said().contains("stop with Ctrl-C"));
    fs::write(serve.mnt("file"), "again").unwrap();
    assert_eq!(fs::read_to_string(serve.data("file")).unwrap(), "again");
    let _ = fs::remove_dir_all(old_run_dir);
}

/// Its last words, after what the daemon logged.
fn refused_by_daemon(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(14), "{said}");
    let last = said.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
    assert!(last.starts_with("usrbiod: ") && last.contains("stop the other one"), "{said}");
}

#[test]
fn a_folder_that_another_daemon_serves_is_refused_until_that_one_is_gone() {
    let first = Serve::start(&[]);
    fs::create_dir(first.data("inside")).unwrap();
    let other = layout();
    let mnt = other.path().join("mnt");
    for dir in [first.data(""), first.data("inside"), first.dir.path().to_owned()] {
        let output = usrbiod(&["serve", dir.to_str().unwrap(), mnt.to_str().unwrap()]);
        refused_by_daemon(&output);
        assert!(mounted_at(&mnt).unwrap().is_empty());
    }
    fs::write(first.mnt("f"), "served").unwrap();
    let dir = first.data("");
    first.kill_daemon();
    fs::write(first.mnt("g"), "served by its successor").unwrap();
    refused_by_daemon(&usrbiod(&["serve", dir.to_str().unwrap(), mnt.to_str().unwrap()]));
}

#[test]
fn a_mount_point_in_use_is_refused() {
    let serve = Serve::start(&[]);
    let output = command(serve.dir.path()).output().unwrap();
    refused(&output, 9, "fuse.hf3fs mount");
    fs::write(serve.mnt("file"), "still served").unwrap();
}

#[test]
fn a_daemon_that_dies_again_and_again_is_given_up() {
    let mut serve = Serve::start(&[]);
    let id = serve.child.id();
    let mut status = None;
    wait_until("serve to give up", || {
        let daemon = serve.daemon().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = daemon {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::ABORT);
        }
        status = serve.child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(15));
    assert!(serve.mounts().is_empty());
    assert!(!PathBuf::from(format!("/run/usrbiod.{id}")).exists());
}
