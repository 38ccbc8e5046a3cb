//! Files that killed clients left go; what somebody uses stays.

use super::peer::{ME, Server};
use crate::ring::shm::SharedMap;
use std::fs::File;
use std::os::unix::fs::{chown, symlink};
use std::path::PathBuf;
use uuid::Uuid;

fn file(server: &Server, name: &str) -> (PathBuf, File) {
    let name = format!("hf3fs-iov-{name}");
    (server.shm.path().join(&name), server.shm_file(&name, 4096))
}

#[test]
fn a_file_that_nobody_has_open_or_mapped_is_swept() {
    let server = Server::stepped();
    assert_eq!(rustix::fs::statfs(server.shm.path()).unwrap().f_type, libc::TMPFS_MAGIC);
    let (unused, fd) = file(&server, "unused");
    drop(fd);
    let (of_a_user, fd) = file(&server, "of-a-user");
    drop(fd);
    std::fs::set_permissions(server.shm.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .unwrap();
    chown(&of_a_user, Some(1001), Some(1001)).unwrap();
    let (open, _open_fd) = file(&server, "open");
    let (read_only, fd) = file(&server, "read-only");
    drop(fd);
    let _reader = File::open(&read_only).unwrap();
    let (mapped, fd) = file(&server, "mapped");
    let map = SharedMap::new(&fd, 4096, true).unwrap();
    drop(fd);
    let other = server.shm.path().join("psm_1");
    drop(server.shm_file("psm_1", 4096));
    let link = server.shm.path().join("hf3fs-iov-link");
    symlink("psm_1", &link).unwrap();
    assert_eq!(server.rings.sweep(), 2);
    assert!(!unused.exists() && !of_a_user.exists());
    assert!(open.exists() && read_only.exists() && mapped.exists() && other.exists());
    assert!(link.symlink_metadata().is_ok());
    drop(map);
    assert_eq!(server.rings.sweep(), 1, "its mapping is gone");
    assert!(!mapped.exists());
}

#[test]
fn what_is_registered_stays_and_a_dead_process_takes_leftovers_and_its_linked_rings_along() {
    let server = Server::stepped();
    let (left, fd) = file(&server, "left");
    drop(fd);
    let len = usrbio_wire::Geometry::for_entries(8).unwrap().file_len() as u64;
    let ring = server.shm.path().join("hf3fs-iov-ring");
    drop(server.shm_file("hf3fs-iov-ring", len));
    let name = format!("{}.r8.t0", Uuid::new_v4());
    server.rings.register(&name, "/dev/shm/hf3fs-iov-ring", &ME).unwrap();
    assert!(!left.exists(), "a registration sweeps");
    assert_eq!(server.rings.sweep(), 0);
    assert!(ring.exists());
    let (left, fd) = file(&server, "left-2");
    drop(fd);
    assert_eq!(server.rings.reap(|owner| owner.tgid == ME.tgid + 1), 0);
    assert!(!left.exists(), "also when nothing was registered");
    assert_eq!(server.rings.reap(|owner| owner.tgid == ME.tgid), 1);
    assert!(!ring.exists());
}
