//! `kill -9` of the daemon under load: a successor goes on, and no client sees an error or a wrong byte.

mod common;

use common::served::{Served, verify_client};
use common::{disk_dir, wait_until};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const KILLS: usize = 100;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 512;

/// Contents of block `n` in its `version`: every word says both.
fn block(n: u64, version: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(n << 40 | version << 16 | i as u64).to_ne_bytes());
    }
    bytes
}

/// A small generator of random numbers (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Writes and reads blocks of its own file, keeping the version of each in memory.
fn read_and_write(file: &File, random: &mut Random, versions: &mut [u64]) {
    let n = random.below(BLOCKS);
    if random.below(2) == 0 {
        versions[n as usize] += 1;
        file.write_all_at(&block(n, versions[n as usize]), n * BLOCK as u64).expect("write");
    } else if versions[n as usize] > 0 {
        let mut bytes = [0; BLOCK];
        file.read_exact_at(&mut bytes, n * BLOCK as u64).expect("read");
        assert!(bytes == block(n, versions[n as usize]), "block {n} holds something else");
    }
}

/// Every operation that may not be done twice, each checked by what it leaves.
fn change_names(dir: &Path, round: u64) {
    let at = |name: &str| dir.join(format!("{name}-{round}"));
    fs::create_dir(at("dir")).expect("mkdir");
    let file = OpenOptions::new().create_new(true).write(true).open(at("dir").join("a")).expect("create");
    file.write_all_at(b"x", 0).expect("write");
    fs::hard_link(at("dir").join("a"), at("link")).expect("link");
    fs::rename(at("dir").join("a"), at("moved")).expect("rename");
    symlink("target", at("symlink")).expect("symlink");
    assert_eq!(fs::read_link(at("symlink")).expect("readlink"), Path::new("target"));
    assert_eq!(fs::metadata(at("moved")).expect("stat").nlink(), 2);
    assert_eq!(fs::read_dir(at("dir")).expect("opendir").count(), 0);
    fs::remove_file(at("link")).expect("unlink");
    fs::remove_file(at("symlink")).expect("unlink");
    fs::remove_dir(at("dir")).expect("rmdir");
    assert_eq!(fs::read(at("moved")).expect("read"), b"x");
    fs::remove_file(at("moved")).expect("unlink");
}

/// The daemon that `usrbiod serve` runs as its child.
fn daemon_of(supervisor: u32) -> Option<rustix::process::Pid> {
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
    let pid = children.split_whitespace().next()?.parse().ok()?;
    rustix::process::Pid::from_raw(pid)
}

/// A client: it works until it is told to stop, and counts what it did.
type Load<'a> = dyn Fn(&AtomicBool, &AtomicU64) + Sync + 'a;

/// Kills the daemon again and again while `work` runs in threads; returns when all is done.
fn under_kills(served: &Served, kills: usize, work: &[&Load<'_>]) {
    let stop = AtomicBool::new(false);
    let progress: Vec<AtomicU64> = work.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for (job, progress) in work.iter().zip(&progress) {
            let stop = &stop;
            scope.spawn(move || {
                // A failed assertion must end the killing too, or the scope would wait for ever.
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(stop, progress)));
                stop.store(true, Ordering::Relaxed);
                if let Err(panic) = result {
                    std::panic::resume_unwind(panic);
                }
            });
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut longest = Duration::ZERO;
        for _ in 0..kills {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let before: Vec<u64> = progress.iter().map(|p| p.load(Ordering::Relaxed)).collect();
            let daemon = daemon_of(served.pid()).expect("a daemon runs");
            rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
            let killed = Instant::now();
            wait_until("all go on after a kill", || {
                let goes_on = |(p, b): (&AtomicU64, &u64)| p.load(Ordering::Relaxed) > b + 1;
                stop.load(Ordering::Relaxed)
                    || daemon_of(served.pid()).is_some_and(|d| d != daemon)
                        && progress.iter().zip(&before).all(goes_on)
            });
            longest = longest.max(killed.elapsed());
            // A moment that differs each time, so that kills hit every step of the work.
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
        }
        stop.store(true, Ordering::Relaxed);
        println!("{kills} kills, longest stall {longest:?}");
    });
}

fn posix_load(dir: PathBuf, seed: u64) -> impl Fn(&AtomicBool, &AtomicU64) + Sync {
    move |stop, progress| {
        let mut random = Random(seed);
        let mut versions = vec![0; BLOCKS as usize];
        let path = dir.join(format!("load-{seed}"));
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        while !stop.load(Ordering::Relaxed) {
            read_and_write(&file, &mut random, &mut versions);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        let all = fs::read(&path).expect("read all");
        for (n, version) in versions.iter().enumerate().filter(|(_, v)| **v > 0) {
            assert!(all[n * BLOCK..][..BLOCK] == block(n as u64, *version), "block {n} at the end");
        }
    }
}

fn name_load(dir: PathBuf) -> impl Fn(&AtomicBool, &AtomicU64) + Sync {
    move |stop, progress| {
        fs::create_dir_all(&dir).unwrap();
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            change_names(&dir, round);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "names are left over");
    }
}

#[test]
fn a_daemon_killed_a_hundred_times_loses_no_file_operation() {
    for args in [&[][..], &["--no-passthrough"]] {
        let served = Served::start(disk_dir(), args);
        let mount = served.mount();
        let loads = [posix_load(mount.clone(), 11), posix_load(mount.clone(), 12)];
        let names = name_load(mount.join("names"));
        under_kills(&served, KILLS / 2, &[&loads[0], &loads[1], &names]);
    }
}

/// A client in a process of its own, which checks all that it reads through rings.
fn ring_load(file: PathBuf) -> impl Fn(&AtomicBool, &AtomicU64) + Sync {
    move |stop, progress| {
        let mut child = verify_client(&file).arg("600").spawn().unwrap();
        while !stop.load(Ordering::Relaxed) {
            // Its own time limit for a batch ends it when the daemon does not go on.
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the ring client ended: {ended:?}");
            progress.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn rings_and_files_go_on_through_a_hundred_kills() {
    let served = Served::on_disk();
    let mount = served.mount();
    let rings = [ring_load(mount.join("rings-1")), ring_load(mount.join("rings-2"))];
    let files = posix_load(mount, 13);
    under_kills(&served, KILLS, &[&rings[0], &rings[1], &files]);
}

/// Makes a file at `path` that begins with its own `contents`, and leaves it open.
fn made(path: &Path, contents: &str) -> File {
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(path).unwrap();
    file.write_all_at(contents.as_bytes(), 0).unwrap();
    file
}

/// What was written before is there, and the file can be changed still.
fn goes_on(file: &File, contents: &str) {
    let mut bytes = vec![0; contents.len()];
    file.read_exact_at(&mut bytes, 0).unwrap_or_else(|e| panic!("{contents}: {e}"));
    assert_eq!(String::from_utf8_lossy(&bytes), contents);
    file.write_all_at(b"more", 1 << 20).unwrap_or_else(|e| panic!("{contents}: {e}"));
    assert_eq!(file.metadata().unwrap().len(), (1 << 20) + 4, "{contents}");
    file.set_len(contents.len() as u64).unwrap_or_else(|e| panic!("{contents}: {e}"));
}

/// A page of a file, shared and writable.
struct Shared(*mut u8);

impl Shared {
    fn new(file: &File) -> Shared {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let at = unsafe { mmap(std::ptr::null_mut(), BLOCK, access, MapFlags::SHARED, file, 0) };
        Shared(at.unwrap().cast())
    }

    fn write(&self, text: &[u8]) {
        assert!(text.len() <= BLOCK);
        // SAFETY: within the page that is mapped; nothing else in this process refers to it.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.0, text.len()) }
    }

    fn read(&self, len: usize) -> Vec<u8> {
        assert!(len <= BLOCK);
        // SAFETY: as for `write`.
        unsafe { std::slice::from_raw_parts(self.0, len) }.to_vec()
    }

    /// Drops the page from memory: it is read from the file again.
    fn drop_page(&self, file: &File) {
        rustix::fs::fdatasync(file).unwrap();
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        let _ = unsafe { rustix::mm::munmap(self.0.cast(), BLOCK) };
    }
}

/// Kills the daemon, and waits until there is a successor.
fn kill_daemon(served: &Served) {
    let daemon = daemon_of(served.pid()).expect("a daemon runs");
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
    wait_until("a new daemon", || daemon_of(served.pid()).is_some_and(|now| now != daemon));
}

#[test]
fn locks_open_files_and_maps_outlive_the_daemon() {
    for args in [&[][..], &["--no-passthrough"]] {
        let served = Served::start(disk_dir(), args);
        let at = |name: &str| served.mount().join(name);
        fs::write(at("file"), block(0, 1)).unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(at("file")).unwrap();
        let (held, other) = (open(), open());
        flock(&held, FlockOperation::LockExclusive).unwrap();

        let unlinked = made(&at("unlinked"), "unlinked");
        fs::remove_file(at("unlinked")).unwrap();
        let replaced = made(&at("replaced"), "replaced");
        fs::write(at("newer"), "newer").unwrap();
        fs::rename(at("newer"), at("replaced")).unwrap();
        let linked = made(&at("linked"), "linked");
        fs::hard_link(at("linked"), at("link")).unwrap();
        fs::remove_file(at("link")).unwrap();
        fs::remove_file(at("linked")).unwrap();
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::TMPFILE.bits().cast_signed())
            .open(served.mount())
            .unwrap();
        nameless.write_all_at(b"nameless", 0).unwrap();
        let mapped = made(&at("mapped"), "mapped");
        mapped.set_len(BLOCK as u64).unwrap();
        let map = Shared::new(&mapped);
        map.write(b"written by a map");
        fs::remove_file(at("mapped")).unwrap();
        fs::create_dir(at("tree")).unwrap();
        let removed = made(&at("tree/file"), "removed with its tree");
        fs::rename(at("tree"), at("3fs-virt/rm-rf/tree")).unwrap();
        let kept = if args.is_empty() { 0 } else { 6 };
        wait_until("the peer has what only the daemon holds", || {
            deleted_files_of(served.pid(), &served) == kept
        });

        // The second successor has its fds from the peer, not from the daemon that saw the unlink.
        for kill in 0..2 {
            kill_daemon(&served);
            let refused = flock(&other, FlockOperation::NonBlockingLockExclusive);
            assert_eq!(refused, Err(rustix::io::Errno::WOULDBLOCK), "the lock was lost");
            goes_on(&unlinked, "unlinked");
            goes_on(&replaced, "replaced");
            goes_on(&linked, "linked");
            goes_on(&nameless, "nameless");
            goes_on(&removed, "removed with its tree");
            assert_eq!(fs::read(at("replaced")).unwrap(), b"newer");
            assert_eq!(map.read(16), b"written by a map", "kill {kill}");
            map.drop_page(&mapped);
            assert_eq!(map.read(16), b"written by a map", "kill {kill}, from the file");
        }
        flock(&held, FlockOperation::Unlock).unwrap();
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();

        // Nobody holds them when they are closed: the peer has let go as well.
        drop((unlinked, replaced, linked, nameless, removed, map, mapped));
        wait_until("the peer holds no deleted file", || deleted_files_of(served.pid(), &served) == 0);
    }
}

/// How many open files of process `pid` are removed files of the backing directory.
fn deleted_files_of(pid: u32, served: &Served) -> usize {
    let backing = served.backing();
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let deleted =
        |path: PathBuf| path.starts_with(&backing) && path.to_string_lossy().ends_with(" (deleted)");
    fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|path| deleted(path.clone())).count()
}

#[test]
fn lines_that_are_appended_without_passthrough_are_there_once_whatever_kills_the_daemon() {
    let served = Served::start(disk_dir(), &["--no-passthrough"]);
    let log = served.at("log");
    let job = |who: u64| {
        let log = &log;
        move |stop: &AtomicBool, progress: &AtomicU64| {
            let mut log = OpenOptions::new().create(true).append(true).open(log).expect("open");
            while !stop.load(Ordering::Relaxed) {
                let round = progress.load(Ordering::Relaxed);
                log.write_all(format!("{who} {round}\n").as_bytes()).expect("append");
                progress.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let (one, two) = (job(1), job(2));
    under_kills(&served, 40, &[&one, &two]);
    let text = fs::read_to_string(&log).unwrap();
    for who in ["1 ", "2 "] {
        let rounds: Vec<u64> =
            text.lines().filter_map(|line| line.strip_prefix(who)).map(|n| n.parse().unwrap()).collect();
        assert!(rounds.iter().enumerate().all(|(n, round)| n as u64 == *round), "{who}: {rounds:?}");
    }
}
