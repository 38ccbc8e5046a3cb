//! A daemon process in a directory of its own, and a peer for it.
#![allow(dead_code, reason = "each test file uses a part")]

use serde_json::Value;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use usrbiod::control::socket::Seqpacket;

/// Nothing takes this long.
pub const LONG: Duration = Duration::from_secs(20);

/// Control sockets, mounts and rings need root; elsewhere such tests say so and pass.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what} in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn binary() -> Command {
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

/// Sends bytes and waits for one message.
pub fn exchange(socket: &Seqpacket, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> (Value, Vec<OwnedFd>) {
    socket.send_within(bytes, fds, LONG).unwrap();
    receive(socket)
}

/// Waits for one message.
pub fn receive(socket: &Seqpacket) -> (Value, Vec<OwnedFd>) {
    let message = socket.recv_within(LONG).unwrap().expect("the daemon hung up");
    (serde_json::from_slice(&message.bytes).unwrap(), message.fds)
}

/// Sends a request and waits for one message.
pub fn request(socket: &Seqpacket, value: &Value, fds: &[BorrowedFd<'_>]) -> (Value, Vec<OwnedFd>) {
    exchange(socket, value.to_string().as_bytes(), fds)
}

/// `usrbiod daemon` with its files in a temporary directory.
pub struct DaemonProcess {
    dir: tempfile::TempDir,
    child: Child,
}

impl DaemonProcess {
    pub fn start() -> DaemonProcess {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(dir.path());
        let daemon = DaemonProcess { dir, child };
        daemon.wait_ready();
        daemon
    }

    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path());
        self.wait_ready();
    }

    /// Another daemon, with its own sockets and the same state directory.
    pub fn successor(&self) -> DaemonProcess {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(self.state_dir(), dir.path().join("state")).unwrap();
        let child = spawn(dir.path());
        let daemon = DaemonProcess { dir, child };
        daemon.wait_ready();
        daemon
    }

    fn wait_ready(&self) {
        wait_until("the control socket", || Seqpacket::connect(&self.socket()).is_ok());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn connect(&self) -> Seqpacket {
        Seqpacket::connect(&self.socket()).unwrap()
    }

    /// Files, directories, devices and sockets that the daemon has open; not its io_urings, timers and the like, which
    /// its threads open at a time of their own.
    pub fn open_fds(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        targets.filter(|target| !target.as_os_str().as_encoded_bytes().starts_with(b"anon_inode:")).count()
    }

    pub fn open_to_everybody(&self) {
        open_to_everybody(self.dir.path());
        std::fs::set_permissions(self.socket(), PermissionsExt::from_mode(0o666)).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&mut self) -> ExitStatus {
        terminate(&mut self.child)
    }

    pub fn http_get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("metrics")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Child {
    let mut command = binary();
    command.arg("daemon").arg("--socket").arg(dir.join("control"));
    command.arg("--state-dir").arg(dir.join("state")).arg("--metrics").arg(dir.join("metrics"));
    command.spawn().unwrap()
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
