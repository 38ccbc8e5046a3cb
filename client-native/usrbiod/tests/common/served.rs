//! `usrbiod serve` of a temporary directory.

use super::{binary, disk_dir, mounted, open_to_everybody, terminate};
use rustix::process::{Pid, Signal};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

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
        let mut child = binary()
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

    /// A directory that every user may write to.
    pub fn for_everybody() -> Served {
        Served::for_everybody_with(&[])
    }

    /// The same, with further arguments.
    pub fn for_everybody_with(args: &[&str]) -> Served {
        let dir = tempfile::tempdir().unwrap();
        open_to_everybody(dir.path());
        let served = Served::start(dir, args);
        std::fs::set_permissions(served.backing(), PermissionsExt::from_mode(0o777)).unwrap();
        served
    }

    /// A path in the mount.
    pub fn at(&self, path: &str) -> PathBuf {
        self.mount().join(path)
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
        terminate(&mut self.child).success()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A test that failed may have left it in any state.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
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
