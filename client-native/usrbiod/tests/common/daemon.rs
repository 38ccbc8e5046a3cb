//! A daemon process in a directory of its own, and a peer for it.

use super::{LONG, binary, open_to_everybody, terminate, wait_until};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use usrbiod::control::socket::Seqpacket;

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
