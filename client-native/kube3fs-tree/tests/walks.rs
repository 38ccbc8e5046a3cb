//! Each walk on trees that nobody changes: what it does, and that no shape of a tree is too much for it.

mod support;

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use support::{nest, run, seen};
use tempfile::tempdir;

/// What is made in the tree of a test, in the directory of the number `within`.
#[derive(Clone, Debug)]
struct Made {
    within: usize,
    name: Vec<u8>,
    what: What,
    owner: u32,
    mode: u32,
}

#[derive(Clone, Debug)]
enum What {
    Directory,
    File(Vec<u8>),
    Sparse(u64),
    Link(Vec<u8>),
    Again(usize),
    Fifo,
    Attribute(Vec<u8>),
}

fn made() -> impl Strategy<Value = Made> {
    let name =
        prop::collection::vec(any::<u8>().prop_filter("no slash", |byte| !b"/\0".contains(byte)), 1..40)
            .prop_filter("no dots", |name| name != b"." && name != b"..");
    let what = prop_oneof![
        Just(What::Directory),
        prop::collection::vec(any::<u8>(), 0..9000).prop_map(What::File),
        (1..1u64 << 32).prop_map(What::Sparse),
        prop::collection::vec(1..=255u8, 1..200).prop_map(What::Link),
        any::<usize>().prop_map(What::Again),
        Just(What::Fifo),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(What::Attribute),
    ];
    (any::<usize>(), name, what, 0..5000u32, 0..0o7777u32)
        .prop_map(|(within, name, what, owner, mode)| Made { within, name, what, owner, mode })
}

/// A path below `top` of any bytes.
fn named(top: &Path, name: &[u8]) -> PathBuf {
    top.join(OsString::from_vec(name.to_vec()))
}

fn make(top: &Path, all: &[Made]) {
    let (mut folders, mut files) = (vec![top.to_owned()], Vec::new());
    for one in all {
        let path = named(&folders[one.within % folders.len()], &one.name);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match &one.what {
            What::Directory => {
                std::fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            What::File(bytes) => std::fs::write(&path, bytes).unwrap(),
            What::Sparse(length) => {
                std::fs::File::create(&path).unwrap().set_len(*length % (1 << 20)).unwrap()
            }
            What::Link(to) => symlink(named(Path::new(""), to), &path).unwrap(),
            What::Again(number) if files.is_empty() => std::fs::write(&path, number.to_string()).unwrap(),
            What::Again(number) => {
                let first: &PathBuf = &files[number % files.len()];
                rustix::fs::linkat(CWD, first, CWD, &path, AtFlags::empty()).unwrap();
            }
            What::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            What::Attribute(value) => {
                std::fs::write(&path, b"").unwrap();
                rustix::fs::setxattr(&path, "user.any", value, XattrFlags::empty()).unwrap();
            }
        }
        if !matches!(one.what, What::Directory) {
            files.push(path.clone());
        }
        rustix::fs::chownat(
            CWD,
            &path,
            Some(rustix::fs::Uid::from_raw(one.owner)),
            Some(rustix::fs::Gid::from_raw(one.owner + 1)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        if !path.is_symlink() {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(one.mode)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_looks_like_its_source_and_a_removed_tree_is_gone(all in prop::collection::vec(made(), 0..60)) {
        let (source, target) = (tempdir().unwrap(), tempdir().unwrap());
        make(source.path(), &all);
        run("copy", &[source.path(), target.path()], &[]).done();
        prop_assert_eq!(seen(source.path()), seen(target.path()));
        let counted = run("count", &[source.path()], &["60"]).done();
        let inodes: std::collections::BTreeSet<u64> =
            seen(source.path()).keys().map(|p| source.path().join(p).symlink_metadata().unwrap().ino()).collect();
        prop_assert_eq!(counted["inodes"].as_u64().unwrap(), inodes.len() as u64);
        run("remove", &[target.path()], &["60"]).done();
        prop_assert_eq!(seen(target.path()).len(), 1);
    }
}

#[test]
fn a_tree_deeper_than_any_path_is_copied_counted_handed_over_and_removed() {
    let (source, target) = (tempdir().unwrap(), tempdir().unwrap());
    nest(source.path(), &"n".repeat(200), 3000);
    for top in [&source, &target] {
        if top.path() == target.path() {
            run("copy", &[source.path(), target.path()], &[]).done();
        }
        let counted = run("count", &[top.path()], &["60"]).done();
        assert_eq!(counted["inodes"], 3002);
        assert_eq!(counted["complete"], true);
        assert_eq!(run("group", &[top.path()], &["4000"]).done()["directories"], 3000);
    }
    for top in [&source, &target] {
        run("remove", &[top.path()], &["60"]).done();
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 0);
    }
}

#[test]
fn many_long_names_and_many_full_directories_need_no_more_memory() {
    let top = tempdir().unwrap();
    for number in 0..3000 {
        std::fs::write(top.path().join(format!("{number:0>250}")), b"").unwrap();
        let full = top.path().join(format!("full{number}"));
        std::fs::create_dir_all(full.join("below")).unwrap();
    }
    assert_eq!(run("count", &[top.path()], &["60"]).done()["inodes"], 9001);
    run("remove", &[top.path()], &["60"]).done();
    assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_cannot_be_removed_keeps_only_itself() {
    let top = tempdir().unwrap();
    for name in ["a", "b", "c"] {
        std::fs::create_dir_all(top.path().join(name).join("d/e")).unwrap();
        std::fs::write(top.path().join(name).join("d/file"), b"x").unwrap();
    }
    let kept = top.path().join("b/d/file");
    let flags =
        |more| std::process::Command::new("chattr").args([more]).arg(&kept).status().unwrap().success();
    assert!(flags("+i"));
    let ended = run("remove", &[top.path()], &["60"]);
    let left: Vec<_> = std::fs::read_dir(top.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    // It was moved up with its directory.
    let kept_now: Vec<_> =
        left.iter().map(|folder| folder.join("file")).filter(|file| file.exists()).collect();
    assert_eq!(kept_now.len(), 1);
    assert!(std::process::Command::new("chattr").arg("-i").arg(&kept_now[0]).status().unwrap().success());
    assert_eq!(ended.last["errno"], 1, "{}", ended.last);
    assert!(ended.last["error"].as_str().unwrap().contains("\"file\""), "{}", ended.last);
    run("remove", &[top.path()], &["60"]).done();
    assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 0);
}

#[test]
fn a_walk_ends_when_its_time_is_over() {
    let top = tempdir().unwrap();
    std::fs::write(top.path().join("file"), b"x").unwrap();
    let ended = run("remove", &[top.path()], &["0"]);
    assert_eq!(ended.last["errno"], rustix::io::Errno::TIME.raw_os_error());
    std::fs::write(top.path().join("file"), b"x").unwrap();
    assert_eq!(run("count", &[top.path()], &["0"]).done()["complete"], false);
}

#[test]
fn a_group_gets_what_is_in_others_hands_and_leaves_its_own_members_secrets() {
    let top = tempdir().unwrap();
    let mode = |name: &str| {
        let meta = top.path().join(name).symlink_metadata().unwrap();
        (meta.gid(), meta.mode() & 0o7777)
    };
    std::fs::write(top.path().join("file"), b"x").unwrap();
    std::fs::set_permissions(top.path().join("file"), PermissionsExt::from_mode(0o4600)).unwrap();
    symlink("/etc/passwd", top.path().join("link")).unwrap();
    run("group", &[top.path()], &["4000"]).done();
    assert_eq!(mode("file"), (4000, 0o4660));
    assert_eq!(mode("link").0, 4000);
    assert_eq!(mode("").0, 4000);

    std::fs::create_dir(top.path().join("private")).unwrap();
    std::fs::set_permissions(top.path().join("private"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::create_dir(top.path().join("others")).unwrap();
    chown(top.path().join("others"), None, Some(0)).unwrap();
    std::fs::set_permissions(top.path().join("others"), PermissionsExt::from_mode(0o700)).unwrap();
    run("group", &[top.path()], &["4000"]).done();
    assert_eq!(mode("private"), (4000, 0o700));
    assert_eq!(mode("others"), (4000, 0o2770));

    run("group", &[top.path()], &["5000"]).done();
    assert_eq!(mode("private"), (5000, 0o2770));
}
