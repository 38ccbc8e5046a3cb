//! What the integration tests share: waits with a deadline, programs with a time limit, the daemon as a process
//! (`daemon`) and a served directory (`served`).
#![allow(dead_code, reason = "each test file uses a part")]

pub mod daemon;
pub mod ioctls;
pub mod served;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Nothing takes this long.
pub const LONG: Duration = Duration::from_secs(20);

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The daemon's program. Control sockets, mounts and rings need root.
pub fn binary() -> Command {
    assert!(rustix::process::geteuid().is_root(), "these tests need root");
    let mut command = Command::new(env!("CARGO_BIN_EXE_usrbiod"));
    command.stdin(Stdio::null());
    command
}

/// Runs the command to its end.
pub fn usrbiod(args: &[&str]) -> Output {
    binary().args(args).output().unwrap()
}

/// Runs the command to its end as another user. The binary is copied to where that user may reach it.
pub fn as_nobody(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("usrbiod");
    std::fs::copy(env!("CARGO_BIN_EXE_usrbiod"), &copy).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    Command::new(copy).args(args).uid(65534).gid(65534).output().unwrap()
}

/// Lets everybody look into a temporary directory.
pub fn open_to_everybody(dir: &Path) {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
}

/// A temporary directory on a disk file system (`cargo` makes its parent below `target/`).
pub fn disk_dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
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

/// Ends a process with SIGTERM.
pub fn terminate(child: &mut Child) -> ExitStatus {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut status = None;
    wait_until("the process to end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}
