//! Files that requests may name: the daemon wants their inode number, and the kernel must not forget the inode
//! while requests fly, which an open duplicate of the fd ensures.
//!
//! The table that C and Python look file descriptors up in is dynamic: two levels of atomics, no lock and about
//! five loads for a look-up. 3FS sizes its by the hard RLIMIT_NOFILE, which costs gigabytes in some containers.
//!
//! A program may close a registered fd and open another file, which gets the same number. Once per batch, the first request
//! that names a number makes sure that it is the registered file still.

use crate::error::{Error, PrepError};
use crate::mount::is_3fs;
use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use usrbio_wire::Ino;

/// What a file may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Opened `O_RDONLY`.
    Read,
    /// Opened `O_WRONLY`.
    Write,
    /// Opened `O_RDWR`.
    ReadWrite,
}

impl Access {
    /// May it be read (`true`) or written (`false`)?
    #[inline]
    pub fn allows(self, read: bool) -> bool {
        self != if read { Access::Write } else { Access::Read }
    }
}

/// A file as a request names it. Whoever makes one keeps the file open for as long as requests use it:
/// [`RegisteredFile`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Its inode number on the mount.
    pub ino: Ino,
    /// What it was opened for.
    pub access: Access,
}

impl FileId {
    /// The file behind `fd`, which must be on a 3FS mount.
    pub fn of(fd: BorrowedFd<'_>) -> Result<FileId, Error> {
        Self::with_dev(fd).map(|(id, _)| id)
    }

    /// Beside it, the device.
    fn with_dev(fd: BorrowedFd<'_>) -> Result<(FileId, u64), Error> {
        if !is_3fs(fd) {
            return Err(Error::NotOn3fs(fd.as_raw_fd()));
        }
        let failed = |what| Error::os(what, PathBuf::from(format!("fd {}", fd.as_raw_fd())));
        let (ino, dev) = identity(fd).map_err(failed("stat"))?;
        let mode = rustix::fs::fcntl_getfl(fd).map_err(failed("get the flags of"))? & OFlags::RWMODE;
        let access = match mode {
            OFlags::WRONLY => Access::Write,
            OFlags::RDWR => Access::ReadWrite,
            _ => Access::Read,
        };
        Ok((FileId { ino, access }, dev))
    }
}

/// Inode number and device of an open file, without asking the daemon.
fn identity(fd: BorrowedFd<'_>) -> Result<(Ino, u64), Errno> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(fd, c"", how, StatxFlags::INO)?;
    Ok((Ino(stat.stx_ino), rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor)))
}

/// Are two fds duplicates of each other? `None` where the kernel cannot say (before Linux 6.10), or `fd` is not open.
fn are_duplicates(fd: u32, other: u32) -> Option<bool> {
    const F_DUPFD_QUERY: libc::c_int = 1027;
    // SAFETY: compares two numbers of the fd table, and changes nothing.
    match unsafe { libc::fcntl(fd as RawFd, F_DUPFD_QUERY, other as RawFd) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// A file of a 3FS mount, kept known to the daemon until it is dropped.
#[derive(Debug)]
pub struct RegisteredFile {
    id: FileId,
    dev: u64,
    dup: OwnedFd,
}

impl RegisteredFile {
    /// Registers the file behind `fd`; the fd itself may be closed afterwards.
    pub fn new(fd: impl AsFd) -> Result<RegisteredFile, Error> {
        let fd = fd.as_fd();
        let (id, dev) = FileId::with_dev(fd)?;
        // From 3 on, so that a handle, which is the negative number, is never 0.
        let dup = rustix::io::fcntl_dupfd_cloexec(fd, 3)
            .map_err(Error::os("duplicate", format!("fd {}", fd.as_raw_fd())))?;
        Ok(RegisteredFile { id, dev, dup })
    }

    /// As requests name it.
    pub fn id(&self) -> FileId {
        self.id
    }
}

impl AsFd for RegisteredFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dup.as_fd()
    }
}

const CHUNK: usize = 1 << 11;
const CHUNKS: usize = 1 << 14;
const MAX_FDS: usize = CHUNK * CHUNKS;

/// One fd number. `ino` and `dev` belong to `meta` if `meta` is the same before and after they are read.
#[derive(Debug)]
struct Entry {
    meta: AtomicU64,
    ino: AtomicU64,
    dev: AtomicU64,
    /// The batch in which the number was last seen to be the registered file.
    seen_in: AtomicU64,
}

/// What an [`Entry`]'s `meta` says. From the lowest bit: 2 bits 0 (empty) or 1 + access, 1 bit whether the number
/// is the duplicate, 29 bits version, 32 bits the other number of the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta(u64);

impl Meta {
    const STATE: u64 = 0b11;
    const IS_DUP: u64 = 0b100;
    const ONE_VERSION: u64 = 0b1000;
    const VERSION: u64 = 0xffff_fff8;

    fn next_version(self) -> u64 {
        (self.0 & Meta::VERSION).wrapping_add(Meta::ONE_VERSION) & Meta::VERSION
    }

    fn emptied(self) -> Meta {
        Meta(self.next_version())
    }

    fn filled(self, access: Access, is_dup: bool, other: u32) -> Meta {
        let state = 1 + access as u64;
        let dup = if is_dup { Meta::IS_DUP } else { 0 };
        Meta(state | dup | self.next_version() | u64::from(other) << 32)
    }

    fn access(self) -> Option<Access> {
        match self.0 & Meta::STATE {
            0 => None,
            1 => Some(Access::Read),
            2 => Some(Access::Write),
            _ => Some(Access::ReadWrite),
        }
    }

    fn is_dup(self) -> bool {
        self.0 & Meta::IS_DUP != 0
    }

    fn other(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            meta: AtomicU64::new(0),
            ino: AtomicU64::new(0),
            dev: AtomicU64::new(0),
            seen_in: AtomicU64::new(0),
        }
    }

    fn meta(&self) -> Meta {
        Meta(self.meta.load(Ordering::Acquire))
    }

    #[inline]
    fn read(&self) -> Option<FileId> {
        loop {
            let before = self.meta();
            let access = before.access()?;
            let ino = Ino(self.ino.load(Ordering::Acquire));
            if self.meta() == before {
                return Some(FileId { ino, access });
            }
        }
    }

    /// Writers hold the table's lock.
    fn fill(&self, id: FileId, dev: u64, is_dup: bool, other: u32) {
        self.clear();
        // A reader that sees the new `ino` also sees the entry emptied before.
        fence(Ordering::Release);
        self.ino.store(id.ino.0, Ordering::Relaxed);
        self.dev.store(dev, Ordering::Relaxed);
        self.seen_in.store(0, Ordering::Relaxed);
        self.meta.store(self.meta().filled(id.access, is_dup, other).0, Ordering::Release);
    }

    /// Is `number` the file that this entry was filled for? Also if it is closed: then it names nothing else, and the duplicate
    /// keeps the file. And if the entry is filled anew meanwhile.
    #[cold]
    fn is_still(&self, number: u32) -> bool {
        let meta = self.meta();
        if !meta.is_dup() && are_duplicates(number, meta.other()) == Some(true) {
            return true;
        }
        // SAFETY: only a `statx`, which the kernel answers with EBADF if the number is no open fd.
        let fd = unsafe { BorrowedFd::borrow_raw(number as RawFd) };
        let registered = (Ino(self.ino.load(Ordering::Acquire)), self.dev.load(Ordering::Acquire));
        let same = match identity(fd) {
            Ok(found) => found == registered,
            Err(_) => !meta.is_dup(),
        };
        same || self.meta() != meta
    }

    fn clear(&self) {
        self.meta.store(self.meta().emptied().0, Ordering::Release);
    }
}

type Chunk = [Entry; CHUNK];

/// The table of registered file descriptors of a process.
#[derive(Debug)]
pub struct FdTable {
    /// Made when they are first needed and freed with the table: readers hold no lock. NULL before, so that the
    /// static table takes no room in the file.
    chunks: [AtomicPtr<Chunk>; CHUNKS],
    writers: Mutex<()>,
    /// Counts from 1.
    batch: AtomicU64,
}

/// The table that the C and the Python interface share.
pub static TABLE: FdTable = FdTable::new();

impl FdTable {
    const fn new() -> FdTable {
        FdTable {
            chunks: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS],
            writers: Mutex::new(()),
            batch: AtomicU64::new(1),
        }
    }

    /// Registers `fd` and answers its handle, a negative number; requests may name either. A number whose file was closed, and
    /// that is another file now, may be registered again.
    pub fn register(&self, fd: BorrowedFd<'_>) -> Result<i32, Error> {
        let number = fd.as_raw_fd().unsigned_abs();
        let RegisteredFile { id, dev, dup } = RegisteredFile::new(fd)?;
        let handle = dup.as_raw_fd().unsigned_abs();
        let stale = {
            let _writing = self.lock();
            let entries = (self.entry_or_new(number), self.entry_or_new(handle));
            let (Some(by_number), Some(by_handle)) = entries else {
                let what = format!("fd {}, beyond the table of {MAX_FDS} files", number.max(handle));
                return Err(Error::os("register", what)(Errno::BADF));
            };
            let mut replaced = None;
            if by_number.meta().access().is_some() {
                if by_number.is_still(number) {
                    return Err(Error::AlreadyRegistered(fd.as_raw_fd()));
                }
                replaced = self.forget(number).filter(|closing| *closing != handle);
            }
            // The kernel just gave us this number: what is registered under it was closed behind our back.
            let stale = self.forget(handle).filter(|closing| *closing != handle);
            by_number.fill(id, dev, false, handle);
            by_handle.fill(id, dev, true, number);
            [replaced, stale]
        };
        stale.into_iter().for_each(close);
        // The table owns the duplicate from here; `deregister` closes it.
        Ok(-dup.into_raw_fd())
    }

    /// Ends a registration by the fd's number, also when that is closed already, or by the handle. Does nothing
    /// for others.
    pub fn deregister(&self, fd_or_handle: i32) {
        let closing = {
            let _writing = self.lock();
            self.forget(fd_or_handle.unsigned_abs())
        };
        close(closing);
    }

    /// A batch was submitted or waited for: the next request of each number makes sure that it is the same file still.
    #[inline]
    pub fn next_batch(&self) {
        self.batch.fetch_add(1, Ordering::Relaxed);
    }

    /// The file registered under an fd's number or its handle. `EBADF`: there is none, or the number was closed and another
    /// file got it.
    #[inline]
    pub fn lookup(&self, fd_or_handle: i32) -> Result<FileId, PrepError> {
        let number = fd_or_handle.unsigned_abs();
        if number as usize >= MAX_FDS {
            return Err(PrepError::BadFd(fd_or_handle));
        }
        let entry = self.entry(number).ok_or(PrepError::NotRegistered(fd_or_handle))?;
        let id = entry.read().ok_or(PrepError::NotRegistered(fd_or_handle))?;
        let batch = self.batch.load(Ordering::Relaxed);
        if entry.seen_in.load(Ordering::Relaxed) != batch {
            if !entry.is_still(number) {
                return Err(PrepError::Replaced(fd_or_handle));
            }
            entry.seen_in.store(batch, Ordering::Relaxed);
        }
        Ok(id)
    }

    #[inline]
    fn entry(&self, number: u32) -> Option<&Entry> {
        let number = number as usize;
        let chunk = self.chunks.get(number / CHUNK)?.load(Ordering::Acquire);
        // SAFETY: NULL, or a box that `entry_or_new` leaked and that lives as long as the table.
        unsafe { chunk.as_ref() }.map(|chunk| &chunk[number % CHUNK])
    }

    /// The lock is held: nobody else makes chunks meanwhile.
    fn entry_or_new(&self, number: u32) -> Option<&Entry> {
        let place = self.chunks.get(number as usize / CHUNK)?;
        if place.load(Ordering::Relaxed).is_null() {
            let chunk: Box<Chunk> = Box::new([const { Entry::new() }; CHUNK]);
            place.store(Box::into_raw(chunk), Ordering::Release);
        }
        self.entry(number)
    }

    /// Clears both entries of a registration and tells the duplicate to close. The lock is held.
    fn forget(&self, number: u32) -> Option<u32> {
        let entry = self.entry(number)?;
        let meta = entry.meta();
        meta.access()?;
        entry.clear();
        if let Some(other) = self.entry(meta.other()) {
            other.clear();
        }
        Some(if meta.is_dup() { number } else { meta.other() })
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        for chunk in &mut self.chunks {
            let chunk = *chunk.get_mut();
            if !chunk.is_null() {
                // SAFETY: a box that `entry_or_new` leaked; nobody borrows the table any more.
                drop(unsafe { Box::from_raw(chunk) });
            }
        }
    }
}

/// Closes a duplicate that the table has forgotten.
fn close(dup: Option<u32>) {
    if let Some(dup) = dup {
        // SAFETY: `register` gave this descriptor to the table, and only `forget` takes it out again, once.
        drop(unsafe { OwnedFd::from_raw_fd(dup as RawFd) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table entry for `file` without a 3FS mount: the duplicate is real.
    fn insert(table: &FdTable, number: u32, file: impl AsFd) -> (FileId, u32) {
        let (ino, dev) = identity(file.as_fd()).unwrap();
        let id = FileId { ino, access: Access::Write };
        let dup = file.as_fd().try_clone_to_owned().unwrap().into_raw_fd() as u32;
        table.entry_or_new(number).unwrap().fill(id, dev, false, dup);
        table.entry_or_new(dup).unwrap().fill(id, dev, true, number);
        (id, dup)
    }

    fn null() -> std::fs::File {
        std::fs::File::open("/dev/null").unwrap()
    }

    fn is_open(fd: u32) -> bool {
        std::path::Path::new(&format!("/proc/self/fd/{fd}")).symlink_metadata().is_ok()
    }

    #[test]
    fn number_and_handle_find_the_same_file() {
        let table = Box::new(FdTable::new());
        let (id, dup) = insert(&table, 500_000, null());
        assert_eq!(table.lookup(500_000), Ok(id), "also of a number that is closed");
        assert_eq!(table.lookup(-(dup as i32)), Ok(id));
        table.deregister(-(dup as i32));
        assert_eq!(table.lookup(500_000), Err(PrepError::NotRegistered(500_000)));
    }

    #[test]
    fn deregistering_by_number_closes_the_duplicate_of_a_closed_fd() {
        let table = Box::new(FdTable::new());
        let (_, dup) = insert(&table, 600_000, null());
        table.deregister(600_000);
        // Another test's thread may have got the number already; then it is no longer ours to judge.
        let target = std::fs::read_link(format!("/proc/self/fd/{dup}")).ok();
        assert!(!is_open(dup) || target.is_some_and(|t| t != std::path::Path::new("/dev/null")));
        table.deregister(600_000);
    }

    /// Gives `number`, which is ours, to another file.
    fn reuse(number: &mut OwnedFd, file: impl AsFd) {
        rustix::io::dup2(file, number).unwrap();
    }

    #[test]
    fn regression_a_number_that_was_closed_and_opened_again_read_the_old_file() {
        let table = Box::new(FdTable::new());
        let (old, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut number: OwnedFd = old.try_clone().unwrap().into();
        let raw = number.as_raw_fd();
        let (id, dup) = insert(&table, raw as u32, &number);
        for _ in 0..3 {
            assert_eq!(table.lookup(raw), Ok(id));
        }
        reuse(&mut number, &other);
        table.next_batch();
        for _ in 0..3 {
            let error = table.lookup(raw).unwrap_err();
            assert_eq!((error, error.errno()), (PrepError::Replaced(raw), libc::EBADF));
        }
        assert_eq!(table.lookup(-(dup as i32)), Ok(id), "the handle is the old file still");
        // Opened once more, it is the same file.
        let again = std::fs::File::open(format!("/proc/self/fd/{}", old.as_raw_fd())).unwrap();
        reuse(&mut number, again);
        assert_eq!(table.lookup(raw), Ok(id));
        table.deregister(raw);
    }

    #[test]
    fn a_handle_that_was_closed_and_opened_again_is_not_the_old_file() {
        let table = Box::new(FdTable::new());
        let (old, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (id, dup) = insert(&table, 700_000, &old);
        assert_eq!(table.lookup(-(dup as i32)), Ok(id));
        // SAFETY: `insert` made it, and `deregister` closes it.
        let mut handle = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(dup as RawFd) });
        reuse(&mut handle, &other);
        table.next_batch();
        assert_eq!(table.lookup(-(dup as i32)), Err(PrepError::Replaced(-(dup as i32))));
        table.deregister(700_000);
    }

    #[test]
    fn numbers_beyond_the_table_are_invalid_not_unregistered() {
        for fd in [i32::MIN, i32::MAX, MAX_FDS as i32] {
            let error = TABLE.lookup(fd).unwrap_err();
            assert_eq!((error, error.errno()), (PrepError::BadFd(fd), libc::EINVAL));
        }
        assert_eq!(TABLE.lookup(MAX_FDS as i32 - 1).unwrap_err().errno(), libc::EBADF);
    }

    #[test]
    fn a_file_of_another_file_system_is_not_registered() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(TABLE.register(file.as_fd()).unwrap_err().errno(), libc::EBADF);
    }

    #[test]
    fn a_reader_never_sees_one_files_inode_with_the_others_access() {
        let entry = Entry::new();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if let Some(id) = entry.read() {
                        assert_eq!(id.ino.0 == 1, id.access == Access::Read);
                    }
                }
            });
            for _ in 0..200_000 {
                entry.fill(FileId { ino: Ino(1), access: Access::Read }, 0, false, 0);
                entry.fill(FileId { ino: Ino(2), access: Access::Write }, 0, false, 0);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
