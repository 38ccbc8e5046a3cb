//! What integration tests share: a daemon that serves a temporary directory, and waits with a deadline.

#![allow(dead_code)] // each test binary uses its own part

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Waits until `done` holds; panics with `what` after 20 s.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A temporary directory on a disk file system (`cargo` makes its parent below `target/`).
pub fn disk_dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

/// `usrbiod serve` of a temporary directory, unmounted and removed when dropped.
pub struct Served {
    child: Child,
    dir: TempDir,
}

impl Served {
    /// Serves a new directory below `parent` with further arguments, and waits until it is mounted.
    pub fn start(dir: TempDir, args: &[&str]) -> Served {
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_usrbiod"))
            .arg("serve")
            .args([dir.path().join("data"), dir.path().join("mnt")])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("usrbiod starts");
        let mut ready = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        let served = Served { child, dir };
        assert!(ready.starts_with("serving "), "usrbiod says: {ready:?}");
        served
    }

    /// On disk, with passthrough.
    pub fn on_disk() -> Served {
        Served::start(disk_dir(), &[])
    }

    /// The mount point.
    pub fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The backing directory.
    pub fn backing(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Process id of `usrbiod serve`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it as a user would; true when it left with exit code 0.
    pub fn stop(&mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return false;
                }
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
        if mounted(&self.mount()) {
            let _ = rustix::mount::unmount(self.mount(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The example program `verify` of the client crate on `file`: ring I/O that checks every byte.
pub fn verify_client(file: &Path) -> Command {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/verify");
    assert!(program.exists(), "{program:?} is missing; `cargo test --workspace` builds it");
    let mut command = Command::new(program);
    command.arg(file);
    command
}

/// Is something mounted at `path`?
pub fn mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// Runs a command to its end, killing it after `seconds`.
pub fn run(seconds: u32, command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    let mut bounded = Command::new("timeout");
    bounded.arg("--kill-after=5").arg(seconds.to_string()).arg(&program).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        bounded.current_dir(dir);
    }
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            bounded.env(key, value);
        }
    }
    bounded.output().unwrap_or_else(|e| panic!("{program:?}: {e}; `make deps` installs what tests need"))
}

/// Runs a command that must succeed; its standard output.
#[track_caller]
pub fn succeed(seconds: u32, command: &mut Command) -> String {
    let output = run(seconds, command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
