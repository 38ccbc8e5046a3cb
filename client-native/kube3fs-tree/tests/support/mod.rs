#![allow(dead_code, reason = "each test uses a part of it")]
//! The program as the node plugin starts it, and trees to start it on. As root.

use rustix::fs::{Mode, OFlags, RenameFlags};
use rustix::io::FdFlags;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the program said last.
pub struct Ended {
    pub status: i32,
    pub last: Value,
}

impl Ended {
    /// What it did.
    pub fn done(self) -> Value {
        assert_eq!(self.status, 0, "{}", self.last);
        self.last["done"].clone()
    }
}

/// Runs the program on open directories.
pub fn run(command: &str, trees: &[&Path], more: &[&str]) -> Ended {
    let fds: Vec<OwnedFd> = trees.iter().map(|tree| open(tree)).collect();
    let mut program = Command::new(env!("CARGO_BIN_EXE_kube3fs-tree"));
    program.arg(command);
    for fd in &fds {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
        program.arg(fd.as_raw_fd().to_string());
    }
    let output = program.args(more).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let last = told.lines().last().unwrap_or_default();
    let last = serde_json::from_str(last).unwrap_or_else(|error| {
        panic!("{error}: {last:?}, {}", String::from_utf8_lossy(&output.stderr));
    });
    Ended { status: output.status.code().unwrap(), last }
}

pub fn open(path: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).unwrap()
}

/// Makes `levels` directories within one another, each called `name`, and a file in the last.
pub fn nest(top: &Path, name: &str, levels: usize) {
    let mut here = open(top);
    for _ in 0..levels {
        rustix::fs::mkdirat(&here, name, Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        here = rustix::fs::openat(&here, name, flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&here, "bottom", flags, Mode::RUSR).unwrap();
    rustix::io::write(file, b"bottom").unwrap();
}

/// Calls `change` again and again while `walk` runs.
pub fn while_it_changes<T>(mut change: impl FnMut() + Send, walk: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                change();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(walk));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Exchanges two names, whatever they are; that one is not there now does not matter.
pub fn exchange(one: &Path, other: &Path) {
    let cwd = rustix::fs::CWD;
    let _ = rustix::fs::renameat_with(cwd, one, cwd, other, RenameFlags::EXCHANGE);
}

/// Everything below `top` by its path: what it is, and the number of the first path with the same inode.
pub fn seen(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in std::iter::once(folder.clone()).chain(entries) {
            let meta = path.symlink_metadata().unwrap();
            let relative = path.strip_prefix(top).unwrap().to_owned();
            let same = first.entry(meta.ino()).or_insert_with(|| relative.clone()).clone();
            let content = if meta.is_file() {
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
            } else if meta.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else {
                String::new()
            };
            let looks = format!(
                "{:o} {}:{} {}.{} {} {same:?} {:?} {content:?}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                if meta.is_dir() { 0 } else { meta.nlink() },
                attributes(&path)
            );
            if meta.is_dir() && path != folder {
                folders.push(path);
            }
            found.insert(relative, looks);
        }
    }
    found
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, CString::new(name).unwrap(), &mut value).unwrap();
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Does any file below `top` hold these bytes?
pub fn holds(top: &Path, bytes: &[u8]) -> bool {
    let pattern = std::ffi::OsStr::from_bytes(bytes);
    Command::new("grep")
        .args(["-r", "-F", "-q", "-a", "-e"])
        .arg(pattern)
        .arg(top)
        .status()
        .unwrap()
        .success()
}
