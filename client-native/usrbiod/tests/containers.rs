//! What a container may do by ioctls, orders and rings: no more than its own mounts of the volume allow.

mod common;

use common::ioctls::{call, call_without, field, ino, make_file, names, refused};
use common::served::{Served, verify_client};
use common::{LONG, succeed};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use usrbio_wire::ioctl::{self, HardlinkArg, MoveArg, PunchHoleArg, RegisterArg, RemoveArg, UnregisterArg};
use zerocopy::{FromZeros, IntoBytes};

/// A mount of a part of the volume in a container.
#[derive(Clone, Copy)]
struct At {
    part: &'static str,
    at: &'static str,
    read_only: bool,
}

const fn rw(part: &'static str, at: &'static str) -> At {
    At { part, at, read_only: false }
}

const fn ro(part: &'static str, at: &'static str) -> At {
    At { part, at, read_only: true }
}

/// Runs `work` on a thread that sees of the volume what `mounts` show, below the directory that `work` is given.
fn in_container<T: Send>(served: &Served, mounts: &[At], work: impl FnOnce(&Path) -> T + Send) -> T {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let run = || {
        // SAFETY: no fd table is unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS).unwrap() };
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .unwrap();
        for mount in mounts {
            let at = root.join(mount.at);
            fs::create_dir_all(&at).unwrap();
            rustix::mount::mount_bind(served.at(mount.part), &at).unwrap();
            if mount.read_only {
                rustix::mount::mount_remount(&at, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
            }
        }
        rustix::mount::unmount(served.mount(), UnmountFlags::DETACH).unwrap();
        work(root)
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// A file in `/dev/shm` that holds a small ring, or is an Iov.
struct Shm(PathBuf);

impl Shm {
    fn new() -> Shm {
        let path = PathBuf::from(format!("/dev/shm/containers-{}", uuid::Uuid::new_v4()));
        File::create(&path).unwrap().set_len(4336).unwrap();
        Shm(path)
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn open(path: PathBuf) -> File {
    File::open(path).unwrap()
}

fn remove(dir: &File, name: &str, recursive: u8) -> Result<(), Errno> {
    let parent = dir.metadata().unwrap().ino();
    let mut arg = RemoveArg { parent, name: field(name), recursive, pad: [0; 7] };
    call(dir, ioctl::REMOVE, arg.as_mut_bytes())
}

fn rename(dir: &File, old: &str, dst_parent: u64, new: &str) -> Result<(), Errno> {
    let src_parent = dir.metadata().unwrap().ino();
    let (src_name, dst_name) = (field(old), field(new));
    let mut arg = MoveArg { src_parent, src_name, dst_parent, dst_name, to_trash: 0, pad: [0; 7] };
    call(dir, ioctl::MOVE, arg.as_mut_bytes())
}

fn link(file: &File, parent: u64, name: &str) -> Result<(), Errno> {
    let mut arg = HardlinkArg { parent, name: field(name), pad: 0 };
    call(file, ioctl::HARDLINK, arg.as_mut_bytes())
}

fn punch(file: &File) -> Result<(), Errno> {
    let mut arg = PunchHoleArg::new_zeroed();
    (arg.n, arg.end[0]) = (1, 4096);
    call(file, ioctl::PUNCH_HOLE, arg.as_mut_bytes())
}

fn remove_tree(dir: &File) -> Result<(), Errno> {
    call_without(dir, ioctl::RECURSIVE_RM)
}

/// A volume with files a, b, c in its root and in the directory `part`, and a tree in each.
fn volume() -> Served {
    let served = Served::for_everybody();
    for dir in ["", "part/"] {
        for name in ["a", "b", "c", "tree/deep/file"] {
            make_file(&served, &format!("{dir}{name}"));
        }
    }
    served
}

#[test]
fn a_container_with_a_read_only_mount_changes_nothing() {
    let served = volume();
    in_container(&served, &[ro("", "data")], |root| {
        let dir = open(root.join("data"));
        refused(fs::remove_file(root.join("data/a")), Errno::ROFS);
        assert_eq!(remove(&dir, "a", 0), Err(Errno::ROFS));
        assert_eq!(remove(&dir, "tree", 1), Err(Errno::ROFS));
        assert_eq!(rename(&dir, "b", 1, "moved"), Err(Errno::ROFS));
        assert_eq!(link(&open(root.join("data/c")), 1, "linked"), Err(Errno::ROFS));
        assert_eq!(remove_tree(&open(root.join("data/tree"))), Err(Errno::ROFS));
        assert_eq!(punch(&open(root.join("data/c"))), Err(Errno::BADF));
    });
    assert_eq!(names(&served.at("")), ["a", "b", "c", "part", "tree"]);
    assert_eq!(fs::read(served.at("c")).unwrap(), b"x");
}

#[test]
fn a_container_with_a_writable_mount_may_all_of_it() {
    let served = volume();
    in_container(&served, &[rw("", "data")], |root| {
        let dir = open(root.join("data"));
        assert_eq!(remove(&dir, "a", 0), Ok(()));
        assert_eq!(rename(&dir, "b", 1, "moved"), Ok(()));
        assert_eq!(link(&open(root.join("data/c")), 1, "linked"), Ok(()));
        assert_eq!(remove_tree(&open(root.join("data/tree"))), Ok(()));
        let writing = File::options().write(true).open(root.join("data/c")).unwrap();
        assert_eq!(punch(&writing), Ok(()));
    });
    assert_eq!(names(&served.at("")), ["c", "linked", "moved", "part"]);
}

#[test]
fn a_container_with_a_sub_path_changes_nothing_above_it() {
    let served = volume();
    in_container(&served, &[rw("part", "data")], |root| {
        let (dir, own) = (open(root.join("data")), ino(&root.join("data")));
        assert_eq!(link(&open(root.join("data/c")), 1, "planted"), Err(Errno::PERM));
        assert_eq!(rename(&dir, "a", 1, "b"), Err(Errno::PERM));
        assert_eq!(remove_tree(&dir), Err(Errno::PERM), "its own directory lies above");
        assert_eq!(remove(&dir, "a", 0), Ok(()));
        assert_eq!(rename(&dir, "b", own, "moved"), Ok(()));
        assert_eq!(link(&open(root.join("data/c")), own, "linked"), Ok(()));
        assert_eq!(remove(&dir, "tree", 1), Ok(()));
    });
    assert_eq!(names(&served.at("")), ["a", "b", "c", "part", "tree"]);
    assert_eq!(names(&served.at("part")), ["c", "linked", "moved"]);
}

#[test]
fn a_part_that_a_container_sees_read_only_is_not_changed_through_another_mount() {
    let served = volume();
    let nested = [rw("", "data"), ro("part", "data/part")];
    in_container(&served, &nested, |root| {
        let (data, part) = (open(root.join("data")), open(root.join("data/part")));
        assert_eq!(remove(&part, "a", 0), Err(Errno::ROFS));
        assert_eq!(rename(&part, "a", 1, "stolen"), Err(Errno::ROFS));
        assert_eq!(link(&open(root.join("data/part/c")), 1, "c-to-write"), Err(Errno::ROFS));
        assert_eq!(remove(&data, "part", 1), Err(Errno::BUSY));
        let order = |target: &str| symlink(root.join(target), root.join("data/3fs-virt/rm-rf/x"));
        refused(order("data/part"), Errno::BUSY);
        refused(order("data/part/tree"), Errno::ROFS);
        refused(fs::rename(root.join("data/part/tree"), root.join("data/3fs-virt/rm-rf/x")), Errno::XDEV);
        assert_eq!(remove(&data, "a", 0), Ok(()));
    });
    let beside = [rw("tree", "rw"), ro("part", "ro")];
    in_container(&served, &beside, |root| {
        let tree = ino(&root.join("rw"));
        assert_eq!(link(&open(root.join("ro/c")), tree, "c-to-write"), Err(Errno::ROFS));
        let order = symlink(root.join("ro/tree"), root.join("rw/3fs-virt/rm-rf/x"));
        refused(order, Errno::ROFS);
    });
    assert_eq!(names(&served.at("part")), ["a", "b", "c", "tree"]);
}

#[test]
fn an_fd_from_elsewhere_lends_nothing() {
    let served = volume();
    let (dir, tree) = (open(served.at("")), open(served.at("tree")));
    in_container(&served, &[], |_| {
        assert_eq!(remove(&dir, "a", 0), Err(Errno::PERM));
        assert_eq!(remove_tree(&tree), Err(Errno::PERM));
    });
    assert_eq!(names(&served.at("")), ["a", "b", "c", "part", "tree"]);
}

#[test]
fn the_tree_is_found_at_every_sub_path_and_listed_nowhere() {
    let served = volume();
    let whole = open(served.at("3fs-virt/iovs"));
    in_container(&served, &[rw("part", "data"), rw("tree", "other")], |root| {
        let data = root.join("data");
        let virt = data.join("3fs-virt");
        assert_eq!(names(&virt), ["get-conf", "iovs", "rm-rf", "set-conf"]);
        let iovs = open(virt.join("iovs"));
        assert_eq!(iovs.metadata().unwrap().ino(), whole.metadata().unwrap().ino());
        // A directory has one place for the kernel: those of others stay where they are.
        assert_eq!(names(&root.join("other/3fs-virt/iovs")), names(&virt.join("iovs")));
        assert!(names(&virt.join("iovs")).contains(&"submit-ios".to_owned()));
        assert!(fs::read_link(virt.join("iovs/submit-ios.ph")).unwrap().starts_with("/dev/shm"));
        assert_eq!(names(&data), ["a", "b", "c", "tree"]);
        refused(fs::create_dir(data.join("3fs-virt")), Errno::EXIST);
        refused(fs::remove_dir(&virt), Errno::PERM);
        refused(fs::rename(data.join("a"), &virt), Errno::ISDIR);
        refused(fs::rename(data.join("tree"), &virt), Errno::PERM);
        refused(fs::rename(&virt, data.join("x")), Errno::PERM);
        symlink(data.join("tree"), virt.join("rm-rf/x")).unwrap();
        refused(symlink(&data, virt.join("rm-rf/x")), Errno::PERM);
    });
    assert_eq!(names(&served.at("part")), ["a", "b", "c"]);
    // Orders are taken at the root of a mount, not where an archive may lead.
    refused(symlink(served.at("tree"), served.at("part/3fs-virt/rm-rf/x")), Errno::PERM);
    refused(fs::rename(served.at("tree"), served.at("part/3fs-virt/rm-rf/x")), Errno::PERM);
    fs::remove_dir_all(served.at("part")).unwrap();
}

#[test]
fn what_has_the_name_of_the_tree_in_the_backing_directory_can_be_used_and_removed() {
    let served = volume();
    fs::create_dir_all(served.backing().join("part/3fs-virt/old")).unwrap();
    assert_eq!(names(&served.at("part/3fs-virt")), ["old"]);
    assert!(names(&served.at("part")).contains(&"3fs-virt".to_owned()));
    fs::rename(served.at("part/3fs-virt"), served.at("part/was")).unwrap();
    assert_eq!(names(&served.at("part/was")), ["old"]);
    assert_eq!(names(&served.at("part/3fs-virt")), ["get-conf", "iovs", "rm-rf", "set-conf"]);
}

/// The argument of a registration.
fn registration(name: &str, target: &Path) -> RegisterArg {
    RegisterArg { name: field(name), target: field(target.to_str().unwrap()) }
}

#[test]
fn what_reads_is_registered_on_a_read_only_mount_by_an_ioctl() {
    let served = volume();
    let shm = Shm::new();
    in_container(&served, &[ro("", "data")], |root| {
        let iovs = root.join("data/3fs-virt/iovs");
        let dir = open(iovs.clone());
        let register = |name: &str| call(&dir, ioctl::REGISTER, registration(name, &shm.0).as_mut_bytes());
        let unregister =
            |name: &str| call(&dir, ioctl::UNREGISTER, UnregisterArg { name: field(name) }.as_mut_bytes());
        let id = uuid::Uuid::new_v4().to_string();
        refused(symlink(&shm.0, iovs.join(&id)), Errno::ROFS);
        assert_eq!((register(&id), register(&id)), (Ok(()), Err(Errno::EXIST)));
        assert_eq!(fs::read_link(iovs.join(&id)).unwrap(), shm.0);
        assert_eq!((unregister(&id), unregister(&id)), (Ok(()), Err(Errno::NOENT)));
        assert_eq!(unregister("submit-ios"), Err(Errno::PERM));
        assert_eq!(register(&format!("{id}.r0.t0")), Ok(()));
        assert_eq!(register(&format!("{}.w0.t0", uuid::Uuid::new_v4())), Err(Errno::ROFS));
        for (name, errno) in [("", Errno::IO), ("../x", Errno::IO), ("no-uuid", Errno::IO)] {
            assert_eq!(register(name), Err(errno), "{name:?}");
        }
        let other = open(root.join("data/3fs-virt/rm-rf"));
        assert_eq!(
            call(&other, ioctl::REGISTER, registration(&id, &shm.0).as_mut_bytes()),
            Err(Errno::INVAL)
        );
        let mut unended = RegisterArg { name: [b'x'; 256], target: [b'x'; 256] };
        assert_eq!(call(&dir, ioctl::REGISTER, unended.as_mut_bytes()), Err(Errno::INVAL));
    });
}

#[test]
fn the_client_library_reads_by_rings_on_a_read_only_mount_and_writes_by_none() {
    let served = volume();
    fs::write(served.at("part/data.bin"), vec![7; 8192]).unwrap();
    for mount in [ro("", "data"), ro("part", "data/part")] {
        in_container(&served, &[mount], |root| {
            let mount = usrbio::Mount::at(root.join(mount.at)).unwrap();
            let iov = usrbio::Iov::create(&mount, 8192, 0, -1).unwrap();
            let mut ring = usrbio::Ring::create(&mount, &usrbio::RingOptions::read(1)).unwrap();
            let file = usrbio::RegisteredFile::new(open(root.join("data/part/data.bin"))).unwrap();
            let request =
                usrbio::Request { file: file.id(), file_offset: 0, len: 8192, iov_offset: 0, userdata: 1 };
            assert_eq!(ring.prep_batch(&iov, &[request]).queued, 1);
            ring.submit().unwrap();
            let mut cqes = [usrbio::Cqe::default(); 1];
            assert_eq!((ring.wait(1, &mut cqes, Some(LONG)).unwrap(), cqes[0].result), (1, 8192));
            let writing = usrbio::Ring::create(&mount, &usrbio::RingOptions::write(1));
            assert_eq!(writing.unwrap_err().errno(), libc::EROFS);
            let iovs = mount.point().join("3fs-virt/iovs");
            assert_eq!(names(&iovs).len(), 5);
            drop((iov, ring));
            assert_eq!(names(&iovs).len(), 3);
        });
    }
}

#[test]
fn rings_work_in_a_container_with_a_sub_path() {
    let served = volume();
    in_container(&served, &[rw("part", "data")], |root| {
        succeed(60, verify_client(&root.join("data/ring.bin")).arg("1"));
    });
}
