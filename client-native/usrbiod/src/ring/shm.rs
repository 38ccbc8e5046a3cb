//! Shared memory: opening what a client names, and mappings that a peer may truncate at any moment.

use super::guard::Guard;
use crate::sys::creds::Scope;
use crate::types::{Errno, Owner, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use usrbio_wire::RingMem;
use usrbio_wire::mem::SharedMem;

/// What clients write before the path of a shared-memory file.
const PREFIX: &str = "/dev/shm/";
const PAGE: usize = 4096;

/// The path beneath the shm directory that a link target names. `EINVAL`: it names none.
pub(super) fn relative(target: &str) -> Result<&str> {
    target.strip_prefix(PREFIX).filter(|path| !path.is_empty()).ok_or(Errno::INVAL)
}

/// Opens the shared-memory file at `path` beneath `shm` for somebody: what a client may not open itself, it cannot
/// register. `EACCES`: there is no such file for it. `EINVAL`: it is not a file of at least one byte.
pub(super) fn open_for(shm: impl AsFd, path: &str, owner: &Owner) -> Result<(OwnedFd, rustix::fs::Stat)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let as_owner = Scope::unprivileged(owner.uid, owner.gid)?;
    let fd = rustix::fs::openat2(shm, path, flags, Mode::empty(), resolve).map_err(|_| Errno::ACCESS)?;
    drop(as_owner);
    let stat = check_file(&fd)?;
    Ok((fd, stat))
}

/// Is this a file of at least one byte?
pub(super) fn check_file(fd: impl AsFd) -> Result<rustix::fs::Stat> {
    let stat = rustix::fs::fstat(fd)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if regular && stat.st_size > 0 { Ok(stat) } else { Err(Errno::INVAL) }
}

/// A shared mapping of a file that others may change and truncate. No Rust reference to its bytes is ever made. After
/// use, ask [`poisoned`](Self::poisoned).
#[derive(Debug)]
pub(super) struct SharedMap {
    base: *mut u8,
    len: usize,
    mapped: usize,
    guard: Option<Guard>,
}

// SAFETY: the memory is shared with other processes anyway: it is only touched through atomics and copies that expect
// any bytes.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `len` bytes of a file. They need not be there: touching what is not poisons the mapping.
    pub(super) fn new(fd: impl AsFd, len: u64, writable: bool) -> Result<SharedMap> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        let mapped = len.checked_next_multiple_of(PAGE).filter(|len| *len > 0).ok_or(Errno::NOMEM)?;
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), mapped, prot, flags, fd, 0)? };
        // From here on `map` unmaps it.
        let mut map = SharedMap { base: base.cast(), len, mapped, guard: None };
        map.guard = Some(Guard::new(base.addr(), mapped, writable).ok_or(Errno::NOMEM)?);
        Ok(map)
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Was a page lost since it was mapped? Then what was read may be zeros, and what was written went nowhere.
    pub(super) fn poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::poisoned)
    }

    /// The address of `at..at + len`, for the kernel; `None` outside the mapping.
    pub(super) fn address(&self, at: u64, len: u64) -> Option<*mut u8> {
        let inside = at.checked_add(len)? <= self.len as u64;
        // SAFETY: in the mapping, as just checked.
        inside.then(|| unsafe { self.base.add(at as usize) })
    }

    /// Copies bytes from another mapping. Panics outside either; the caller has checked requests before.
    pub(super) fn copy_from(&self, at: u64, from: &SharedMap, from_at: u64, len: u64) {
        let (Some(to), Some(src)) = (self.address(at, len), from.address(from_at, len)) else {
            panic!("copy of {len} bytes from {from_at} to {at}, mappings of {} and {}", from.len, self.len);
        };
        // SAFETY: both ranges are mapped, and as different mappings they do not overlap. Peers may change the bytes during
        // the copy: which ones arrive is the client's own race, as with any shared memory. A lost page is made good
        // by the SIGBUS handler.
        unsafe { std::ptr::copy_nonoverlapping(src, to, len as usize) };
    }

    /// `pread` into the mapping, `RWF_NOWAIT` on demand. `EFAULT`: the memory is gone.
    pub(super) fn read_at(&self, at: u64, len: u64, fd: impl AsFd, off: u64, nowait: bool) -> Result<u64> {
        let base = self.address(at, len).ok_or(Errno::FAULT)?;
        let fd = fd.as_fd().as_raw_fd();
        let read = if nowait {
            let vec = libc::iovec { iov_base: base.cast(), iov_len: len as usize };
            // SAFETY: the kernel writes to a range that is mapped, or answers EFAULT.
            unsafe { libc::preadv2(fd, &vec, 1, off as i64, libc::RWF_NOWAIT) }
        } else {
            // SAFETY: as above.
            unsafe { libc::pread(fd, base.cast(), len as usize, off as i64) }
        };
        u64::try_from(read).map_err(|_| last_errno())
    }

    /// `pwrite` from the mapping. `EFAULT`: the memory is gone.
    pub(super) fn write_at(&self, at: u64, len: u64, fd: impl AsFd, off: u64) -> Result<u64> {
        let base = self.address(at, len).ok_or(Errno::FAULT)?;
        // SAFETY: the kernel reads from a range that is mapped, or answers EFAULT.
        let wrote = unsafe { libc::pwrite(fd.as_fd().as_raw_fd(), base.cast(), len as usize, off as i64) };
        u64::try_from(wrote).map_err(|_| last_errno())
    }

    /// Fills the page tables for `at..at + len`, so that touching them takes no fault.
    pub(super) fn populate(&self, at: u64, len: u64) -> bool {
        let Some(base) = self.address(at, len) else { return false };
        // SAFETY: only page tables change, within our mapping.
        unsafe { rustix::mm::madvise(base.cast(), len as usize, Advice::LinuxPopulateRead) }.is_ok()
    }

    /// The word at `at` as an atomic. Panics outside the mapping or unaligned.
    pub(super) fn word(&self, at: usize) -> &AtomicU64 {
        let base = self.address(at as u64, 8).filter(|p| p.addr().is_multiple_of(8));
        let base = base.expect("offsets of words are constants or from a Geometry that was checked");
        // SAFETY: mapped for the life of `self` and aligned, as just checked; only ever touched as an atomic.
        unsafe { AtomicU64::from_ptr(base.cast()) }
    }

    /// The futex half of the word at `at`.
    pub(super) fn futex(&self, at: usize) -> &AtomicU32 {
        let word: *const AtomicU64 = self.word(at);
        // SAFETY: the low half of a little-endian word lies first. The kernel and peers use it the same way.
        unsafe { AtomicU32::from_ptr(word.cast_mut().cast()) }
    }

    /// Makes a glibc semaphore, shared between processes, of value 0.
    pub(super) fn init_semaphore(&self, at: usize) -> Result<()> {
        let base = self.address(at as u64, size_of::<libc::sem_t>() as u64).ok_or(Errno::INVAL)?;
        // SAFETY: room for a `sem_t`, mapped and writable; nobody waits on it yet.
        if unsafe { libc::sem_init(base.cast(), 1, 0) } == 0 { Ok(()) } else { Err(last_errno()) }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        self.guard = None; // before the addresses can become somebody else's
        // SAFETY: the range is ours alone; users hold the map through `Arc` or a borrow. It fails only for wrong ranges.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.mapped) };
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Ring memory that keeps its mapping alive.
#[derive(Debug, Clone)]
pub(super) struct RingMap {
    mem: SharedMem,
    _map: Arc<SharedMap>,
}

impl RingMap {
    pub(super) fn new(map: &Arc<SharedMap>) -> RingMap {
        // SAFETY: mapped readable and writable for as long as `_map`; page-aligned; this process touches ring memory only
        // through `RingMem` and `SharedMap::word`, both atomics.
        let mem = unsafe { SharedMem::new(map.base, map.len & !7) };
        RingMap { mem, _map: map.clone() }
    }
}

impl RingMem for RingMap {
    fn load_index(&self, at: usize) -> i32 {
        self.mem.load_index(at)
    }
    fn store_index(&self, at: usize, value: i32) {
        self.mem.store_index(at, value);
    }
    fn replace_index(&self, at: usize, current: i32, new: i32) -> bool {
        self.mem.replace_index(at, current, new)
    }
    fn load(&self, at: usize) -> u64 {
        self.mem.load(at)
    }
    fn store(&self, at: usize, value: u64) {
        self.mem.store(at, value);
    }
}
