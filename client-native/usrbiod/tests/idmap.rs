//! A mount that is mapped into a user namespace, as the volumes of a pod with `hostUsers: false` are.

mod fuse_mount;

use fuse_mount::{Mount, Setup, mount};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Ids 0 to 65 535 of the namespace are these on the host.
const FIRST: u32 = 500_000;

/// A user namespace, kept by a process.
struct UserNamespace(Child);

impl UserNamespace {
    fn new() -> UserNamespace {
        let mut keeper = Command::new("unshare");
        // `cat` starts once the namespace is there, and ends with its standard input.
        let mut child =
            keeper.args(["--user", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        io::Write::write_all(child.stdin.as_mut().unwrap(), b"x").unwrap();
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {FIRST} 65536")).unwrap();
        }
        UserNamespace(child)
    }

    fn open(&self) -> File {
        File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap()
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The mount once more, mapped; unmounted when dropped.
struct Mapped(TempDir);

impl Mapped {
    fn of(m: &Mount, namespace: &UserNamespace) -> io::Result<Mapped> {
        let tree = rustix::mount::open_tree(
            rustix::fs::CWD,
            m.path(""),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        map(&tree, &namespace.open())?;
        let point = TempDir::new()?;
        fs::set_permissions(point.path(), PermissionsExt::from_mode(0o755))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", rustix::fs::CWD, point.path(), flags)?;
        Ok(Mapped(point))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// `mount_setattr(2)`, which rustix does not have.
fn map(tree: &OwnedFd, namespace: &File) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    // SAFETY: the path is a C string, the structure is as long as said; both outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs a shell command as a user of the namespace.
fn shell(uid: u32, dir: &Path, script: &str) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(dir).stderr(Stdio::null());
    shell.uid(FIRST + uid).gid(FIRST + uid).status().unwrap().success()
}

fn owner(path: &Path) -> (u32, u32) {
    let found = path.symlink_metadata().unwrap();
    (found.uid(), found.gid())
}

#[test]
fn users_of_the_namespace_own_what_they_make_under_their_ids_inside_it() {
    let m = mount(Setup { idmap: true, ..Setup::default() });
    fs::set_permissions(m.backing(""), PermissionsExt::from_mode(0o1777)).unwrap();
    let namespace = UserNamespace::new();
    let mapped = Mapped::of(&m, &namespace).unwrap();
    assert!(shell(
        1000,
        &mapped.path(""),
        "echo x > file && mkdir dir && ln -s file link && mkfifo pipe && ln file hard"
    ));
    for name in ["file", "dir", "link", "pipe"] {
        assert_eq!(owner(&m.backing(name)), (1000, 1000), "{name}");
        assert_eq!(owner(&mapped.path(name)), (FIRST + 1000, FIRST + 1000), "{name}");
    }
    assert!(shell(1000, &mapped.path(""), "cat file && echo y >> file && mv file dir/ && rm dir/file pipe"));
    assert!(!shell(1001, &mapped.path(""), "rm hard"), "another user's, in a sticky directory");
    assert!(!shell(1001, &mapped.path(""), "echo z >> hard"));
    assert_eq!(fs::read_to_string(m.path("hard")).unwrap(), "x\ny\n");
}

#[test]
fn a_session_that_did_not_ask_for_it_cannot_be_mapped() {
    let m = mount(Setup::default());
    let refused = Mapped::of(&m, &UserNamespace::new()).err().expect("the kernel refuses");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
}
