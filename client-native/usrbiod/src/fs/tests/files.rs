use super::super::{SetAttr, SetTime};
use super::*;
use crate::types::Errno;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn set_mode(bed: &Bed, name: &str, mode: u32) {
    std::fs::set_permissions(bed.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_is_written_is_read_back_and_handles_keep_to_their_mode() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    let data: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    assert_eq!(bed.fs.write(file.node, opened.fh, 5, &data, false).unwrap(), data.len());
    let mut buf = vec![0; 200_000];
    assert_eq!(bed.fs.read(file.node, opened.fh, 5, &mut buf).unwrap(), data.len());
    assert_eq!(buf[..data.len()], data);
    let reader = bed.fs.open(file.node, RDONLY, false, &USER, TGID).unwrap().fh;
    let writer = bed.fs.open(file.node, libc::O_WRONLY as u32, false, &USER, TGID).unwrap().fh;
    assert_eq!(bed.fs.read(file.node, reader, 5, &mut buf).unwrap(), data.len());
    assert_eq!(bed.fs.write(file.node, reader, 0, b"x", false).unwrap_err(), Errno::BADF);
    assert_eq!(bed.fs.read(file.node, writer, 0, &mut buf).unwrap_err(), Errno::BADF);
    // Neither a released handle nor one of another file, and releasing twice does no harm.
    bed.fs.release(file.node, reader);
    bed.fs.release(file.node, reader);
    assert_eq!(bed.fs.read(file.node, reader, 0, &mut buf).unwrap_err(), Errno::BADF);
    assert_eq!(bed.fs.read(NodeId::ROOT, opened.fh, 0, &mut buf).unwrap_err(), Errno::BADF);
    let again = bed.fs.open(file.node, RDONLY, false, &USER, TGID).unwrap().fh;
    assert_ne!(again, reader, "handles are not reused");
}

#[test]
fn append_is_left_to_the_offsets_of_the_kernel_and_truncate_is_done() {
    let bed = Bed::new();
    std::fs::write(bed.path("f"), "0123456789").unwrap();
    let node = lookup(&bed, c"f").node;
    let append = bed.fs.open(node, RDWR | libc::O_APPEND as u32, false, &ROOT, TGID).unwrap().fh;
    bed.fs.write(node, append, 2, b"xx", false).unwrap();
    assert_eq!(std::fs::read(bed.path("f")).unwrap(), b"01xx456789");
    bed.fs.open(node, RDWR | libc::O_TRUNC as u32, false, &ROOT, TGID).unwrap();
    assert_eq!(bed.fs.getattr(node).unwrap().size, 0);
}

#[test]
fn direct_opens_bypass_the_page_cache() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    assert!(!opened.direct_io);
    let direct = bed.fs.open(file.node, RDWR | libc::O_DIRECT as u32, false, &ROOT, TGID).unwrap();
    assert!(direct.direct_io && direct.backing_id.is_none());
    assert_eq!(bed.fs.write(file.node, direct.fh, 3, b"unaligned", false).unwrap(), 9);
}

#[test]
fn writing_and_truncating_clear_set_id_bits() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    let mode = || std::fs::metadata(bed.path("f")).unwrap().mode() & 0o7777;
    set_mode(&bed, "f", 0o6755);
    bed.fs.write(file.node, opened.fh, 0, b"x", true).unwrap();
    assert_eq!(mode(), 0o755);
    set_mode(&bed, "f", 0o6755);
    let set = SetAttr { size: Some(0), kill_suidgid: true, ..SetAttr::default() };
    assert_eq!(bed.fs.setattr(file.node, &set).unwrap().mode & 0o7777, 0o755);
    set_mode(&bed, "f", 0o6755);
    bed.fs.fallocate(file.node, opened.fh, 0, 4096, 0).unwrap();
    assert_eq!(mode(), 0o755);
}

#[test]
fn chmod_may_set_group_id_for_a_group_that_the_daemon_is_not_in() {
    let bed = Bed::new();
    let (file, _) = bed.fs.create(NodeId::ROOT, c"f", RDWR, 0o644, 0, &USER, TGID).unwrap();
    let set = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    assert_eq!(bed.fs.setattr(file.node, &set).unwrap().mode & 0o7777, 0o6755);
    let set = SetAttr { uid: Some(99), ..SetAttr::default() };
    let attr = bed.fs.setattr(file.node, &set).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (99, 5678, 0o755), "chown clears them");
}

#[test]
fn times_are_set_kept_or_taken_from_the_clock() {
    let bed = Bed::new();
    let (file, _) = bed.make("f");
    let set = SetAttr { atime: SetTime::At(-5, 7), mtime: SetTime::At(1000, 999), ..SetAttr::default() };
    let attr = bed.fs.setattr(file.node, &set).unwrap();
    assert_eq!((attr.atime, attr.mtime), ((-5, 7), (1000, 999)));
    let set = SetAttr { mtime: SetTime::Now, ..SetAttr::default() };
    let attr = bed.fs.setattr(file.node, &set).unwrap();
    assert_eq!(attr.atime, (-5, 7));
    assert!(attr.mtime.0 > 1_600_000_000);
    assert!(bed.fs.statx(file.node, 0, 0).unwrap().attr == attr);
}

#[test]
fn attributes_of_links_and_pipes_are_their_own() {
    let bed = Bed::new();
    let pipe = bed.fs.mknod(NodeId::ROOT, c"p", libc::S_IFIFO | 0o600, 0, 0, &ROOT).unwrap();
    let set = SetAttr { mode: Some(0o640), uid: Some(5), ..SetAttr::default() };
    let attr = bed.fs.setattr(pipe.node, &set).unwrap();
    assert_eq!((attr.mode, attr.uid), (libc::S_IFIFO | 0o640, 5));
    std::fs::write(bed.path("target"), "").unwrap();
    let link = bed.fs.symlink(NodeId::ROOT, c"l", c"target", &ROOT).unwrap();
    let set = SetAttr { uid: Some(6), mtime: SetTime::At(1, 0), ..SetAttr::default() };
    let attr = bed.fs.setattr(link.node, &set).unwrap();
    assert_eq!((attr.uid, attr.mtime), (6, (1, 0)));
    assert_eq!(std::fs::metadata(bed.path("target")).unwrap().uid(), 0);
}

#[test]
fn extended_attributes_come_and_go() {
    let bed = Bed::new();
    let (file, _) = bed.make("f");
    let node = file.node;
    assert_eq!(bed.fs.getxattr(node, c"user.a").unwrap_err(), Errno::NODATA);
    match bed.fs.setxattr(node, c"user.a", b"", 0, false) {
        Err(Errno::OPNOTSUPP) => return eprintln!("no extended attributes here"),
        result => result.unwrap(),
    }
    let long = vec![7; 3000];
    bed.fs.setxattr(node, c"user.long", &long, 0, false).unwrap();
    let create = libc::XATTR_CREATE as u32;
    assert_eq!(bed.fs.setxattr(node, c"user.a", b"x", create, false).unwrap_err(), Errno::EXIST);
    assert_eq!(bed.fs.getxattr(node, c"user.a").unwrap(), b"");
    assert_eq!(bed.fs.getxattr(node, c"user.long").unwrap(), long);
    let names = bed.fs.listxattr(node, || true).unwrap();
    assert!(names.split(|b| *b == 0).any(|n| n == b"user.long"));
    bed.fs.removexattr(node, c"user.a").unwrap();
    assert_eq!(bed.fs.removexattr(node, c"user.a").unwrap_err(), Errno::NODATA);
    // Of a link, not of what it points to.
    let link = bed.fs.symlink(NodeId::ROOT, c"l", c"f", &ROOT).unwrap();
    bed.fs.setxattr(link.node, c"trusted.t", b"1", 0, false).unwrap();
    assert_eq!(bed.fs.getxattr(node, c"trusted.t").unwrap_err(), Errno::NODATA);
    assert_eq!(bed.fs.getxattr(link.node, c"trusted.t").unwrap(), b"1");
    // What no file system here has.
    assert_eq!(bed.fs.getxattr(node, c"nonsense").unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn an_acl_of_a_group_keeps_set_group_id_unless_the_kernel_says_otherwise() {
    let bed = Bed::new();
    let (file, _) = bed.fs.create(NodeId::ROOT, c"f", RDWR, 0o644, 0, &USER, TGID).unwrap();
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits) in [(1u16, 7u16), (4, 5), (0x20, 5)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(bits.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    for (kill, after) in [(false, 0o2755), (true, 0o755)] {
        // By the daemon: this thread has given up CAP_FSETID.
        bed.fs.setattr(file.node, &SetAttr { mode: Some(0o2755), ..SetAttr::default() }).unwrap();
        match bed.fs.setxattr(file.node, c"system.posix_acl_access", &acl, 0, kill) {
            Err(Errno::OPNOTSUPP) => return eprintln!("no ACLs here"),
            result => result.unwrap(),
        }
        assert_eq!(bed.fs.getattr(file.node).unwrap().mode & 0o7777, after);
    }
}

#[test]
fn holes_are_found_made_and_copied() {
    let bed = Bed::new();
    let (file, opened) = bed.make("f");
    let fh = opened.fh;
    const MIB: u64 = 1 << 20;
    bed.fs.write(file.node, fh, MIB, &vec![1; 1 << 20], false).unwrap();
    assert_eq!(bed.fs.lseek(file.node, fh, 0, libc::SEEK_DATA as u32).unwrap(), MIB);
    assert_eq!(bed.fs.lseek(file.node, fh, MIB, libc::SEEK_HOLE as u32).unwrap(), 2 * MIB);
    assert_eq!(bed.fs.lseek(file.node, fh, 2 * MIB, libc::SEEK_DATA as u32).unwrap_err(), Errno::NXIO);
    assert_eq!(bed.fs.lseek(file.node, fh, 0, libc::SEEK_SET as u32).unwrap_err(), Errno::INVAL);
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    bed.fs.fallocate(file.node, fh, MIB, MIB / 2, punch).unwrap();
    assert_eq!(bed.fs.lseek(file.node, fh, 0, libc::SEEK_DATA as u32).unwrap(), MIB + MIB / 2);
    let (copy, to) = bed.make("g");
    let from = (file.node, fh, MIB + MIB / 2);
    let done = bed.fs.copy_file_range(from, (copy.node, to.fh, 0), u64::MAX, 0).unwrap();
    assert_eq!(done as u64, MIB / 2);
    assert_eq!(std::fs::read(bed.path("g")).unwrap(), vec![1; 1 << 19]);
    let refused = bed.fs.copy_file_range(from, (copy.node, to.fh, 0), 1, 1);
    assert_eq!(refused.unwrap_err(), Errno::INVAL);
}

#[test]
fn a_read_only_session_changes_nothing() {
    let bed = Bed::new();
    std::fs::write(bed.path("f"), "x").unwrap();
    let (fs, _notes) = serve(&bed.dir, &Arc::new(SessionState::anonymous().unwrap()), &bed.fds, true);
    let node = fs.lookup(NodeId::ROOT, c"f").unwrap().node;
    assert_eq!(fs.unlink(NodeId::ROOT, c"f").unwrap_err(), Errno::ROFS);
    assert_eq!(fs.open(node, RDWR, false, &ROOT, TGID).unwrap_err(), Errno::ROFS);
    assert_eq!(fs.setattr(node, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap_err(), Errno::ROFS);
    assert_eq!(fs.create(NodeId::ROOT, c"g", RDWR, 0, 0, &ROOT, TGID).unwrap_err(), Errno::ROFS);
    let fh = fs.open(node, RDONLY, false, &ROOT, TGID).unwrap().fh;
    assert_eq!(fs.read(node, fh, 0, &mut [0; 8]).unwrap(), 1);
}

#[test]
fn the_whole_file_system_answers() {
    let bed = Bed::new();
    let stat = bed.fs.statfs(NodeId::ROOT).unwrap();
    assert!(stat.blocks > 0 && stat.namelen >= 255 && stat.frsize > 0);
    bed.fs.syncfs(NodeId::ROOT).unwrap();
    bed.fs.access(NodeId::ROOT).unwrap();
    let (file, opened) = bed.make("f");
    bed.fs.fsync(file.node, opened.fh, false).unwrap();
    bed.fs.flush(file.node, opened.fh).unwrap();
    let dir = bed.fs.opendir(NodeId::ROOT, &ROOT, TGID).unwrap().fh;
    bed.fs.fsyncdir(NodeId::ROOT, dir, true).unwrap();
    // A handle of a directory is none of a file.
    assert_eq!(bed.fs.read(NodeId::ROOT, dir, 0, &mut [0; 1]).unwrap_err(), Errno::BADF);
}
