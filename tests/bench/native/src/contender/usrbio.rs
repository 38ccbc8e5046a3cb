//! USRBIO through the C library: prepare a batch, submit once, wait for all of it.

use std::ffi::{CString, c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::{Contender, Direction, expect_full};
use crate::capi::{Capi, Cqe, Ior, Iov};
use crate::pattern;

/// A batch that is not complete by then is lost, and the benchmark says so instead of hanging.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a deadline serves before a new one is computed: a clock read less in each batch.
const DEADLINE_AGE: Duration = Duration::from_secs(2);

/// One ring, one Iov and one registered file.
pub struct Usrbio {
    capi: Rc<Capi>,
    ior: Box<Ior>,
    iov: Box<Iov>,
    file: File,
    block: usize,
    direction: Direction,
    completions: Vec<Cqe>,
    deadline: libc::timespec,
    deadline_made: Instant,
    batches: u32,
}

impl Usrbio {
    /// A ring of `batch` entries on the mount at `mount`, for requests of `block` bytes on `file` below it.
    pub fn new(
        capi: Rc<Capi>,
        mount: &Path,
        file: File,
        batch: usize,
        block: usize,
        direction: Direction,
    ) -> Result<Self> {
        let mut iov = create_iov(&capi, mount, batch * block)?;
        let ior = match create_ior(&capi, mount, batch, direction) {
            Ok(ior) => ior,
            Err(error) => {
                // SAFETY: the Iov was created above and nothing uses it.
                unsafe { (capi.iovdestroy)(&raw mut *iov) };
                return Err(error);
            }
        };
        // From here on Drop cleans up, whatever fails.
        let mut ring = Self {
            capi,
            ior,
            iov,
            file,
            block,
            direction,
            completions: vec![Cqe::EMPTY; batch],
            deadline: deadline(),
            deadline_made: Instant::now(),
            batches: 0,
        };
        // SAFETY: the Iov maps `batch * block` bytes that no request uses yet. Its pages are touched here, so that they
        // are charged to this process and no round pays for it.
        let memory = unsafe { std::slice::from_raw_parts_mut(ring.iov.base, batch * block) };
        pattern::fill(memory, 0);
        // Both sides have it mapped: a killed benchmark leaves no file behind.
        // SAFETY: a live Iov of this process.
        unsafe { (ring.capi.iovunlink)(&raw mut *ring.iov) };
        // SAFETY: a plain call on an open descriptor.
        let registered = unsafe { (ring.capi.reg_fd)(ring.file.as_raw_fd(), 0) };
        ensure!(registered <= 0, "hf3fs_reg_fd: {}", io::Error::from_raw_os_error(registered));
        Ok(ring)
    }

    fn prepare(&mut self, offsets: &[u64]) -> Result<()> {
        let fd = self.file.as_raw_fd();
        let read = self.direction == Direction::Read;
        for (index, &offset) in offsets.iter().enumerate() {
            // SAFETY: `new` mapped a buffer for each index below `batch`; the library refuses what is beyond the Iov.
            // The user data is a number that nobody follows.
            let slot = unsafe {
                let buffer = self.iov.base.add(index * self.block).cast::<c_void>();
                let userdata = std::ptr::without_provenance(index);
                (self.capi.prep_io)(
                    &*self.ior,
                    &*self.iov,
                    read,
                    buffer,
                    fd,
                    offset as usize,
                    self.block as u64,
                    userdata,
                )
            };
            ensure!(slot >= 0, "hf3fs_prep_io: {}", io::Error::from_raw_os_error(-slot));
        }
        // SAFETY: a live ring.
        let submitted = unsafe { (self.capi.submit_ios)(&*self.ior) };
        ensure!(submitted == 0, "hf3fs_submit_ios: {}", io::Error::from_raw_os_error(-submitted));
        Ok(())
    }

    fn reap(&mut self, offsets: &[u64]) -> Result<()> {
        let count = offsets.len() as c_int;
        // SAFETY: `completions` has room for `batch` entries, and no batch is longer.
        let done = unsafe {
            (self.capi.wait_for_ios)(&*self.ior, self.completions.as_mut_ptr(), count, count, &self.deadline)
        };
        if done != count {
            if done < 0 {
                bail!("hf3fs_wait_for_ios: {}", io::Error::from_raw_os_error(-done));
            }
            bail!("{done} of {count} requests were complete after {PATIENCE:?}");
        }
        for completion in &self.completions[..offsets.len()] {
            expect_full(completion.result, self.block, offsets[completion.userdata.addr()])?;
        }
        Ok(())
    }

    fn renew_deadline(&mut self) {
        self.batches = self.batches.wrapping_add(1);
        if self.batches.is_multiple_of(16) && self.deadline_made.elapsed() > DEADLINE_AGE {
            self.deadline_made = Instant::now();
            self.deadline = deadline();
        }
    }
}

impl Contender for Usrbio {
    fn run(&mut self, offsets: &[u64]) -> Result<()> {
        ensure!(offsets.len() <= self.completions.len(), "a batch of {} on a smaller ring", offsets.len());
        self.renew_deadline();
        self.prepare(offsets)?;
        self.reap(offsets)
    }

    fn slot(&self, index: usize) -> &[u8] {
        assert!(index < self.completions.len());
        // SAFETY: buffer `index` lies inside the Iov, and between two calls of `run` no request is in flight.
        unsafe { std::slice::from_raw_parts(self.iov.base.add(index * self.block), self.block) }
    }
}

impl Drop for Usrbio {
    fn drop(&mut self) {
        // SAFETY: all three were made by `new` and are not used again; a file that was never registered is a no-op.
        unsafe {
            (self.capi.dereg_fd)(self.file.as_raw_fd());
            (self.capi.iordestroy)(&raw mut *self.ior);
            (self.capi.iovdestroy)(&raw mut *self.iov);
        }
    }
}

/// A ring that nobody uses: what an idle training pod costs the daemon.
pub struct IdleRing {
    capi: Rc<Capi>,
    ior: Box<Ior>,
}

impl IdleRing {
    /// A ring of `entries` entries on the mount at `mount`.
    pub fn new(capi: Rc<Capi>, mount: &Path, entries: usize) -> Result<Self> {
        let ior = create_ior(&capi, mount, entries, Direction::Read)?;
        Ok(Self { capi, ior })
    }
}

impl Drop for IdleRing {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not used again.
        unsafe { (self.capi.iordestroy)(&raw mut *self.ior) };
    }
}

fn create_iov(capi: &Capi, mount: &Path, size: usize) -> Result<Box<Iov>> {
    let mount_point = CString::new(mount.as_os_str().as_bytes())?;
    let mut iov = Box::new(MaybeUninit::<Iov>::zeroed());
    // SAFETY: the library fills the struct, which is plain data of the size it expects.
    let status = unsafe { (capi.iovcreate)(iov.as_mut_ptr(), mount_point.as_ptr(), size, 0, -1) };
    check(status).with_context(|| format!("hf3fs_iovcreate of {size} bytes on {}", mount.display()))?;
    // SAFETY: zeroed, then filled by the successful call; every field may be zero.
    Ok(unsafe { iov.assume_init() })
}

fn create_ior(capi: &Capi, mount: &Path, entries: usize, direction: Direction) -> Result<Box<Ior>> {
    let mount_point = CString::new(mount.as_os_str().as_bytes())?;
    let mut ior = Box::new(MaybeUninit::<Ior>::zeroed());
    let read = direction == Direction::Read;
    // SAFETY: as in `create_iov`. I/O depth 0: the daemon takes what is there.
    let status =
        unsafe { (capi.iorcreate)(ior.as_mut_ptr(), mount_point.as_ptr(), entries as c_int, read, 0, -1) };
    check(status).with_context(|| format!("hf3fs_iorcreate of {entries} entries on {}", mount.display()))?;
    // SAFETY: zeroed, then filled by the successful call; every field may be zero.
    Ok(unsafe { ior.assume_init() })
}

fn check(status: c_int) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-status)) }
}

/// The moment at which patience ends, on the clock that the C ABI asks for.
fn deadline() -> libc::timespec {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + DEADLINE_AGE + PATIENCE;
    libc::timespec { tv_sec: at.as_secs() as libc::time_t, tv_nsec: at.subsec_nanos().into() }
}
