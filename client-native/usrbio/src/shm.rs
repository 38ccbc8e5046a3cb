//! Shared memory below `/dev/shm`: making it with its pages reserved, opening it, mapping it.

use crate::error::Error;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// Where POSIX shared memory lives; part of the wire contract.
pub const SHM_DIR: &str = "/dev/shm";

/// `fallocate` gives everything back when a signal comes: steps of this size bound what is lost then.
const RESERVE_STEP: u64 = 256 << 20;

/// Owns one shared mapping, from mmap to munmap.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory without thread affinity, and `Mapping` itself never touches it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize) -> Result<Mapping, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so that no other mapping is replaced.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        NonNull::new(base.cast()).map(|base| Mapping { base, len }).ok_or(Errno::NOMEM)
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes the pages present, so that the first I/O does not pay for them and the daemon is not charged.
    /// A kernel before 5.14 cannot; the pages come with their first touch then.
    fn populate(&self) -> Result<(), Errno> {
        // SAFETY: the range is ours (`Mapping::new`) and populating does not change its content.
        unsafe { rustix::mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `Mapping::new` and is unmapped only here.
        if let Err(errno) = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!("munmap of {} bytes failed: {errno}", self.len);
        }
    }
}

/// Prefers NUMA node `numa` for the pages of `base..base + len`. A node that does not exist is logged only.
///
/// # Safety
/// The range must be mapped.
pub unsafe fn bind_numa(base: *mut u8, len: usize, numa: i32) {
    const MPOL_PREFERRED: libc::c_int = 1;
    const MAX_NODE: usize = 1024;
    let Ok(node) = usize::try_from(numa) else { return };
    let mut mask = [0u64; MAX_NODE / 64];
    let Some(word) = mask.get_mut(node / 64) else {
        tracing::warn!("NUMA node {node} does not exist, memory is not bound");
        return;
    };
    *word = 1 << (node % 64);
    let page = rustix::param::page_size();
    let start = base.addr() & !(page - 1);
    let bytes = base.addr() - start + len;
    // SAFETY: the range is mapped (caller), the mask outlives the call, and a policy changes no content.
    let rc = unsafe {
        libc::syscall(libc::SYS_mbind, start, bytes, MPOL_PREFERRED, mask.as_ptr(), MAX_NODE + 1, 0)
    };
    if rc != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!("{len} bytes of memory are not bound to NUMA node {node}: {error}");
    }
}

/// A shared-memory file that this process made. Its name goes when it is dropped, unless it was unlinked before.
#[derive(Debug)]
pub(crate) struct ShmFile {
    path: PathBuf,
    linked: bool,
}

impl ShmFile {
    /// Makes `/dev/shm/<name>` with `len` bytes, all of them reserved and present.
    pub(crate) fn create(name: &str, len: usize, numa: i32) -> Result<(ShmFile, Mapping), Error> {
        let path = Path::new(SHM_DIR).join(name);
        let failed = |what| {
            let path = path.clone();
            move |errno| Error::Shm { what, path, errno }
        };
        // Without a name until it is whole: a process killed meanwhile leaves nothing in /dev/shm. What is left of the
        // moment until the daemon knows the name cannot be had without one, since the daemon opens the file by it.
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = rustix::fs::open(SHM_DIR, flags, Mode::from_raw_mode(0o666)).map_err(failed("create"))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(failed("size"))?;
        let mapping = Mapping::new(fd.as_fd(), len).map_err(failed("map"))?;
        // SAFETY: just mapped. Before the pages come, or the policy would come too late.
        unsafe { bind_numa(mapping.as_ptr(), len, numa) };
        reserve(fd.as_fd(), &path, len as u64)?;
        if let Err(errno) = mapping.populate() {
            tracing::debug!("{}: pages are not populated: {errno}", path.display());
        }
        let nameless = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::linkat(CWD, nameless, CWD, &path, AtFlags::SYMLINK_FOLLOW).map_err(failed("name"))?;
        let file = ShmFile { path, linked: true };
        Ok((file, mapping))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the name; mappings stay.
    pub(crate) fn unlink(&mut self) {
        if std::mem::take(&mut self.linked)
            && let Err(errno) = rustix::fs::unlink(&self.path)
        {
            tracing::debug!("cannot unlink {}: {errno}", self.path.display());
        }
    }

    /// Leaves the name to the process that made it.
    pub(crate) fn disown(&mut self) {
        self.linked = false;
    }
}

impl Drop for ShmFile {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// Reserves the pages of the first `len` bytes of a file in shared memory, so that a full `/dev/shm` is an error here and not
/// SIGBUS later.
pub fn reserve(fd: BorrowedFd<'_>, path: &Path, len: u64) -> Result<(), Error> {
    // Asking for too much at once takes the rest from everybody for a moment: look first.
    let has = rustix::fs::fstat(fd).map_err(Error::os("stat", path))?.st_blocks.unsigned_abs() * 512;
    if space(fd).is_some_and(|space| space.total != 0 && space.free.saturating_add(has) < len) {
        return Err(no_space(fd, len, has));
    }
    let mut done = 0;
    while done < len {
        let step = RESERVE_STEP.min(len - done);
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), done, step) {
            Ok(()) => done += step,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC) => return Err(no_space(fd, len, done)),
            // Sandboxes that know no fallocate: as 3FS, which reserves nothing.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            Err(errno) => return Err(Error::os("reserve the pages of", path)(errno)),
        }
    }
    Ok(())
}

/// A tmpfs in bytes; `total` is 0 for one without a limit.
struct Space {
    free: u64,
    total: u64,
}

fn space(fd: BorrowedFd<'_>) -> Option<Space> {
    let stat = rustix::fs::fstatvfs(fd).ok()?;
    Some(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
}

/// `taken` bytes are ours already and were free before.
fn no_space(fd: BorrowedFd<'_>, asked: u64, taken: u64) -> Error {
    let Space { free, total } = space(fd).unwrap_or(Space { free: 0, total: 0 });
    Error::NoSpace { asked, free: free + taken, total }
}

/// Maps the first `len` bytes of the shared-memory file that another process registered at `link`.
pub(crate) fn open(link: &Path, len: usize) -> Result<Mapping, Error> {
    let path = std::fs::canonicalize(link).map_err(|error| Error::Os {
        what: "resolve",
        path: link.to_owned(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    if !path.starts_with(SHM_DIR) {
        return Err(Error::Invalid(format!(
            "{} leads to {}, outside {SHM_DIR}",
            link.display(),
            path.display()
        )));
    }
    let failed = |what| {
        let path = path.clone();
        move |errno| Error::Shm { what, path, errno }
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(&path, flags, Mode::empty()).map_err(failed("open"))?);
    let actual = rustix::fs::fstat(&file).map_err(failed("stat"))?.st_size;
    if u64::try_from(actual).unwrap_or(0) < len as u64 {
        let message = format!("{} has {actual} bytes, fewer than the {len} asked for", path.display());
        return Err(Error::Invalid(message));
    }
    Mapping::new(file.as_fd(), len).map_err(failed("map"))
}
