use super::*;
use crate::types::Errno;
use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

#[test]
fn names_that_would_leave_the_directory_are_refused() {
    let bed = Bed::new();
    for name in [c"", c".", c"..", c"a/b", c"../x", c"/etc"] {
        assert_eq!(bed.fs.lookup(NodeId::ROOT, name).unwrap_err(), Errno::INVAL, "{name:?}");
        assert_eq!(bed.fs.unlink(NodeId::ROOT, name).unwrap_err(), Errno::INVAL);
        assert_eq!(bed.fs.mkdir(NodeId::ROOT, name, 0o755, 0, &ROOT).unwrap_err(), Errno::INVAL);
        assert_eq!(bed.fs.rename(NodeId::ROOT, c"a", NodeId::ROOT, name, 0).unwrap_err(), Errno::INVAL);
        let made = bed.fs.create(NodeId::ROOT, name, RDWR, 0o644, 0, &ROOT, TGID);
        assert_eq!(made.unwrap_err(), Errno::INVAL);
    }
}

#[test]
fn a_symbolic_link_is_a_link_and_nothing_lies_beneath_it() {
    let bed = Bed::new();
    symlink("/etc", bed.path("out")).unwrap();
    let out = lookup(&bed, c"out");
    assert_eq!(out.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(bed.fs.readlink(out.node).unwrap(), b"/etc");
    assert_eq!(bed.fs.lookup(out.node, c"passwd").unwrap_err(), Errno::NOTDIR);
    assert!(bed.fs.open(out.node, RDONLY, false, &ROOT, TGID).is_err());
    assert!(bed.fs.opendir(out.node, &ROOT, TGID).is_err());
    let made = bed.fs.create(NodeId::ROOT, c"out", RDWR, 0o644, 0, &ROOT, TGID);
    assert_eq!(made.unwrap_err(), Errno::STALE);
}

#[test]
fn an_inode_number_that_comes_back_is_another_node() {
    let bed = Bed::new();
    let (first, opened) = bed.make("f");
    bed.fs.release(first.node, opened.fh);
    bed.fs.unlink(NodeId::ROOT, c"f").unwrap();
    // As when the kernel has not forgotten it yet; the daemon's own fd goes, so that the number is free.
    bed.fds.clear();
    for i in 0..1000 {
        let (entry, opened) = bed.make(&format!("g{i}"));
        bed.fs.release(entry.node, opened.fh);
        assert_ne!(entry.node, first.node);
        if entry.attr.ino == first.attr.ino {
            assert_eq!(bed.fs.getattr(first.node).unwrap_err(), Errno::STALE);
            assert_eq!(lookup(&bed, &c(&format!("g{i}"))).node, entry.node);
            assert_eq!(bed.fs.node_of(crate::types::Ino(entry.attr.ino)), Some(entry.node));
            // Forgetting the old one leaves the new one findable.
            bed.fs.forget(first.node, 1);
            assert_eq!(bed.fs.node_of(crate::types::Ino(entry.attr.ino)), Some(entry.node));
            return;
        }
    }
    eprintln!("this file system did not use the number again");
}

#[test]
fn rename_honours_no_replace_and_exchange() {
    let bed = Bed::new();
    std::fs::write(bed.path("a"), "A").unwrap();
    std::fs::write(bed.path("b"), "B").unwrap();
    let rename = |flags| bed.fs.rename(NodeId::ROOT, c"a", NodeId::ROOT, c"b", flags);
    assert_eq!(rename(libc::RENAME_NOREPLACE).unwrap_err(), Errno::EXIST);
    rename(libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(std::fs::read(bed.path("a")).unwrap(), b"B");
    rename(0).unwrap();
    assert_eq!(std::fs::read(bed.path("b")).unwrap(), b"B");
    assert_eq!(rename(1 << 20).unwrap_err(), Errno::INVAL);
}

#[test]
fn what_a_caller_makes_is_its_own_with_its_umask() {
    let bed = Bed::new();
    let owner = |name: &str| {
        let meta = std::fs::symlink_metadata(bed.path(name)).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    };
    let (_, opened) = bed.fs.create(NodeId::ROOT, c"f", RDWR, 0o666, 0o027, &USER, TGID).unwrap();
    assert!(opened.fh != 0);
    bed.fs.mkdir(NodeId::ROOT, c"d", 0o777, 0o022, &USER).unwrap();
    bed.fs.mknod(NodeId::ROOT, c"p", libc::S_IFIFO | 0o666, 0, 0o077, &USER).unwrap();
    bed.fs.symlink(NodeId::ROOT, c"l", c"anywhere", &USER).unwrap();
    assert_eq!(owner("f"), (1234, 5678, 0o640));
    assert_eq!(owner("d"), (1234, 5678, 0o755));
    assert_eq!(owner("p"), (1234, 5678, 0o600));
    assert_eq!((owner("l").0, owner("l").1), (1234, 5678));
    // The thread is root again.
    bed.make("mine");
    assert_eq!(owner("mine"), (0, 0, 0o644));
}

#[test]
fn a_caller_may_create_where_only_its_other_groups_let_it() {
    let bed = Bed::new();
    std::fs::create_dir(bed.path("d")).unwrap();
    std::fs::set_permissions(bed.path("d"), std::fs::Permissions::from_mode(0o770)).unwrap();
    let dir = lookup(&bed, c"d");
    bed.fs.create(dir.node, c"f", RDWR, 0o644, 0, &USER, TGID).unwrap();
    assert_eq!(std::fs::metadata(bed.path("d/f")).unwrap().uid(), 1234);
}

#[test]
fn set_group_id_directories_hand_down_their_group() {
    let bed = Bed::new();
    std::fs::create_dir(bed.path("d")).unwrap();
    std::os::unix::fs::chown(bed.path("d"), None, Some(4321)).unwrap();
    std::fs::set_permissions(bed.path("d"), std::fs::Permissions::from_mode(0o2777)).unwrap();
    let dir = lookup(&bed, c"d");
    let (file, _) = bed.fs.create(dir.node, c"f", RDWR, 0o2755, 0, &USER, TGID).unwrap();
    assert_eq!((file.attr.uid, file.attr.gid, file.attr.mode & 0o7777), (1234, 4321, 0o2755));
    let sub = bed.fs.mkdir(dir.node, c"s", 0o755, 0, &USER).unwrap();
    assert_eq!((sub.attr.gid, sub.attr.mode & 0o7777), (4321, 0o2755));
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    let bed = Bed::new();
    let dir = bed.fs.mkdir(NodeId::ROOT, c"d", 0o755, 0, &ROOT).unwrap();
    // Version 2; owner rwx, group rwx, others rx.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits) in [(1u16, 7u16), (4, 7), (0x20, 5)] {
        acl.extend(tag.to_le_bytes());
        acl.extend(bits.to_le_bytes());
        acl.extend(u32::MAX.to_le_bytes());
    }
    match bed.fs.setxattr(dir.node, c"system.posix_acl_default", &acl, 0, false) {
        Err(Errno::OPNOTSUPP) => return eprintln!("no ACLs here"),
        result => result.unwrap(),
    }
    let sub = bed.fs.mkdir(dir.node, c"s", 0o777, 0o077, &USER).unwrap();
    assert_eq!(sub.attr.mode & 0o777, 0o775);
}

#[test]
fn create_leaves_a_file_that_was_made_meanwhile_to_the_kernels_checks() {
    let bed = Bed::new();
    std::fs::write(bed.path("secret"), "x").unwrap();
    let excl = RDWR | libc::O_EXCL as u32;
    let make = |flags| bed.fs.create(NodeId::ROOT, c"secret", flags, 0o644, 0, &USER, TGID).unwrap_err();
    assert_eq!(make(RDWR), Errno::STALE);
    assert_eq!(make(excl), Errno::EXIST);
}

#[test]
fn a_hard_link_is_the_same_node() {
    let bed = Bed::new();
    let (file, _) = bed.make("f");
    let link = bed.fs.link(file.node, NodeId::ROOT, c"g").unwrap();
    assert_eq!((link.node, link.attr.ino, link.attr.nlink), (file.node, file.attr.ino, 2));
    assert_eq!(lookup(&bed, c"g").node, file.node);
}

#[test]
fn an_unnamed_file_can_be_given_a_name() {
    let bed = Bed::new();
    let (file, opened) = bed.fs.tmpfile(NodeId::ROOT, RDWR, 0o640, 0, &USER, TGID).unwrap();
    bed.fs.write(file.node, opened.fh, 0, b"later named", false).unwrap();
    bed.fs.link(file.node, NodeId::ROOT, c"named").unwrap();
    assert_eq!(std::fs::read(bed.path("named")).unwrap(), b"later named");
    assert_eq!(std::fs::metadata(bed.path("named")).unwrap().uid(), 1234);
}

#[test]
fn the_root_is_inode_1_and_inode_numbers_lead_to_nodes() {
    let bed = Bed::new();
    assert_eq!(bed.fs.getattr(NodeId::ROOT).unwrap().ino, 1);
    assert_eq!(bed.fs.node_of(crate::types::Ino(1)), Some(NodeId::ROOT));
    let (file, opened) = bed.make("f");
    let ino = crate::types::Ino(file.attr.ino);
    assert_eq!(file.attr.ino, std::fs::metadata(bed.path("f")).unwrap().ino());
    assert_eq!(bed.fs.node_of(ino), Some(file.node));
    bed.fs.forget(file.node, 1);
    assert_eq!(bed.fs.node_of(ino), Some(file.node), "still open");
    bed.fs.release(file.node, opened.fh);
    assert_eq!(bed.fs.node_of(ino), None);
    assert_eq!(bed.fs.getattr(file.node).unwrap_err(), Errno::STALE);
    // Never known, or wild.
    for ino in [0, 2, u64::MAX, 1 << 59, 0xffff_ffff_8000_0000] {
        assert_eq!(bed.fs.node_of(crate::types::Ino(ino)), None);
    }
}

#[test]
fn ten_thousand_entries_are_listed_once_each_while_others_go() {
    let bed = Bed::new();
    for i in 0..10_000 {
        std::fs::write(bed.path(&format!("f{i:05}")), "").unwrap();
    }
    for plus in [false, true] {
        let fh = bed.fs.opendir(NodeId::ROOT, &ROOT, TGID).unwrap().fh;
        // Odd files go, one with each call, some before and some after they were listed.
        let start = if plus { 5001 } else { 1 };
        let names = list(&bed, NodeId::ROOT, fh, plus, 37, |round| {
            let _ = std::fs::remove_file(bed.path(&format!("f{:05}", start + 2 * round)));
        });
        let unique: HashSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "an entry came twice");
        assert!((0..10_000).step_by(2).all(|i| unique.contains(&format!("f{i:05}"))));
        assert!(unique.contains(&"..".to_string()));
        bed.fs.releasedir(NodeId::ROOT, fh);
    }
    assert_eq!(bed.state.nodes.iter().count(), 0, "every lookup of readdirplus was given back");
    assert_eq!(bed.state.opens.iter().count(), 0);
}

#[test]
fn a_rewound_directory_shows_what_is_new() {
    let bed = Bed::new();
    let fh = bed.fs.opendir(NodeId::ROOT, &ROOT, TGID).unwrap().fh;
    assert_eq!(list(&bed, NodeId::ROOT, fh, false, 100, |_| ()).len(), 2);
    bed.make("new");
    assert_eq!(list(&bed, NodeId::ROOT, fh, true, 100, |_| ()).len(), 3);
}

#[test]
fn five_thousand_nodes_need_no_five_thousand_fds() {
    let bed = Bed::new();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let nodes: Vec<_> = (0..5000)
        .map(|i| bed.fs.mkdir(NodeId::ROOT, &c(&format!("d{i}")), 0o755, 0, &ROOT).unwrap())
        .collect();
    for entry in nodes.iter().rev() {
        assert_eq!(bed.fs.getattr(entry.node).unwrap().ino, entry.attr.ino);
    }
    assert!(bed.fds.len() <= 64);
    let after = std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Other tests run in this process at the same time.
    assert!(after < before + 2000, "{before} fds became {after}");
    for entry in nodes {
        bed.fs.forget(entry.node, 1);
    }
    assert_eq!(bed.state.nodes.iter().count(), 0);
    assert!(bed.fds.is_empty());
}

#[test]
fn threads_that_make_look_up_and_remove_the_same_names_leave_no_node() {
    let bed = Bed::new();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let bed = &bed;
            scope.spawn(move || {
                for i in 0..400 {
                    let name = c(&format!("n{}", (thread * 7 + i) % 5));
                    if let Ok((entry, opened)) =
                        bed.fs.create(NodeId::ROOT, &name, RDWR, 0o644, 0o022, &USER, TGID)
                    {
                        bed.fs.write(entry.node, opened.fh, 0, b"x", false).unwrap();
                        bed.fs.release(entry.node, opened.fh);
                        bed.fs.forget(entry.node, 1);
                    }
                    if let Ok(entry) = bed.fs.lookup(NodeId::ROOT, &name) {
                        let opened = bed.fs.open(entry.node, RDWR, false, &USER, TGID);
                        let _ = bed.fs.getattr(entry.node);
                        if let Ok(opened) = opened {
                            bed.fs.release(entry.node, opened.fh);
                        }
                        bed.fs.forget(entry.node, 1);
                    }
                    let _ = bed.fs.unlink(NodeId::ROOT, &name);
                }
            });
        }
    });
    assert_eq!(bed.state.nodes.iter().count(), 0);
    assert_eq!(bed.state.opens.iter().count(), 0);
    assert!(bed.fds.is_empty());
}
