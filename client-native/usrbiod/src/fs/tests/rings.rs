use super::super::SetAttr;
use super::*;
use crate::types::{Errno, Ino, Owner};
use std::sync::atomic::Ordering;

fn owner(uid: u32, tgid: u32) -> Owner {
    Owner { uid, gid: uid, tgid, start: 1 }
}

#[test]
fn a_ring_uses_only_files_that_are_open() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    let ino = Ino(file.attr.ino);
    let me = owner(0, TGID);
    let backing = bed.fs.ring_file(ino, &me, true).unwrap();
    assert!(Arc::ptr_eq(&backing, &bed.fs.ring_file(ino, &me, false).unwrap()), "one fd for both directions");
    assert!(!backing.closed.load(Ordering::Acquire));
    bed.fs.release(file.node, opened.fh);
    assert!(backing.closed.load(Ordering::Acquire));
    let refused = |ino| bed.fs.ring_file(Ino(ino), &me, false).unwrap_err();
    assert_eq!(refused(ino.0), Errno::BADF);
    assert_eq!((refused(1), refused(12345), refused(u64::MAX)), (Errno::BADF, Errno::BADF, Errno::BADF));
    bed.fs.opendir(NodeId::ROOT, &ROOT, TGID).unwrap();
    assert_eq!(refused(1), Errno::BADF);
}

#[test]
fn a_ring_may_what_its_process_or_user_has_open_or_may_open() {
    let bed = Bed::new();
    let (file, _) = bed.fs.create(NodeId::ROOT, c"f", RDWR, 0o640, 0, &USER, TGID).unwrap();
    let ino = Ino(file.attr.ino);
    let may = |owner: Owner, write| bed.fs.ring_file(ino, &owner, write).map(drop);
    // The user; the process, whatever its user is now; nobody else.
    assert_eq!((may(owner(1234, 1), true), may(owner(42, TGID), true)), (Ok(()), Ok(())));
    assert_eq!((may(owner(42, 1), false), may(owner(42, 0), true)), (Err(Errno::ACCESS), Err(Errno::ACCESS)));
    // The group may read by the mode bits.
    let group = Owner { gid: 5678, ..owner(42, 1) };
    assert_eq!((may(group, false), may(group, true)), (Ok(()), Err(Errno::ACCESS)));
    // Who has it open for reading only may write only if he could open it so.
    let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
    bed.fs.setattr(file.node, &set).unwrap();
    let reader = Caller { uid: 43, gid: 43, pid: 9 };
    bed.fs.open(file.node, RDONLY, false, &reader, 9).unwrap();
    assert_eq!((may(owner(43, 9), false), may(owner(43, 9), true)), (Ok(()), Err(Errno::ACCESS)));
}

#[test]
fn a_ring_may_no_more_than_the_mounts_of_its_process_allow() {
    let bed = Bed::new();
    let dir = bed.fs.mkdir(NodeId::ROOT, c"part", 0o777, 0, &USER).unwrap();
    let make = |parent| bed.fs.create(parent, c"f", RDWR, 0o666, 0, &USER, TGID).unwrap().0;
    let (above, inside) = (make(NodeId::ROOT), make(dir.node));
    let may =
        |file: &Entry, tgid, write| bed.fs.ring_file(Ino(file.attr.ino), &owner(1234, tgid), write).map(drop);
    // All have the user of the process that has both files open for writing.
    for file in [&above, &inside] {
        assert_eq!((may(file, READER, false), may(file, READER, true)), (Ok(()), Err(Errno::ACCESS)));
    }
    assert_eq!(
        (may(&above, IN_PART, false), may(&above, IN_PART, true)),
        (Err(Errno::ACCESS), Err(Errno::ACCESS))
    );
    assert_eq!((may(&inside, IN_PART, false), may(&inside, IN_PART, true)), (Ok(()), Ok(())));
    assert_eq!((may(&above, 999, false), may(&above, 0, false)), (Err(Errno::ACCESS), Err(Errno::ACCESS)));
    // What the kernel let it open itself, as by an fd that it was given, it may use.
    bed.fs.open(above.node, RDWR, false, &USER, IN_PART).unwrap();
    assert_eq!(may(&above, IN_PART, true), Ok(()));
}

#[test]
fn an_o_direct_open_gives_its_owners_rings_a_direct_fd() {
    let bed = Bed::new();
    let (file, _) = bed.make("f");
    let ino = Ino(file.attr.ino);
    assert!(bed.fs.ring_file(ino, &owner(0, TGID), false).unwrap().direct.is_none());
    bed.fs.open(file.node, RDWR | libc::O_DIRECT as u32, false, &USER, 5).unwrap();
    assert!(bed.fs.ring_file(ino, &owner(1234, 5), true).unwrap().direct.is_some());
    assert!(bed.fs.ring_file(ino, &owner(0, TGID), false).unwrap().direct.is_none());
}

#[test]
fn the_kernel_is_told_once_of_what_rings_write_until_it_asks() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    let backing = bed.fs.ring_file(Ino(file.attr.ino), &owner(0, TGID), true).unwrap();
    for _ in 0..5 {
        bed.fs.written(&backing);
    }
    assert_eq!(bed.notes(), 1);
    bed.fs.getattr(file.node).unwrap();
    bed.fs.written(&backing);
    bed.fs.written(&backing);
    assert_eq!(bed.notes(), 1);
    bed.fs.read(file.node, opened.fh, 0, &mut [0; 1]).unwrap();
    bed.fs.written(&backing);
    bed.fs.invalidate(file.node);
    assert_eq!(bed.notes(), 2);
}

#[test]
fn truncation_punching_and_copying_end_what_is_known_of_holes() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    bed.fs.write(file.node, opened.fh, 0, &[1; 8192], false).unwrap();
    let backing = bed.fs.ring_file(Ino(file.attr.ino), &owner(0, TGID), true).unwrap();
    let (other, from) = bed.make("g");
    bed.fs.write(other.node, from.fh, 0, &[2; 4096], false).unwrap();
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    let changes: [&dyn Fn(); 4] = [
        &|| assert!(bed.fs.setattr(file.node, &size(4096)).is_ok()),
        &|| {
            let set = SetAttr { fh: Some(opened.fh), ..size(1 << 20) };
            bed.fs.setattr(file.node, &set).unwrap();
        },
        &|| bed.fs.fallocate(file.node, opened.fh, 0, 4096, punch).unwrap(),
        &|| {
            let (from, to) = ((other.node, from.fh, 0), (file.node, opened.fh, 0));
            assert_eq!(bed.fs.copy_file_range(from, to, 4096, 0).unwrap(), 4096);
        },
    ];
    for change in changes {
        backing.dense_end.store(4096, Ordering::Release);
        change();
        assert_eq!(backing.dense_end.load(Ordering::Acquire), 0);
    }
    backing.dense_end.store(4096, Ordering::Release);
    bed.fs.open(file.node, RDWR | libc::O_TRUNC as u32, false, &ROOT, TGID).unwrap();
    assert_eq!(backing.dense_end.load(Ordering::Acquire), 0);
}

#[test]
fn a_file_on_tmpfs_is_in_memory() {
    let bed = Bed::on("/dev/shm".into(), 64);
    let (file, _) = bed.make("f");
    assert!(bed.fs.ring_file(Ino(file.attr.ino), &owner(0, TGID), true).unwrap().in_memory);
}
