//! What the backing file system says is what a caller is told, and what it keeps for root stays there.

mod fuse_mount;

use fuse_mount::{Mount, Setup, mount, mount_of};
use rustix::fs::{IFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::{NamedTempFile, TempDir};

/// An ext4 of its own that keeps a fifth for root, and its mount.
struct Ext4 {
    mount: Option<Mount>,
    at: PathBuf,
    _image: NamedTempFile,
}

impl Ext4 {
    fn new(passthrough: bool) -> Ext4 {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(64 << 20).unwrap();
        let backing = TempDir::new().unwrap();
        let at = backing.path().to_owned();
        succeed(Command::new("mkfs.ext4").args(["-q", "-m", "20"]).arg(image.path()));
        succeed(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(&at));
        let mut ext4 = Ext4 { mount: None, at, _image: image };
        ext4.mount = Some(mount_of(backing, Setup { passthrough, ..Setup::default() }));
        ext4
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.as_ref().unwrap().path(name)
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        self.mount = None;
    }
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn users_do_not_fill_what_the_file_system_keeps_for_root() {
    for passthrough in [true, false] {
        let ext4 = Ext4::new(passthrough);
        let mut file = File::create(ext4.path("f")).unwrap();
        let chunk = vec![1; 256 << 10];
        let full = (0..1000).find_map(|_| file.write_all(&chunk).and_then(|()| file.sync_data()).err());
        assert_eq!(full.and_then(|error| Errno::from_io_error(&error)), Some(Errno::NOSPC));
        let left = rustix::fs::statvfs(&ext4.at).unwrap();
        assert!(left.f_bfree * 8 > left.f_blocks, "{passthrough}: {} of {}", left.f_bfree, left.f_blocks);
    }
}

#[test]
fn a_read_only_file_system_below_is_said_to_be_one() {
    for passthrough in [true, false] {
        let ext4 = Ext4::new(passthrough);
        let at = |name| ext4.path(name);
        for name in ["f", "open"] {
            fs::write(at(name), "x").unwrap();
        }
        let _reader = File::open(at("open")).unwrap();
        succeed(Command::new("mount").args(["-o", "remount,ro"]).arg(&ext4.at));
        for name in ["f", "open"] {
            let path = at(name);
            let answers = [
                errno(OpenOptions::new().write(true).open(&path)),
                errno(OpenOptions::new().append(true).open(&path)),
                errno(OpenOptions::new().write(true).truncate(true).open(&path)),
                errno(fs::remove_file(&path)),
                errno(fs::rename(&path, at("new"))),
                errno(fs::hard_link(&path, at("new"))),
                errno(fs::set_permissions(&path, PermissionsExt::from_mode(0o600))),
                errno(std::os::unix::fs::chown(&path, Some(1), None)),
                rustix::fs::setxattr(&path, "user.x", b"", XattrFlags::empty()).err(),
                errno(File::create(at("new"))),
                errno(fs::create_dir(at("new"))),
                errno(symlink("x", at("new"))),
            ];
            assert_eq!(answers, [Some(Errno::ROFS); 12], "{passthrough}: {name}");
            assert_eq!(fs::read(&path).unwrap(), b"x");
        }
    }
}

#[test]
fn a_file_that_may_not_be_changed_says_so() {
    for passthrough in [true, false] {
        let ext4 = Ext4::new(passthrough);
        fs::write(ext4.path("f"), "x").unwrap();
        let _reader = File::open(ext4.path("f")).unwrap();
        let below = File::open(ext4.at.join("f")).unwrap();
        rustix::fs::ioctl_setflags(&below, IFlags::IMMUTABLE).unwrap();
        assert_eq!(errno(OpenOptions::new().write(true).open(ext4.path("f"))), Some(Errno::PERM));
        rustix::fs::ioctl_setflags(&below, IFlags::empty()).unwrap();
        OpenOptions::new().write(true).open(ext4.path("f")).unwrap();
    }
}

/// Names of the attributes of `file`, as python sees them with these words in front.
fn names(before: &[&str], file: &Path) -> String {
    let script = "import os, sys; print(sorted(os.listxattr(sys.argv[1])))";
    let mut command = Command::new("setpriv");
    succeed(command.args(before).args(["python3", "-c", script]).arg(file)).trim().to_owned()
}

#[test]
fn trusted_attributes_are_named_to_administrators_only() {
    let mount = mount(Setup::default());
    fs::write(mount.path("f"), "").unwrap();
    for name in ["trusted.ours", "user.theirs"] {
        rustix::fs::setxattr(mount.backing("f"), name, b"", XattrFlags::empty()).unwrap();
    }
    let admin = names(&["--"], &mount.path("f"));
    assert!(admin.contains("trusted.ours") && admin.contains("user.theirs"), "{admin}");
    let others = names(&["--bounding-set=-sys_admin", "--"], &mount.path("f"));
    assert_eq!(others, "['user.theirs']");
}
