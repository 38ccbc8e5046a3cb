//! Walks over trees whose owner changes them meanwhile, to be led out of them, around in circles or astray.
//! `KUBE3FS_TREE_ROUNDS` sets how often each is tried.

mod support;

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use support::{exchange, holds, nest, run, while_it_changes};
use tempfile::{TempDir, tempdir};

const SECRET: &[u8] = b"a secret of the node";

fn rounds() -> usize {
    std::env::var("KUBE3FS_TREE_ROUNDS").map_or(12, |rounds| rounds.parse().expect("a number"))
}

/// What is not the tree's: a directory with a file that only root may read, and one that a link may lead to.
fn outside() -> TempDir {
    let outside = tempdir().unwrap();
    std::fs::create_dir(outside.path().join("below")).unwrap();
    for name in ["file", "below/file"] {
        std::fs::write(outside.path().join(name), SECRET).unwrap();
    }
    outside
}

fn assert_untouched(outside: &TempDir) {
    for name in ["file", "below/file"] {
        let path = outside.path().join(name);
        assert_eq!(std::fs::read(&path).unwrap(), SECRET);
        assert_eq!(path.metadata().unwrap().gid(), 0);
    }
    assert_eq!(outside.path().metadata().unwrap().gid(), 0);
}

/// A tree in which directories and files change places with links that lead outside.
fn flipping(top: &Path, outside: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut pairs = Vec::new();
    for folder in 0..3 {
        let folder = top.join(format!("{folder}"));
        std::fs::create_dir(&folder).unwrap();
        for number in 0..4 {
            let (it, link) = (folder.join(format!("a{number}")), folder.join(format!("b{number}")));
            if number == 0 {
                std::fs::write(&it, b"mine").unwrap();
                symlink(outside.join("file"), &link).unwrap();
            } else {
                std::fs::create_dir(&it).unwrap();
                std::fs::write(it.join("file"), b"mine").unwrap();
                symlink(outside, &link).unwrap();
            }
            pairs.push((it, link));
        }
        pairs.push((folder.clone(), top.join(format!("link{}", pairs.len()))));
        symlink(outside, &pairs[pairs.len() - 1].1).unwrap();
    }
    pairs
}

fn flip(pairs: &[(PathBuf, PathBuf)]) {
    for (one, other) in pairs {
        exchange(one, other);
    }
}

#[test]
fn nothing_from_outside_comes_into_a_copy() {
    let (outside, source) = (outside(), tempdir().unwrap());
    let pairs = flipping(source.path(), outside.path());
    while_it_changes(
        || flip(&pairs),
        || {
            for round in 0..rounds() {
                let target = tempdir().unwrap();
                run("copy", &[source.path(), target.path()], &[]).done();
                assert!(!holds(target.path(), SECRET), "round {round}");
            }
        },
    );
}

#[test]
fn nothing_outside_is_removed_or_handed_over() {
    let outside = outside();
    for round in 0..rounds() {
        let top = tempdir().unwrap();
        let pairs = flipping(top.path(), outside.path());
        while_it_changes(
            || flip(&pairs),
            || {
                run("group", &[top.path()], &["4000"]).done();
                run("count", &[top.path()], &["60"]).done();
                run("remove", &[top.path()], &["60"]).done();
            },
        );
        assert_untouched(&outside);
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 0, "round {round}");
    }
}

#[test]
fn a_walk_whose_way_back_was_moved_goes_on_above_it() {
    let (source, elsewhere) = (tempdir().unwrap(), "elsewhere");
    nest(source.path(), "d", 600);
    std::fs::write(source.path().join("last"), b"last").unwrap();
    let cut = source.path().join("d/".repeat(200));
    while_it_changes(
        || {
            let _ = std::fs::rename(&cut, source.path().join(elsewhere));
            let _ = std::fs::rename(source.path().join(elsewhere), &cut);
        },
        || {
            for _ in 0..rounds() / 4 {
                let target = tempdir().unwrap();
                run("copy", &[source.path(), target.path()], &[]).done();
                run("group", &[source.path()], &["4000"]).done();
                assert_eq!(std::fs::read(target.path().join("last")).unwrap(), b"last");
                run("remove", &[target.path()], &["60"]).done();
            }
        },
    );
}

#[test]
fn a_walk_that_is_led_around_in_circles_ends() {
    let source = tempdir().unwrap();
    for number in 0..20 {
        std::fs::create_dir_all(source.path().join(format!("{number}/a/b/c"))).unwrap();
    }
    let mut next = 20;
    while_it_changes(
        || {
            // What was walked comes again under a new name.
            let _ = std::fs::rename(
                source.path().join((next - 20).to_string()),
                source.path().join(next.to_string()),
            );
            next += 1;
        },
        || {
            for _ in 0..rounds() / 4 {
                run("count", &[source.path()], &["60"]).done();
                let target = tempdir().unwrap();
                let ended = run("copy", &[source.path(), target.path()], &[]);
                // It came to its end, or said that it cannot.
                let errno = rustix::io::Errno::AGAIN.raw_os_error();
                assert!(ended.status == 0 || ended.last["errno"] == errno, "{}", ended.last);
            }
        },
    );
}

#[test]
fn it_sees_nothing_of_the_machine_but_its_trees() {
    let source = tempdir().unwrap();
    let target = tempdir().unwrap();
    std::fs::write(source.path().join("file"), vec![1; 64 << 20]).unwrap();
    // While it copies, its table of mounts is looked at from here.
    let seen = std::sync::Mutex::new(None);
    while_it_changes(
        || {
            for process in std::fs::read_dir("/proc").unwrap().flatten() {
                let own = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                let table = std::fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
                if own.trim() == "kube3fs-tree" && table.lines().count() == 3 {
                    let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
                    if status.contains("NoNewPrivs:\t1") {
                        *seen.lock().unwrap() = Some((table, status));
                    }
                }
            }
        },
        || {
            for _ in 0..50 {
                run("copy", &[source.path(), target.path()], &[]).done();
                run("remove", &[target.path()], &["60"]).done();
                if seen.lock().unwrap().is_some() {
                    break;
                }
            }
        },
    );
    let (table, status) = seen.into_inner().unwrap().expect("it was seen");
    let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert!(points.iter().all(|point| ["/", "/0", "/1"].contains(point)), "{table}");
    assert!(status.contains("CapInh:\t0000000000000000"), "{status}");
    assert!(!status.contains("CapBnd:\t000001ffffffffff"), "{status}");
}
