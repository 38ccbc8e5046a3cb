//! Registering, and what is dropped when a process is gone.

use super::peer::{Client, ME, Server, errno, pattern, wait_until};
use crate::ring::Engine;
use crate::session::Limits;
use crate::types::{Errno, Owner, UNKNOWN_ID};
use std::sync::Arc;
use std::time::Duration;
use usrbio_wire::Geometry;
use uuid::Uuid;

const USER: Owner = Owner { uid: 1001, gid: 1001, tgid: 50, start: 7 };

fn register(server: &Server, suffix: &str, file: &str, owner: &Owner) -> Result<u32, Errno> {
    let name = format!("{}{suffix}", Uuid::new_v4());
    server.rings.register(&name, &format!("/dev/shm/{file}"), owner).map(|info| info.number)
}

#[test]
fn names_and_sizes_that_do_not_fit_are_refused() {
    let server = Server::stepped();
    server.shm_file("iov", 8192);
    server.shm_file("empty", 0);
    server.shm_file("ring", Geometry::for_entries(8).unwrap().file_len() as u64);
    let refused = |suffix: &str, file: &str| register(&server, suffix, file, &ME).unwrap_err();
    assert_eq!(server.rings.register("no-uuid", "/dev/shm/iov", &ME), Err(Errno::IO));
    assert_eq!(refused(".b0", "iov"), Errno::INVAL);
    assert_eq!(refused(".b8193", "iov"), Errno::INVAL);
    assert_eq!(refused(".t5", "iov"), Errno::INVAL);
    assert_eq!(refused("", "empty"), Errno::INVAL);
    assert_eq!(refused(".r9.t0", "ring"), Errno::INVAL);
    assert_eq!(refused(".r0.t0", "empty"), Errno::INVAL);
    assert_eq!(refused("", "missing"), Errno::ACCESS);
    assert!(register(&server, ".b8192", "iov", &ME).is_ok());
    assert!(register(&server, ".r8.t0", "ring", &ME).is_ok());
    assert!(register(&server, ".r-9", "ring", &ME).is_ok());
}

#[test]
fn targets_outside_the_sessions_memory_are_refused() {
    let server = Server::stepped();
    std::os::unix::fs::symlink("/etc/hostname", server.shm.path().join("link")).unwrap();
    std::fs::create_dir(server.shm.path().join("dir")).unwrap();
    for target in ["/etc/passwd", "/dev/shm/", "/dev/shm", "iov"] {
        assert_eq!(
            server.rings.register(&Uuid::new_v4().to_string(), target, &ME),
            Err(Errno::INVAL),
            "{target}"
        );
    }
    for file in ["../../etc/passwd", "/etc/passwd", "link", "dir", "dir/../../x"] {
        assert_eq!(register(&server, "", file, &ME), Err(Errno::ACCESS), "{file}");
    }
}

#[test]
fn a_client_registers_only_what_it_may_open_itself() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::stepped();
    std::fs::set_permissions(server.shm.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let file = server.shm_file("private", 4096);
    file.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(register(&server, "", "private", &USER), Err(Errno::ACCESS));
    file.set_permissions(PermissionsExt::from_mode(0o444)).unwrap();
    assert_eq!(register(&server, "", "private", &USER), Err(Errno::ACCESS), "reading is not enough");
    file.set_permissions(PermissionsExt::from_mode(0o666)).unwrap();
    assert!(register(&server, "", "private", &USER).is_ok());
    assert!(
        rustix::fs::open("/root", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).is_ok(),
        "root again"
    );
}

#[test]
fn each_limit_has_its_errno() {
    let limits = Limits { iov_bytes: 8192, rings: 1, iovs: 3, ring_entries: 8 };
    let server = Server::new(Engine::idle(), limits, false);
    server.shm_file("iov", 8192);
    server.shm_file("byte", 1);
    server.shm_file("ring", Geometry::for_entries(8).unwrap().file_len() as u64);
    server.shm_file("large", Geometry::for_entries(9).unwrap().file_len() as u64);
    assert_eq!(register(&server, ".r0", "large", &ME), Err(Errno::TOOBIG), "ring entries");
    assert!(register(&server, ".r0", "ring", &ME).is_ok());
    assert_eq!(register(&server, ".r0", "ring", &ME), Err(Errno::MFILE), "rings");
    assert!(register(&server, "", "iov", &ME).is_ok());
    assert_eq!(register(&server, "", "byte", &ME), Err(Errno::DQUOT), "bytes");
    assert_eq!(server.rings.reap(|_| true), 2);
    assert_eq!(server.state.objects.iter().count(), 0);
    for _ in 0..3 {
        assert!(register(&server, "", "byte", &ME).is_ok());
    }
    assert_eq!(register(&server, "", "byte", &ME), Err(Errno::MFILE), "objects");
}

#[test]
fn nobody_puts_another_iov_in_the_place_of_one_that_is_registered() {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", b"0123456789"));
    let client = server.client_of(USER, 4, ".r0.t0");
    let answer = |client: &Client| {
        client.push(0, client.args(7, 4095, 0, 2));
        server.serve(&mut crate::ring::io::Io::new(), std::time::Instant::now());
        client.results()[0]
    };
    assert_eq!(answer(&client), 2);
    let other = server.shm_file("other", 4096);
    other.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let same_id =
        [client.iov_name.clone(), format!("{}.b4096", client.iov_name), client.iov_name.to_uppercase()];
    for owner in [ME, USER, Owner { uid: 1002, tgid: 51, ..USER }] {
        for name in &same_id {
            let again = server.rings.register(name, "/dev/shm/other", &owner);
            assert_eq!(again, Err(Errno::EXIST), "{name} of {owner:?}");
        }
        assert_eq!(answer(&client), 2, "the memory that was registered is used");
    }
    server.rings.unregister(&client.iov_name, &USER).unwrap();
    assert_eq!(answer(&client), errno(Errno::INVAL));
    assert!(server.rings.register(&same_id[1], "/dev/shm/other", &USER).is_ok(), "the id is free again");
}

#[test]
fn a_successor_lets_no_iov_take_the_place_of_another_either() {
    let server = Server::stepped();
    let client = server.client(4, ".r0.t0");
    let second = server.client_of(USER, 4, ".r0.t0");
    let number = server.rings.find(&second.iov_name).unwrap().number;
    // As a predecessor has written it that did not refuse.
    let mut record = server.state.objects.get(number).unwrap();
    let twin = format!("{}.b4096", client.iov_name);
    record.name[..twin.len()].copy_from_slice(twin.as_bytes());
    record.name_len = twin.len() as u32;
    let mut fds = server.kept_fds();
    fds.insert(twin.clone(), fds[&second.iov_name].try_clone().unwrap());
    server.state.objects.remove(number);
    server.state.objects.insert(&record).unwrap();
    let next = server.successor(Engine::idle(), fds);
    assert!(next.rings.find(&client.iov_name).is_some() != next.rings.find(&twin).is_some());
    assert_eq!(next.rings.core().iovs.read().unwrap().len(), 1);
}

#[test]
fn an_idle_ring_does_not_keep_the_memory_of_an_iov_that_was_unregistered() {
    let server = Server::stepped();
    server.files.add(7, &server.data_file("f", b"0123456789"));
    let client = server.client(4, ".r0.t0");
    client.push(0, client.args(7, 0, 0, 2));
    server.serve(&mut crate::ring::io::Io::new(), std::time::Instant::now());
    assert_eq!(client.results(), [2]);
    let iov = Arc::downgrade(server.rings.core().iovs.read().unwrap().values().next().unwrap());
    server.rings.unregister(&client.iov_name, &ME).unwrap();
    assert!(iov.upgrade().is_none());
}

#[test]
fn the_memory_of_an_iov_that_was_unregistered_while_the_ring_was_busy_goes_with_the_next_scan() {
    let server = Server::running();
    server.files.add(7, &server.data_file("f", b"0123456789"));
    let client = server.client(4, ".r0.t0");
    assert_eq!(client.request(client.args(7, 0, 0, 2)), 2);
    let core = server.rings.core();
    // As `unregister` does where it finds the ring locked.
    let iov = Arc::downgrade(&core.iovs.write().unwrap().drain().next().unwrap().1);
    core.changed();
    wait_until("the ring to let go of it", || iov.strong_count() == 1);
}

#[test]
fn only_the_owner_and_root_unregister() {
    let server = Server::stepped();
    let client = server.client_of(USER, 4, ".r0.t0");
    let asker = |uid, tgid| Owner { uid, gid: 0, tgid, start: USER.start };
    assert_eq!(server.rings.unregister(&client.iov_name, &asker(1002, 1)), Err(Errno::PERM));
    assert_eq!(server.rings.unregister("nothing", &asker(0, 1)), Err(Errno::NOENT));
    assert_eq!(server.rings.unregister(&client.iov_name, &asker(USER.uid, 1)), Ok(()));
    assert_eq!(server.rings.find(&client.iov_name), None);
    assert_eq!(server.rings.unregister(&client.ring_name, &asker(UNKNOWN_ID, 0)), Err(Errno::PERM));
    assert_eq!(server.rings.unregister(&client.ring_name, &asker(UNKNOWN_ID, USER.tgid)), Ok(()));
    assert_eq!(server.rings.list(), []);
}

#[test]
fn reaping_a_process_keeps_others_alive_and_gives_its_memory_back() {
    let server = Server::running();
    server.files.add(7, &server.data_file("f", &pattern(8192)));
    let gone = server.client_of(USER, 4, ".r0.t0");
    let alive = server.client_of(Owner { tgid: 51, ..USER }, 4, ".r0.t0");
    assert_eq!(gone.request(gone.args(7, 0, 0, 8)), 8);
    // A file of another name is a program's own, and one that was replaced is not what was registered.
    server
        .shm_file("psm_1", 4096)
        .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .unwrap();
    assert!(register(&server, "", "psm_1", &USER).is_ok());
    assert_eq!(server.rings.reap(|owner| owner.tgid == USER.tgid), 3);
    let exists = |name: &str| server.shm.path().join(name).exists();
    assert!(!exists(&format!("hf3fs-iov-{}", gone.iov_id)));
    assert!(exists("psm_1") && exists(&format!("hf3fs-iov-{}", alive.iov_id)));
    assert_eq!(alive.request(alive.args(7, 0, 0, 8)), 8);
}

#[test]
fn detaching_leaves_nothing_in_shared_memory() {
    let server = Server::running();
    let client = server.client(4, ".r0.t0");
    server.rings.detach(Duration::from_secs(5));
    let left: Vec<_> =
        std::fs::read_dir(server.shm.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    // The ring's file is its client's to unlink; 3FS's library does so right after registration.
    assert_eq!(left, [format!("ring-{}", &client.ring_name[..36]).as_str()]);
    assert_eq!(register(&server, "", left[0].to_str().unwrap(), &ME), Err(Errno::MFILE));
}

#[test]
fn memory_is_present_when_it_is_registered_or_it_is_enospc() {
    use std::os::unix::fs::MetadataExt;
    let limits = Limits { iov_bytes: u64::MAX, ..Limits::default() };
    let server = Server::new(Engine::idle(), limits, false);
    let sparse = server.shm_file("sparse", (3 << 20) + 5);
    assert_eq!(sparse.metadata().unwrap().blocks(), 0);
    assert!(register(&server, "", "sparse", &ME).is_ok());
    let after = sparse.metadata().unwrap();
    assert_eq!((after.len(), after.blocks() * 512), ((3 << 20) + 5, (3 << 20) + 4096));
    let huge = server.shm_file("huge", 1 << 45);
    assert_eq!(register(&server, "", "huge", &ME), Err(Errno::NOSPC));
    assert_eq!(huge.metadata().unwrap().blocks(), 0, "nothing of it was taken");
}
