//! `3fs-virt` and the ioctls through a real mount, by several users.

mod common;

use common::ioctls::{call, call_without, field, ino, last_errno, make_file, names, number, refused};
use common::served::Served;
use common::wait_until;
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use usrbio_wire::ioctl::{self, HardlinkArg, MoveArg, PUNCH_HOLE_MAX, PunchHoleArg, RemoveArg};
use usrbiod::sys::creds::Scope;
use zerocopy::{FromZeros, IntoBytes};

const USER: u32 = 4321;
const OTHER: u32 = 4322;

/// A file in `/dev/shm`, removed when dropped. It stays open, as a client's does: daemons sweep what nobody uses.
struct Shm(PathBuf, #[expect(dead_code, reason = "held open")] File);

impl Shm {
    fn new(uid: u32) -> Shm {
        let path = PathBuf::from(format!("/dev/shm/hf3fs-iov-{}", uuid::Uuid::new_v4()));
        let file = File::create(&path).unwrap();
        file.set_len(1 << 16).unwrap();
        chown(&path, Some(uid), Some(uid)).unwrap();
        Shm(path, file)
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs `work` on a thread with the file system ids of `uid`.
fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        let _ids = Scope::unprivileged(uid, uid).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn the_tree_has_the_numbers_and_permissions_of_3fs() {
    let served = Served::for_everybody();
    let expected = [
        ("3fs-virt", 0xffff_ffff_ffff_fffe_u64, 0o40555),
        ("3fs-virt/rm-rf", 0xffff_ffff_ffff_fffd, 0o40777),
        ("3fs-virt/iovs", 0xffff_ffff_8000_0000, 0o40777),
        ("3fs-virt/get-conf", 0xffff_ffff_0000_0000, 0o40555),
        ("3fs-virt/set-conf", 0xffff_fffe_8000_0000, 0o40777),
        ("3fs-virt/iovs/submit-ios.ph", 0xffff_ffff_7fff_ffff, 0o120666),
    ];
    for (path, number, mode) in expected {
        let stat = fs::symlink_metadata(served.at(path)).unwrap();
        assert_eq!((stat.ino(), stat.mode()), (number, mode), "{path}");
    }
    assert_eq!(names(&served.at("")), [""; 0], "found by its name only");
    for link in ["submit-ios", "submit-ios.pl"] {
        let target = fs::read_link(served.at("3fs-virt/iovs").join(link)).unwrap();
        assert!(target.starts_with("/dev/shm") && target.exists(), "{target:?}");
    }
    refused(fs::create_dir(served.at("3fs-virt/x")), Errno::PERM);
    refused(File::create(served.at("3fs-virt/iovs/x")), Errno::PERM);
    refused(fs::remove_dir(served.at("3fs-virt/iovs")), Errno::PERM);
    refused(fs::remove_file(served.at("3fs-virt/iovs/submit-ios")), Errno::PERM);
    refused(fs::rename(served.at("3fs-virt/iovs"), served.at("x")), Errno::PERM);
    refused(fs::set_permissions(served.at("3fs-virt/iovs"), PermissionsExt::from_mode(0o700)), Errno::PERM);
}

#[test]
fn an_iov_is_its_owners_and_nobody_elses() {
    let served = Served::for_everybody();
    let shm = Shm::new(USER);
    let iovs = served.at("3fs-virt/iovs");
    let key = uuid::Uuid::new_v4().to_string();
    let link = iovs.join(&key);
    as_user(USER, || symlink(&shm.0, &link)).unwrap();
    let stat = as_user(USER, || fs::symlink_metadata(&link)).unwrap();
    assert_eq!((stat.mode(), stat.uid(), stat.gid()), (0o120400, USER, USER));
    assert_eq!(stat.len() as usize, shm.0.as_os_str().len());
    assert_eq!(as_user(USER, || fs::read_link(&link)).unwrap(), shm.0);
    refused(as_user(USER, || symlink(&shm.0, &link)), Errno::EXIST);

    refused(as_user(OTHER, || fs::read_link(&link)), Errno::PERM);
    refused(as_user(OTHER, || fs::remove_file(&link)), Errno::PERM);
    assert_eq!(as_user(OTHER, || names(&iovs)).len(), 3);
    for uid in [USER, 0] {
        // Listing opens and closes the directory: it is no sign that the client has gone.
        assert!(as_user(uid, || names(&iovs)).contains(&key));
    }
    as_user(USER, || fs::remove_file(&link)).unwrap();
    refused(as_user(USER, || fs::read_link(&link)), Errno::NOENT);
}

#[test]
fn names_and_targets_that_are_none_are_refused() {
    let served = Served::for_everybody();
    let shm = Shm::new(0);
    let iovs = served.at("3fs-virt/iovs");
    let id = uuid::Uuid::new_v4().to_string();
    let with = |name: String| symlink(&shm.0, iovs.join(name));
    refused(with("no-uuid".into()), Errno::IO);
    refused(with(format!("{id}.gdr.d0")), Errno::OPNOTSUPP);
    refused(with(format!("{id}.b0")), Errno::INVAL);
    refused(with(format!("{id}.t5")), Errno::INVAL);
    refused(symlink("/etc/passwd", iovs.join(&id)), Errno::INVAL);
    refused(symlink("relative", iovs.join(&id)), Errno::INVAL);
    refused(symlink("/dev/shm/none-of-this-name", iovs.join(&id)), Errno::ACCESS);
    assert_eq!(names(&iovs).len(), 3);
}

#[test]
fn what_a_process_registered_goes_with_it() {
    let served = Served::for_everybody();
    let shm = Shm::new(0);
    let link = served.at("3fs-virt/iovs").join(uuid::Uuid::new_v4().to_string());
    // The process that registers is `ln`, which has ended when this returns.
    assert!(Command::new("ln").arg("-s").args([&shm.0, &link]).status().unwrap().success());
    wait_until("the Iov of a dead process to go", || fs::symlink_metadata(&link).is_err());
    wait_until("its memory to go", || !shm.0.exists());
}

#[test]
fn a_key_can_be_set_twice_and_readonly_acts() {
    let served = Served::for_everybody();
    let set = |uid, key: &str, value: &str| {
        let link = served.at("3fs-virt/set-conf").join(key);
        as_user(uid, || symlink(value, link))
    };
    let get =
        |uid, key: &str| as_user(uid, || fs::read_link(served.at("3fs-virt/get-conf").join(key))).unwrap();
    for value in ["true", "false", "true"] {
        set(USER, "usr.readonly", value).unwrap();
        assert_eq!(get(USER, "usr.readonly"), Path::new(value));
        assert_eq!(get(OTHER, "usr.readonly"), Path::new("false"));
    }
    let file = served.at("file");
    refused(as_user(USER, || fs::write(&file, "x")), Errno::ROFS);
    as_user(OTHER, || fs::write(&file, "x")).unwrap();
    refused(as_user(USER, || symlink(&file, served.at("3fs-virt/rm-rf/x"))), Errno::ROFS);
    refused(set(USER, "sys.max_jobs_per_ioring", "8"), Errno::PERM);
    set(0, "sys.max_jobs_per_ioring", "8").unwrap();
    assert_eq!(get(USER, "sys.max_jobs_per_ioring"), Path::new("8"));
    refused(set(0, "sys.max_jobs_per_ioring", "x"), Errno::INVAL);
    refused(set(0, "usr.nothing", "x"), Errno::INVAL);
}

#[test]
fn a_link_in_rm_rf_removes_a_tree_with_the_callers_permissions() {
    let served = Served::for_everybody();
    let order = |uid, target: &Path| as_user(uid, || symlink(target, served.at("3fs-virt/rm-rf/x")));
    make_file(&served, "tree/a/b/file");
    refused(order(USER, &served.at("tree")), Errno::ACCESS);
    assert!(served.at("tree/a/b/file").exists());
    for _ in 0..2 {
        make_file(&served, "tree/a/b/file");
        order(0, &served.at("tree")).unwrap();
        refused(fs::metadata(served.at("tree")), Errno::NOENT);
    }
    refused(order(0, Path::new("tree")), Errno::INVAL);
    refused(order(0, Path::new("/etc")), Errno::INVAL);
    refused(order(0, &served.at("../data/x")), Errno::INVAL);
    refused(order(0, &served.at("")), Errno::INVAL);
    refused(order(0, &served.at("3fs-virt/iovs")), Errno::PERM);
    refused(order(0, &served.at("none")), Errno::NOENT);
}

#[test]
fn a_path_may_name_the_mount_wherever_the_caller_sees_it() {
    let served = Served::for_everybody();
    make_file(&served, "part/tree/file");
    let place = tempfile::tempdir().unwrap();
    rustix::mount::mount_bind(served.at("part"), place.path()).unwrap();
    let removed = symlink(place.path().join("tree"), served.at("3fs-virt/rm-rf/x"));
    rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let fds = fs::read_dir(format!("/proc/{}/fdinfo", served.pid())).unwrap();
    let told =
        fds.filter_map(|fd| fs::read_to_string(fd.ok()?.path()).ok()).any(|i| i.contains("fuse_connection"));
    if told {
        removed.unwrap();
        assert!(!served.at("part/tree").exists());
    } else {
        // An older kernel: the daemon cannot tell which mounts are its own.
        refused(removed, Errno::INVAL);
    }
}

#[test]
fn a_blank_typed_by_mistake_does_not_remove_the_wrong_tree() {
    let served = Served::for_everybody();
    make_file(&served, "my/file");
    make_file(&served, "my data/file");
    let ln = |targets: &[&Path]| {
        Command::new("ln")
            .arg("-s")
            .args(targets)
            .arg(served.at("3fs-virt/rm-rf/"))
            .status()
            .unwrap()
            .success()
    };
    assert!(!ln(&[&served.at("my"), Path::new("data")]));
    assert!(served.at("my/file").exists());
    assert!(ln(&[&served.at("my data")]));
    assert!(!served.at("my data").exists() && served.at("my/file").exists());
}

#[test]
fn a_directory_moved_to_rm_rf_is_removed() {
    let served = Served::for_everybody();
    for _ in 0..2 {
        make_file(&served, "tree/a/file");
        fs::rename(served.at("tree"), served.at("3fs-virt/rm-rf/tree")).unwrap();
        assert!(!served.at("tree").exists() && !served.backing().join("tree").exists());
    }
    make_file(&served, "tree/a/file");
    fs::set_permissions(served.at("tree/a"), PermissionsExt::from_mode(0o755)).unwrap();
    chown(served.at("tree"), Some(USER), None).unwrap();
    let moved = as_user(USER, || fs::rename(served.at("tree"), served.at("3fs-virt/rm-rf/tree")));
    refused(moved, Errno::ACCESS);
    assert!(served.at("tree/a/file").exists());
    refused(fs::rename(served.at("tree"), served.at("3fs-virt/iovs/tree")), Errno::PERM);
}

#[test]
fn a_link_to_mv_is_a_link_like_others() {
    let served = Served::for_everybody();
    let target = format!("mv:{}", make_file(&served, "a/file").display());
    symlink(&target, served.at("latest")).unwrap();
    assert_eq!(fs::read_link(served.at("latest")).unwrap(), Path::new(&target));
    assert!(served.at("a/file").exists());
    refused(symlink(&target, served.at("3fs-virt/rm-rf/x")), Errno::INVAL);
}

#[test]
fn a_link_to_mv_renames_where_orders_are_taken() {
    let served = Served::for_everybody_with(&["--orders"]);
    let order = |from: &Path, to: &str| symlink(format!("mv:{}", from.display()), served.at(to));
    let file = make_file(&served, "a/file");
    order(&file, "moved").unwrap();
    wait_until("the new name", || fs::read(served.at("moved")).is_ok_and(|d| d == b"x"));
    wait_until("the old name to go", || !file.exists());
    make_file(&served, "beside/one");
    order(&served.at("beside/one"), "beside/two").unwrap();
    wait_until("the names of one directory", || names(&served.at("beside")) == ["two"]);
    refused(order(&served.at("moved"), "beside/two"), Errno::EXIST);
    refused(order(Path::new("/etc/passwd"), "passwd"), Errno::INVAL);
    refused(as_user(USER, || order(&served.at("beside/two"), "three")), Errno::ACCESS);
}

#[test]
fn every_node_says_what_file_system_it_is() {
    let served = Served::for_everybody();
    make_file(&served, "file");
    for path in ["file", "", "3fs-virt", "3fs-virt/iovs"] {
        let fd = File::open(served.at(path)).unwrap();
        assert_eq!(number(&fd, ioctl::GET_MAGIC_NUM), ioctl::SUPER_MAGIC);
        assert_eq!(number(&fd, ioctl::GET_IOCTL_VERSION), 1);
        assert_eq!(number(&fd, ioctl::GET_PATH_OFFSET) as usize, served.mount().as_os_str().len());
        let mut name = [0xff; 32];
        call(&fd, ioctl::GET_MOUNT_NAME, &mut name).unwrap();
        assert_eq!(name[31], 0);
        assert_eq!(call(&fd, 0x8004_6809, &mut [0; 4]), Err(Errno::INVAL));
    }
}

#[test]
fn fsync_needs_no_place_for_an_answer_and_shows_the_exact_length() {
    let served = Served::for_everybody();
    let path = make_file(&served, "file");
    let fd = File::open(&path).unwrap();
    assert_eq!(fd.metadata().unwrap().len(), 1);
    fs::write(served.backing().join("file"), "longer than before").unwrap();
    call_without(&fd, ioctl::FSYNC).unwrap();
    assert_eq!(fd.metadata().unwrap().len(), 18);
    call_without(File::open(served.at("")).unwrap(), ioctl::FSYNC).unwrap();
    call_without(File::open(served.at("3fs-virt")).unwrap(), ioctl::FSYNC).unwrap();
}

#[test]
fn hardlink_links_where_the_caller_may() {
    let served = Served::for_everybody();
    let fd = File::open(make_file(&served, "a/file")).unwrap();
    fs::set_permissions(served.at("a"), PermissionsExt::from_mode(0o755)).unwrap();
    let link = |parent, name| {
        let mut arg = HardlinkArg { parent, name: field(name), pad: b' ' };
        call(&fd, ioctl::HARDLINK, arg.as_mut_bytes())
    };
    link(1, "in-root").unwrap();
    link(ino(&served.at("a")), "beside").unwrap();
    assert_eq!(fd.metadata().unwrap().nlink(), 3);
    assert_eq!(ino(&served.at("in-root")), fd.metadata().unwrap().ino());
    assert_eq!(link(1, "in-root"), Err(Errno::EXIST));
    assert_eq!(link(1, "a/x"), Err(Errno::INVAL));
    assert_eq!(link(1, ".."), Err(Errno::INVAL));
    assert_eq!(link(1, "3fs-virt"), Err(Errno::PERM));
    assert_eq!(link(u64::MAX >> 8, "x"), Err(Errno::NOENT));
    // Whose file it is matters to `fs.protected_hardlinks`, whose directory it is always.
    chown(served.at("a/file"), Some(USER), None).unwrap();
    assert_eq!(as_user(USER, || link(ino(&served.at("a")), "users")), Err(Errno::ACCESS));
    let mut unended = HardlinkArg { parent: 1, name: [b'x'; 255], pad: b'x' };
    assert_eq!(call(&fd, ioctl::HARDLINK, unended.as_mut_bytes()), Err(Errno::INVAL));
}

#[test]
fn punch_hole_takes_whole_chunks_by_an_fd_that_may_write() {
    let served = Served::for_everybody();
    let path = served.at("file");
    fs::write(&path, vec![7; 5 * 4096]).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let fd = File::options().write(true).open(&path).unwrap();
    let reading = File::open(&path).unwrap();
    let punch_by = |fd: &File, n, ranges: &[(u64, u64)]| {
        let mut arg = PunchHoleArg::new_zeroed();
        arg.n = n;
        for (i, (start, end)) in ranges.iter().enumerate() {
            (arg.start[i], arg.end[i]) = (*start, *end);
        }
        call(fd, ioctl::PUNCH_HOLE, arg.as_mut_bytes())
    };
    assert_eq!(punch_by(&reading, 1, &[(0, 4096)]), Err(Errno::BADF));
    let punch = |n, ranges: &[(u64, u64)]| punch_by(&fd, n, ranges);
    punch(3, &[(4096, 8192), (0, 0), (12288, 16384)]).unwrap();
    let data = fs::read(&path).unwrap();
    let chunks: Vec<bool> = data.chunks(4096).map(|c| c.iter().all(|b| *b == 7)).collect();
    assert_eq!((data.len(), chunks), (5 * 4096, vec![true, false, true, false, true]));
    for (n, range) in [
        (1, (1, 4096)),
        (1, (0, 4095)),
        (1, (8192, 4096)),
        (1, (0, 1 << 63)),
        (-1, (0, 4096)),
        (PUNCH_HOLE_MAX as i32 + 1, (0, 4096)),
    ] {
        assert_eq!(punch(n, &[range]), Err(Errno::INVAL), "{n} {range:?}");
    }
    punch(PUNCH_HOLE_MAX as i32, &[]).unwrap();
}

#[test]
fn move_and_remove_do_what_hf3fs_cli_needs() {
    let served = Served::for_everybody();
    let tree = |path: &str| {
        make_file(&served, &format!("{path}/a/file"));
        chown(served.at(path), Some(USER), Some(USER)).unwrap();
        chown(served.at(path).join("a"), Some(USER), Some(USER)).unwrap();
    };
    tree("home/data");
    chown(served.at("home"), Some(USER), Some(USER)).unwrap();
    fs::create_dir_all(served.at("trash/user")).unwrap();
    chown(served.at("trash/user"), Some(USER), Some(USER)).unwrap();
    let (home, trash) =
        (File::open(served.at("home")).unwrap(), File::open(served.at("trash/user")).unwrap());
    let mv = |fd: &File, from: &Path, old: &str, to: &Path, new: &str| {
        let (src_name, dst_name) = (field(old), field(new));
        let (src_parent, dst_parent) = (ino(from), ino(to));
        let mut arg = MoveArg { src_parent, src_name, dst_parent, dst_name, to_trash: 1, pad: [b' '; 7] };
        call(fd, ioctl::MOVE, arg.as_mut_bytes())
    };
    let rm = |fd: &File, parent: u64, name: &str, recursive: u8| {
        let mut arg = RemoveArg { parent, name: field(name), recursive, pad: [b' '; 7] };
        call(fd, ioctl::REMOVE, arg.as_mut_bytes())
    };
    let (home_dir, trash_dir) = (served.at("home"), served.at("trash/user"));
    assert_eq!(as_user(OTHER, || mv(&home, &home_dir, "data", &trash_dir, "x")), Err(Errno::ACCESS));
    assert_eq!(mv(&trash, &home_dir, "data", &trash_dir, "x"), Err(Errno::INVAL), "the fd is not the parent");
    as_user(USER, || mv(&home, &home_dir, "data", &trash_dir, "data-1")).unwrap();
    assert_eq!((names(&home_dir), names(&trash_dir)), (vec![], vec!["data-1".to_owned()]));

    let parent = ino(&trash_dir);
    assert_eq!(rm(&trash, parent, "data-1", 0), Err(Errno::NOTEMPTY));
    assert_eq!(rm(&trash, parent, "../home", 1), Err(Errno::INVAL));
    assert_eq!(rm(&home, parent, "data-1", 1), Err(Errno::INVAL));
    assert_eq!(as_user(OTHER, || rm(&trash, parent, "data-1", 1)), Err(Errno::ACCESS));
    assert!(trash_dir.join("data-1/a/file").exists());
    as_user(USER, || rm(&trash, parent, "data-1", 1)).unwrap();
    assert_eq!(names(&trash_dir), [""; 0]);
    assert!(!trash_dir.join("data-1").exists());
    let root = File::open(served.at("")).unwrap();
    assert_eq!(rm(&root, 1, "3fs-virt", 1), Err(Errno::PERM));
    make_file(&served, "single");
    rm(&root, 1, "single", 0).unwrap();
    assert!(!served.at("single").exists());
}

#[test]
fn recursive_rm_removes_what_the_fd_names() {
    let served = Served::for_everybody();
    let file = make_file(&served, "tree/a/file");
    let rm = |fd: &File| call_without(fd, ioctl::RECURSIVE_RM);
    let (tree, inner) = (File::open(served.at("tree")).unwrap(), File::open(&file).unwrap());
    assert_eq!(as_user(USER, || rm(&tree)), Err(Errno::ACCESS));
    rm(&inner).unwrap();
    assert!(!file.exists() && served.at("tree/a").exists());
    assert_eq!(rm(&inner), Err(Errno::NOENT));
    rm(&tree).unwrap();
    assert!(!served.at("tree").exists());
    assert_eq!(rm(&File::open(served.at("")).unwrap()), Err(Errno::BUSY));
    assert_eq!(rm(&File::open(served.at("3fs-virt/iovs")).unwrap()), Err(Errno::PERM));
}

#[test]
fn a_group_of_the_caller_counts() {
    let served = Served::for_everybody();
    make_file(&served, "shared/tree/file");
    for path in ["shared", "shared/tree"] {
        chown(served.at(path), Some(0), Some(77)).unwrap();
        fs::set_permissions(served.at(path), PermissionsExt::from_mode(0o775)).unwrap();
    }
    let ln = |group: u32| {
        let mut command = Command::new("setpriv");
        let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), format!("--groups={group}")];
        command.args(ids).args(["ln", "-s"]).args([served.at("shared/tree"), served.at("3fs-virt/rm-rf/x")]);
        command.process_group(0).status().unwrap().success()
    };
    assert!(!ln(78));
    assert!(served.at("shared/tree/file").exists());
    assert!(ln(77));
    assert!(!served.at("shared/tree").exists());
}

#[test]
fn the_immutable_flag_shows() {
    let served = Served::for_everybody();
    let fd = File::open(make_file(&served, "file")).unwrap();
    let Ok(flags) = rustix::fs::ioctl_getflags(&fd) else { panic!("{}", last_errno()) };
    assert!(flags.is_empty());
    let backing = File::open(served.backing().join("file")).unwrap();
    if rustix::fs::ioctl_setflags(&fd, rustix::fs::IFlags::IMMUTABLE).is_err() {
        return; // a backing file system without the flag
    }
    let there = rustix::fs::ioctl_getflags(&backing).unwrap();
    assert!(there.contains(rustix::fs::IFlags::IMMUTABLE));
    assert_eq!(rustix::fs::ioctl_getflags(&fd), Ok(rustix::fs::IFlags::IMMUTABLE));
    refused(fs::remove_file(served.at("file")), Errno::PERM);
    rustix::fs::ioctl_setflags(&fd, rustix::fs::IFlags::empty()).unwrap();
    fs::remove_file(served.at("file")).unwrap();
}
