//! A real mount, served by a pool and a session in this process, used as any program uses a file system.
//!
//! Needs root and `/dev/fuse`.

mod fuse_mount;

use fuse_mount::{Mount, Setup, mount};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Both ways in which files are served.
fn both(test: impl Fn(&Mount)) {
    for passthrough in [true, false] {
        let mount = mount(Setup { passthrough, ..Setup::default() });
        test(&mount);
    }
}

#[test]
fn files_hold_what_was_written_and_the_backing_directory_shows_it() {
    both(|m| {
        let path = m.path("file");
        fs::write(&path, "hello").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(fs::read(m.backing("file")).unwrap(), b"hello");
        let big: Vec<u8> = (0..5_000_000u32).map(|i| (i / 7) as u8).collect();
        fs::write(&path, &big).unwrap();
        assert_eq!(fs::read(&path).unwrap(), big);
        assert_eq!(fs::metadata(&path).unwrap().len(), big.len() as u64);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.write_all_at(b"middle", 1_000_000).unwrap();
        file.set_len(1_000_003).unwrap();
        file.seek(SeekFrom::Start(999_999)).unwrap();
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [&big[999_999..1_000_000], b"mid"].concat());
        file.sync_all().unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"dle").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 1_000_006);
    });
}

#[test]
fn files_can_be_mapped_and_opened_without_cache() {
    both(|m| {
        let path = m.path("mapped");
        fs::write(&path, vec![b'a'; 8192]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: a fresh mapping of 8192 bytes of a file of that size, touched inside and unmapped below.
        unsafe {
            let flags = libc::PROT_READ | libc::PROT_WRITE;
            let map = libc::mmap(std::ptr::null_mut(), 8192, flags, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(map, libc::MAP_FAILED, "{}", io::Error::last_os_error());
            *map.cast::<u8>().add(5000) = b'b';
            assert_eq!(libc::msync(map, 8192, libc::MS_SYNC), 0);
            libc::munmap(map, 8192);
        }
        let mut byte = [0];
        file.read_exact_at(&mut byte, 5000).unwrap();
        assert_eq!(&byte, b"b");
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        let mut all = vec![0u8; 3 * 4096];
        let at = all.as_ptr().align_offset(4096);
        direct.read_exact_at(&mut all[at..at + 4096], 4096).unwrap();
        assert_eq!(all[at + 904], b'b');
    });
}

#[test]
fn names_are_made_renamed_linked_and_removed() {
    both(|m| {
        fs::create_dir(m.path("dir")).unwrap();
        assert_eq!(fs::create_dir(m.path("dir")).unwrap_err().kind(), ErrorKind::AlreadyExists);
        fs::write(m.path("dir/a"), "a").unwrap();
        fs::hard_link(m.path("dir/a"), m.path("b")).unwrap();
        assert_eq!(fs::metadata(m.path("b")).unwrap().nlink(), 2);
        fs::rename(m.path("b"), m.path("dir/c")).unwrap();
        assert_eq!(names(&m.path("dir")), ["a", "c"]);
        symlink("dir/a", m.path("link")).unwrap();
        assert_eq!(fs::read_link(m.path("link")).unwrap(), Path::new("dir/a"));
        assert_eq!(fs::read(m.path("link")).unwrap(), b"a");
        assert_eq!(fs::remove_dir(m.path("dir")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        fs::remove_file(m.path("dir/a")).unwrap();
        fs::remove_file(m.path("dir/c")).unwrap();
        fs::remove_dir(m.path("dir")).unwrap();
        assert_eq!(fs::metadata(m.path("dir")).unwrap_err().kind(), ErrorKind::NotFound);
        let create_new = || OpenOptions::new().write(true).create_new(true).open(m.path("new"));
        create_new().unwrap();
        assert_eq!(create_new().unwrap_err().kind(), ErrorKind::AlreadyExists);
    });
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    both(|m| {
        let mut file = File::options().read(true).write(true).create_new(true).open(m.path("gone")).unwrap();
        file.write_all(b"still here").unwrap();
        fs::remove_file(m.path("gone")).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.set_len(5).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5);
    });
}

#[test]
fn attributes_change_and_are_seen_at_once() {
    both(|m| {
        let path = m.path("file");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4750);
        std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 4321));
        let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), time);
        assert!(fs::metadata(&path).unwrap().created().is_ok(), "statx tells the time of birth");
    });
}

#[test]
fn extended_attributes_are_kept() {
    both(|m| {
        let path = m.path("file");
        fs::write(&path, "x").unwrap();
        let set = |value: &[u8], flags| {
            rustix::fs::setxattr(&path, "user.key", value, flags).map_err(|e| e.raw_os_error())
        };
        if set(b"one", rustix::fs::XattrFlags::CREATE) == Err(libc::EOPNOTSUPP) {
            return; // the temporary directory's file system has none
        }
        assert_eq!(set(b"two", rustix::fs::XattrFlags::CREATE), Err(libc::EEXIST));
        set(b"three", rustix::fs::XattrFlags::empty()).unwrap();
        let mut value = [0u8; 16];
        assert_eq!(rustix::fs::getxattr(&path, "user.key", &mut value[..]), Ok(5));
        assert_eq!(rustix::fs::getxattr(&path, "user.key", &mut [0u8; 2][..]), Err(rustix::io::Errno::RANGE));
        let mut list = [0u8; 256];
        let len = rustix::fs::listxattr(&path, &mut list[..]).unwrap();
        assert!(list[..len].split(|b| *b == 0).any(|name| name == b"user.key"));
        rustix::fs::removexattr(&path, "user.key").unwrap();
        assert_eq!(rustix::fs::getxattr(&path, "user.key", &mut value[..]), Err(rustix::io::Errno::NODATA));
    });
}

#[test]
fn a_long_directory_is_listed_whole_without_3fs_virt() {
    both(|m| {
        let wanted: BTreeSet<String> = (0..3000).map(|i| format!("file-{i:05}")).collect();
        for name in &wanted {
            File::create(m.backing(name)).unwrap();
        }
        let listed = names(&m.path(""));
        assert_eq!(listed.len(), wanted.len());
        assert!(wanted.iter().all(|n| listed.contains(n)));
        fs::create_dir(m.path("sub")).unwrap();
        for name in &wanted {
            File::create(m.path("sub").join(name)).unwrap();
        }
        assert_eq!(names(&m.path("sub")).len(), wanted.len());
        for name in &wanted {
            fs::remove_file(m.path("sub").join(name)).unwrap();
        }
        assert!(names(&m.path("sub")).is_empty());
    });
}

#[test]
fn space_is_reserved_holes_are_punched_and_found() {
    both(|m| {
        let file = File::options().read(true).write(true).create_new(true).open(m.path("sparse")).unwrap();
        let fd = file.as_raw_fd();
        // SAFETY: system calls on an open fd, without memory.
        let (reserved, punched) = unsafe {
            let reserved = libc::fallocate(fd, 0, 0, 1 << 20);
            file.write_all_at(&[1; 65536], 0).unwrap();
            file.write_all_at(&[1; 65536], 1 << 19).unwrap();
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            (reserved, libc::fallocate(fd, mode, 65536, (1 << 19) - 65536))
        };
        assert_eq!((reserved, punched), (0, 0), "{}", io::Error::last_os_error());
        // SAFETY: as above.
        let (hole, data) =
            unsafe { (libc::lseek(fd, 0, libc::SEEK_HOLE), libc::lseek(fd, 65536, libc::SEEK_DATA)) };
        assert_eq!((hole, data), (65536, 1 << 19));
        let copy = File::options().write(true).create(true).truncate(true).open(m.path("copy")).unwrap();
        let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 1 << 20).unwrap();
        assert!(copied > 0);
        assert_eq!(
            fs::read(m.path("copy")).unwrap()[..copied],
            fs::read(m.path("sparse")).unwrap()[..copied]
        );
    });
}

fn lock(file: &File, kind: i32, wait: bool, start: i64, len: i64) -> Result<(), i32> {
    let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: start, l_len: len, l_pid: 0 };
    let command = if wait { libc::F_OFD_SETLKW } else { libc::F_OFD_SETLK };
    // SAFETY: the kernel reads one `flock` at the address.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

fn open_to_lock(m: &Mount) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(m.path("locked")).unwrap()
}

#[test]
fn a_lock_is_waited_for_and_comes_when_its_holder_lets_go() {
    both(|m| {
        let open = || open_to_lock(m);
        let (first, second) = (open(), open());
        lock(&first, libc::F_WRLCK, false, 0, 10).unwrap();
        assert_eq!(lock(&second, libc::F_WRLCK, false, 5, 10), Err(libc::EAGAIN));
        lock(&second, libc::F_WRLCK, false, 10, 10).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lock(&second, libc::F_RDLCK, true, 0, 5));
            lock(&first, libc::F_UNLCK, false, 0, 0).unwrap();
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        drop(second);
        lock(&first, libc::F_WRLCK, true, 0, 0).expect("closing releases");
        first.unlock().unwrap();
        let other = open();
        first.lock().unwrap();
        assert!(other.try_lock().is_err(), "flock");
        drop(first);
        other.lock().unwrap();
    });
}

#[test]
fn a_signal_ends_a_wait_for_a_lock() {
    both(|m| {
        let (holder, other) = (open_to_lock(m), open_to_lock(m));
        lock(&holder, libc::F_WRLCK, false, 0, 0).unwrap();
        extern "C" fn ignore(_: i32) {}
        // SAFETY: a handler that does nothing, installed without SA_RESTART.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as *const () as usize;
            libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut());
        }
        std::thread::scope(|scope| {
            let (tx, rx) = std::sync::mpsc::channel();
            let waiter = scope.spawn(move || {
                // SAFETY: names the calling thread.
                tx.send(unsafe { libc::pthread_self() }).unwrap();
                lock(&other, libc::F_WRLCK, true, 0, 0)
            });
            let thread = rx.recv().unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while !waiter.is_finished() {
                assert!(Instant::now() < deadline, "the signal did not end the wait");
                // SAFETY: the thread is not joined yet.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
                std::thread::yield_now();
            }
            assert_eq!(waiter.join().unwrap(), Err(libc::EINTR));
        });
    });
}

#[test]
fn a_read_only_session_refuses_every_change() {
    let m = mount(Setup { read_only: true, ..Setup::default() });
    fs::write(m.backing("file"), "text").unwrap();
    assert_eq!(fs::read(m.path("file")).unwrap(), b"text");
    let refused =
        |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    refused(fs::write(m.path("file"), "other"));
    refused(fs::write(m.path("new"), "other"));
    refused(fs::create_dir(m.path("dir")));
    refused(fs::remove_file(m.path("file")));
    refused(fs::rename(m.path("file"), m.path("b")));
    refused(fs::hard_link(m.path("file"), m.path("b")));
    refused(symlink("file", m.path("b")));
    refused(fs::set_permissions(m.path("file"), fs::Permissions::from_mode(0o600)));
    assert_eq!(fs::read(m.backing("file")).unwrap(), b"text");
}

#[test]
fn many_threads_work_side_by_side() {
    both(|m| {
        let root = &m.path("");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    let dir = root.join(format!("dir-{thread}"));
                    fs::create_dir(&dir).unwrap();
                    for i in 0..100u32 {
                        let path = dir.join(format!("{i}"));
                        fs::write(&path, i.to_le_bytes()).unwrap();
                        fs::rename(&path, dir.join("moved")).unwrap();
                        assert_eq!(fs::read(dir.join("moved")).unwrap(), i.to_le_bytes());
                        fs::remove_file(dir.join("moved")).unwrap();
                    }
                    fs::remove_dir(&dir).unwrap();
                });
            }
        });
    });
}

#[test]
fn the_virtual_tree_is_there_and_cannot_be_changed_like_files() {
    let m = mount(Setup::default());
    let tree = m.path("3fs-virt");
    assert_eq!(names(&tree), ["get-conf", "iovs", "rm-rf", "set-conf"]);
    assert!(
        names(&tree.join("iovs")).contains(&"submit-ios".to_owned()) || m.session.rings.list().is_empty()
    );
    let refused = |result: io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
    refused(fs::create_dir(tree.join("iovs/dir")));
    refused(fs::write(tree.join("iovs/file"), ""));
    refused(fs::rename(&tree, m.path("elsewhere")));
    refused(fs::rename(tree.join("iovs"), m.path("elsewhere")));
    refused(fs::set_permissions(tree.join("iovs"), fs::Permissions::from_mode(0o700)));
    fs::remove_dir(tree.join("iovs")).unwrap_err();
    fs::remove_dir(&tree).unwrap_err();
    assert_eq!(fs::metadata(&tree).unwrap().ino() >> 60, 0xf);
}

#[test]
fn a_key_can_be_set_twice_in_a_row_and_readonly_acts() {
    let m = mount(Setup::default());
    let set = |value: &str| symlink(value, m.path("3fs-virt/set-conf/usr.readonly"));
    set("true").unwrap();
    assert_eq!(fs::read_link(m.path("3fs-virt/get-conf/usr.readonly")).unwrap(), Path::new("true"));
    assert_eq!(fs::write(m.path("file"), "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    set("false").unwrap();
    assert_eq!(fs::read_link(m.path("3fs-virt/get-conf/usr.readonly")).unwrap(), Path::new("false"));
    fs::write(m.path("file"), "x").unwrap();
    fs::create_dir_all(m.path("tree/below")).unwrap();
    fs::rename(m.path("tree"), m.path("3fs-virt/rm-rf/any")).unwrap();
    assert!(!m.backing("tree").exists());
}

#[test]
fn one_file_is_opened_and_closed_by_many_at_once() {
    both(|m| {
        let path = &m.path("file");
        fs::write(path, "text").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2000).for_each(|_| assert_eq!(fs::read(path).unwrap(), b"text")));
            }
        });
    });
}

#[test]
fn the_callback_comes_once_when_the_mount_is_gone() {
    let m = mount(Setup::default());
    fs::write(m.path("file"), "x").unwrap();
    m.unmount();
    assert_eq!(m.unmounted.recv_timeout(Duration::from_secs(10)).as_deref(), Ok("test"));
    assert!(m.unmounted.recv_timeout(Duration::from_millis(10)).is_err());
}
