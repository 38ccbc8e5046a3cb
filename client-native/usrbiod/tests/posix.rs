//! Outside judges of the mount: programs that others wrote to find broken file systems.

mod common;

use common::served::Served;
use common::{disk_dir, run, succeed};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// With passthrough the kernel reads and writes the backing file; without, every byte goes through the daemon.
const MODES: [(&str, &[&str]); 2] = [("passthrough", &[]), ("copy", &["--no-passthrough"])];

#[test]
fn fsx_finds_no_wrong_byte_in_reads_writes_truncates_and_maps() {
    for (mode, args) in MODES {
        let served = Served::start(disk_dir(), args);
        for seed in ["1", "2", "3"] {
            let file = served.mount().join(format!("fsx-{mode}-{seed}"));
            succeed(
                120,
                Command::new("fsx")
                    .args(["-q", "-N", "4000", "-S", seed, "-P"])
                    .arg(served.backing())
                    .arg(file),
            );
        }
    }
}

#[test]
fn fio_verifies_what_it_wrote_with_every_kind_of_io() {
    for (mode, args) in MODES {
        let served = Served::start(disk_dir(), args);
        for (engine, direct) in [("psync", 0), ("psync", 1), ("mmap", 0), ("io_uring", 0), ("io_uring", 1)] {
            succeed(
                120,
                Command::new("fio")
                    .args(["--name=verify", "--rw=randrw", "--bsrange=512-64k", "--bs_unaligned=0"])
                    .args([
                        "--blockalign=4k",
                        "--size=24m",
                        "--iodepth=8",
                        "--verify=crc32c",
                        "--verify_fatal=1",
                    ])
                    .args(["--bsrange=4k-64k", "--do_verify=1", "--verify_state_save=0", "--thread"])
                    .arg(format!("--ioengine={engine}"))
                    .arg(format!("--direct={direct}"))
                    .arg(format!(
                        "--filename={}",
                        served.mount().join(format!("{mode}-{engine}-{direct}")).display()
                    )),
            );
        }
    }
}

#[test]
fn sqlite_keeps_its_database_whole_under_concurrent_writers() {
    let served = Served::on_disk();
    for journal in ["delete", "wal"] {
        let db = served.mount().join(format!("{journal}.db"));
        let sql = |text: &str| {
            let script = format!(".timeout 30000\n{text}");
            let mut command = Command::new("sqlite3");
            command
                .arg("-batch")
                .arg(&db)
                .arg("-cmd")
                .arg(".timeout 30000")
                .arg(script.replace(".timeout 30000\n", ""));
            command
        };
        succeed(30, &mut sql(&format!("PRAGMA journal_mode={journal}; CREATE TABLE t(writer, n);")));
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let insert = format!("INSERT INTO t VALUES({writer}, 1);").repeat(50);
                let mut command = sql(&insert);
                scope.spawn(move || succeed(120, &mut command));
            }
        });
        let counts = succeed(30, &mut sql("SELECT count(*) FROM t; PRAGMA integrity_check;"));
        assert_eq!(counts, "200\nok\n", "{journal}");
    }
}

#[test]
fn git_makes_clones_packs_and_checks_a_repository() {
    let served = Served::on_disk();
    let git = |dir: &Path, args: &[&str]| {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "safe.directory=*"];
        succeed(60, Command::new("git").args(identity).args(args).current_dir(dir))
    };
    let repo = served.mount().join("repo");
    std::fs::create_dir(&repo).unwrap();
    git(&repo, &["init", "-q", "."]);
    for commit in 0..10 {
        for file in 0..20 {
            std::fs::write(repo.join(format!("f{file}")), format!("{commit} {file}\n").repeat(100)).unwrap();
        }
        git(&repo, &["add", "."]);
        git(&repo, &["commit", "-qm", "c"]);
    }
    git(&repo, &["gc", "-q", "--prune=now"]);
    git(&repo, &["fsck", "--strict", "--full"]);
    git(&served.mount(), &["clone", "-q", "--no-hardlinks", "repo", "copy"]);
    assert_eq!(git(&served.mount().join("copy"), &["status", "--porcelain"]), "");
    git(&served.mount(), &["clone", "-q", "--shared", "repo", "shared"]);
    git(&repo, &["checkout", "-q", "HEAD~5"]);
}

/// Runs the file system stressors of stress-ng one after another; the names of those that failed.
fn stress(dir: &Path) -> BTreeSet<String> {
    // Left out: what needs the machine's own files or mounts (ramfs, tmpfs mounts), what fills the disk or measures
    // inotify and fanotify of directories that a network file system has no events for, binderfs, and chattr, which
    // leaves files that cannot be removed.
    const STRESSORS: [&str; 31] = [
        "access",
        "chdir",
        "chmod",
        "chown",
        "copy-file",
        "dentry",
        "dir",
        "dirdeep",
        "dirmany",
        "dup",
        "eventfd",
        "fallocate",
        "fault",
        "fcntl",
        "file-ioctl",
        "filename",
        "flock",
        "fpunch",
        "fstat",
        "getdent",
        "hdd",
        "link",
        "locka",
        "lockf",
        "lockofd",
        "open",
        "rename",
        "seek",
        "symlink",
        "utime",
        "xattr",
    ];
    STRESSORS
        .iter()
        .filter(|name| {
            let output = run(
                60,
                Command::new("stress-ng")
                    .arg(format!("--{name}"))
                    .args(["2", "--timeout", "1", "--verify", "--temp-path"])
                    .arg(dir)
                    .args(["--hdd-bytes", "16m", "--fallocate-bytes", "16m", "--copy-file-bytes", "128m"]),
            );
            // stress-ng(1), EXIT STATUS: 0 success, 2 a stressor failed, 3 out of resources, 4 not implemented here.
            match output.status.code() {
                Some(0 | 3 | 4) => false,
                Some(2) => true,
                other => panic!("{name}: {other:?} {}", String::from_utf8_lossy(&output.stderr)),
            }
        })
        .map(|name| (*name).to_owned())
        .collect()
}

#[test]
fn stress_ng_finds_nothing_that_the_backing_directory_does_not_show() {
    let served = Served::on_disk();
    let native = disk_dir();
    let here = stress(&served.mount());
    if here.is_empty() {
        return;
    }
    let there = stress(native.path());
    assert!(here.is_subset(&there), "fails on the mount {here:?}, natively {there:?}");
}
