//! Two mounts of one folder by one daemon: what one has done, the other sees from its next call on.

mod fuse_mount;

use fuse_mount::{Mount, Setup, mount, mount_beside};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn setup(passthrough: bool) -> Setup {
    Setup { passthrough, ..Setup::default() }
}

/// Both ways, with and without passthrough.
fn both_ways(check: impl Fn(&Mount, &Mount)) {
    for passthrough in [true, false] {
        let one = mount(setup(passthrough));
        let two = mount_beside(&one, setup(passthrough), "");
        check(&one, &two);
        check(&two, &one);
    }
}

fn read(mount: &Mount, name: &str) -> String {
    fs::read_to_string(mount.path(name)).unwrap()
}

/// Replaces a file as programs do it.
fn replace(mount: &Mount, name: &str, content: &str) {
    fs::write(mount.path("new"), content).unwrap();
    fs::rename(mount.path("new"), mount.path(name)).unwrap();
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

#[test]
fn a_file_that_one_replaces_is_the_new_one_to_the_other() {
    both_ways(|a, b| {
        for round in 0..50 {
            replace(a, "log", "first\n");
            assert_eq!(read(b, "log"), "first\n");
            replace(a, "log", &format!("rotated {round}\n"));
            let mut log = OpenOptions::new().append(true).open(b.path("log")).unwrap();
            log.write_all(b"appended\n").unwrap();
            log.sync_all().unwrap();
            assert_eq!(read(a, "log"), format!("rotated {round}\nappended\n"));
        }
    });
}

#[test]
fn names_that_one_makes_moves_and_removes_are_so_to_the_other() {
    both_ways(|a, b| {
        for _ in 0..20 {
            assert!(is_missing(&b.path("d/f")));
            fs::create_dir(a.path("d")).unwrap();
            fs::write(a.path("d/f"), "x").unwrap();
            assert_eq!(read(b, "d/f"), "x");
            assert_eq!(fs::read_dir(b.path("d")).unwrap().count(), 1);
            fs::rename(a.path("d"), a.path("e")).unwrap();
            assert!(is_missing(&b.path("d")) && is_missing(&b.path("d/f")));
            assert_eq!(read(b, "e/f"), "x");
            fs::hard_link(a.path("e/f"), a.path("e/g")).unwrap();
            assert_eq!(fs::metadata(b.path("e/f")).unwrap().nlink(), 2);
            symlink("f", a.path("e/link")).unwrap();
            assert_eq!(fs::read_link(b.path("e/link")).unwrap(), Path::new("f"));
            fs::remove_file(a.path("e/link")).unwrap();
            symlink("g", a.path("e/link")).unwrap();
            assert_eq!(fs::read_link(b.path("e/link")).unwrap(), Path::new("g"));
            let mut names: Vec<_> = fs::read_dir(b.path("e"))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names, ["f", "g", "link"]);
            fs::remove_dir_all(a.path("e")).unwrap();
            assert!(is_missing(&b.path("e/f")) && is_missing(&b.path("e")));
        }
    });
}

#[test]
fn attributes_that_one_changes_are_so_to_the_other() {
    both_ways(|a, b| {
        fs::write(a.path("f"), "12345").unwrap();
        for round in 0..50u32 {
            let seen = || fs::metadata(b.path("f")).unwrap();
            let file = OpenOptions::new().append(true).open(a.path("f")).unwrap();
            (&file).write_all(b"67").unwrap();
            assert_eq!(seen().len(), 7);
            assert_eq!(read(b, "f"), "1234567");
            file.set_len(5).unwrap();
            assert_eq!(seen().len(), 5);
            assert_eq!(read(b, "f"), "12345");
            fs::set_permissions(a.path("f"), PermissionsExt::from_mode(0o600 + round % 8)).unwrap();
            assert_eq!(seen().mode() & 0o777, 0o600 + round % 8);
            std::os::unix::fs::chown(a.path("f"), Some(round), Some(round + 1)).unwrap();
            assert_eq!((seen().uid(), seen().gid()), (round, round + 1));
            let value = round.to_string();
            rustix::fs::setxattr(a.path("f"), "user.round", value.as_bytes(), XattrFlags::empty()).unwrap();
            let mut found = [0; 16];
            let len = rustix::fs::getxattr(b.path("f"), "user.round", &mut found).unwrap();
            assert_eq!(&found[..len], value.as_bytes());
        }
        fs::remove_file(a.path("f")).unwrap();
    });
}

#[test]
fn bytes_that_one_writes_are_read_by_the_other_from_a_file_that_it_has_open() {
    both_ways(|a, b| {
        fs::write(a.path("f"), [b'a'; 10_000]).unwrap();
        let (writer, mut reader) = (
            OpenOptions::new().write(true).open(a.path("f")).unwrap(),
            OpenOptions::new().read(true).open(b.path("f")).unwrap(),
        );
        for round in 0..200u8 {
            writer.write_all_at(&[round; 10_000], 0).unwrap();
            let mut found = Vec::new();
            reader.rewind().unwrap();
            reader.read_to_end(&mut found).unwrap();
            assert!(found.len() == 10_000 && found.iter().all(|byte| *byte == round), "round {round}");
        }
        fs::remove_file(a.path("f")).unwrap();
    });
}

#[test]
fn a_folder_inside_a_served_one_is_shared_as_well() {
    for passthrough in [true, false] {
        let outer = mount(setup(passthrough));
        fs::create_dir_all(outer.path("team/jobs")).unwrap();
        let inner = mount_beside(&outer, setup(passthrough), "team/jobs");
        for _ in 0..20 {
            fs::write(outer.path("team/jobs/f"), "old").unwrap();
            assert_eq!(read(&inner, "f"), "old");
            replace(&outer, "team/jobs/f", "new");
            assert_eq!(read(&inner, "f"), "new");
            replace(&inner, "f", "newer");
            assert_eq!(read(&outer, "team/jobs/f"), "newer");
        }
    }
}

#[test]
fn what_the_first_has_looked_up_before_the_second_came_is_forgotten() {
    for passthrough in [true, false] {
        let first = mount(setup(passthrough));
        fs::write(first.path("f"), "old").unwrap();
        assert_eq!(read(&first, "f"), "old");
        let second = mount_beside(&first, setup(passthrough), "");
        assert_eq!(read(&first, "f"), "old");
        let begun = Instant::now();
        replace(&second, "f", "new");
        assert_eq!(read(&first, "f"), "new");
        assert!(begun.elapsed() < Duration::from_secs(4), "the first change waits, but not for long");
        let begun = Instant::now();
        replace(&second, "f", "newer");
        assert!(begun.elapsed() < Duration::from_secs(1), "later ones do not wait");
    }
}

#[test]
fn the_kernel_keeps_names_only_where_nobody_else_may_change_them() {
    let valid =
        |mount: &Mount| mount.session.fs.lookup(usrbiod::types::NodeId::ROOT, c"f").unwrap().attr.valid;
    let first = mount(Setup::default());
    fs::write(first.path("f"), "x").unwrap();
    assert_eq!(valid(&first), 1);
    let reader = mount_beside(&first, Setup { read_only: true, ..Setup::default() }, "");
    assert_eq!((valid(&first), valid(&reader)), (1, 0));
    drop(reader);
    let second = mount_beside(&first, Setup::default(), "");
    assert_eq!((valid(&first), valid(&second)), (0, 0));
}

#[test]
fn when_the_other_is_gone_the_kernel_may_keep_names_again() {
    let first = mount(Setup::default());
    fs::write(first.path("f"), "x").unwrap();
    let second = mount_beside(&first, Setup::default(), "");
    let valid = || first.session.fs.lookup(usrbiod::types::NodeId::ROOT, c"f").unwrap().attr.valid;
    assert_eq!(valid(), 0);
    second.unmount();
    drop(second);
    let deadline = Instant::now() + Duration::from_secs(10);
    while valid() == 0 {
        assert!(Instant::now() < deadline, "the session that ended is still reckoned with");
        std::thread::yield_now();
    }
}

#[test]
fn a_file_that_is_replaced_in_the_backing_folder_is_looked_up_anew_by_an_open() {
    let mount = mount(Setup::default());
    for round in 0..50 {
        fs::write(mount.path("f"), "old\n").unwrap();
        assert_eq!(read(&mount, "f"), "old\n");
        fs::write(mount.backing("g"), "new\n").unwrap();
        fs::rename(mount.backing("g"), mount.backing("f")).unwrap();
        let mut file = OpenOptions::new().append(true).open(mount.path("f")).unwrap();
        writeln!(file, "{round}").unwrap();
        assert_eq!(fs::read_to_string(mount.backing("f")).unwrap(), format!("new\n{round}\n"));
    }
}

#[test]
fn a_file_without_a_name_can_be_opened_again_by_its_descriptor() {
    let mount = mount(Setup::default());
    fs::write(mount.path("f"), "content").unwrap();
    let file = File::open(mount.path("f")).unwrap();
    fs::remove_file(mount.path("f")).unwrap();
    let made = rustix::fs::openat(CWD, mount.path(""), OFlags::TMPFILE | OFlags::RDWR, Mode::RWXU).unwrap();
    for _ in 0..3 {
        let again = fs::read_to_string(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(again, "content");
        fs::write(format!("/proc/self/fd/{}", made.as_raw_fd()), "x").unwrap();
    }
    let name = format!("/proc/self/fd/{}", made.as_raw_fd());
    rustix::fs::linkat(CWD, name, CWD, mount.path("g"), AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(read(&mount, "g"), "x");
}

#[test]
fn what_both_append_at_once_is_all_there() {
    for (one, two) in [(false, false), (true, false), (true, true)] {
        let a = mount(setup(one));
        let b = mount_beside(&a, setup(two), "");
        std::thread::scope(|scope| {
            for (mount, who) in [(&a, "a"), (&b, "b"), (&a, "c"), (&b, "d")] {
                let path = mount.path("log");
                scope.spawn(move || {
                    let mut log = OpenOptions::new().create(true).append(true).open(path).unwrap();
                    for n in 0..500 {
                        log.write_all(format!("{who} {n} {}\n", "x".repeat(n % 50)).as_bytes()).unwrap();
                    }
                });
            }
        });
        let log = read(&a, "log");
        for who in ["a", "b", "c", "d"] {
            let own: Vec<_> = log.lines().filter(|line| line.starts_with(who)).collect();
            assert_eq!(own.len(), 500);
            for (n, line) in own.into_iter().enumerate() {
                assert_eq!(line, format!("{who} {n} {}", "x".repeat(n % 50)));
            }
        }
    }
}

/// Commits 100 rows, one by one, to a database that others write as well.
const COMMIT: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=50, isolation_level=None)
db.execute("create table if not exists t (who, n)")
for n in range(100):
    db.execute("begin immediate")
    db.execute("insert into t values (?, ?)", (sys.argv[2], n))
    db.execute("commit")
"#;

#[test]
fn sqlite_loses_no_commit_of_two_mounts() {
    both_ways(|a, b| {
        let writers: Vec<_> = [(a, "a1"), (b, "b1"), (a, "a2"), (b, "b2")]
            .map(|(mount, who)| {
                let mut python = Command::new("python3");
                python.args(["-c", COMMIT]).arg(mount.path("db")).arg(who).stderr(Stdio::piped());
                python.spawn().unwrap()
            })
            .into();
        for writer in writers {
            let output = writer.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let count = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
                     print(*db.execute('select count(*) from t').fetchone(), *db.execute('pragma integrity_check').fetchone())";
        let output = Command::new("python3").args(["-c", count]).arg(a.path("db")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "400 ok");
        fs::remove_file(a.path("db")).unwrap();
    });
}
