//! Rings: a queue of requests to the daemon and a queue of its answers, in one piece of shared memory.

use crate::error::{Error, PrepError};
use crate::fd::FileId;
use crate::fork::Generation;
use crate::iov::{Iov, Registration, new_shm};
use crate::mount::Mount;
use crate::sem::{RingSem, SubmitSem};
use crate::shm::Mapping;
use crate::slots::Slots;
use crate::wait::{Deadline, Sleep, Spin};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use usrbio_wire::mem::SharedMem;
use usrbio_wire::{Args, ClientRing, Cqe, Geometry, IovName, Priority, RingAttrs, RingFault, RingFlags};
use uuid::Uuid;

/// How a ring is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingOptions {
    /// Requests that may be in flight, at least 1.
    pub entries: u32,
    /// For reads or for writes.
    pub for_read: bool,
    /// How the daemon batches: 0 takes what is there; `n` waits until `n` requests are queued, for ever; `-n` takes
    /// up to `n`, and waits for more until the timeout.
    pub io_depth: i32,
    /// Which of the daemon's queues it goes to.
    pub priority: Priority,
    /// For a negative `io_depth`, in ms.
    pub timeout_ms: u32,
    /// What else the daemon should do.
    pub flags: RingFlags,
    /// NUMA node of the ring's memory; below 0 any.
    pub numa: i32,
}

impl RingOptions {
    /// A ring for `entries` reads in flight, with defaults otherwise.
    pub fn read(entries: u32) -> RingOptions {
        RingOptions {
            entries,
            for_read: true,
            io_depth: 0,
            priority: Priority::Normal,
            timeout_ms: 0,
            flags: RingFlags::default(),
            numa: -1,
        }
    }

    /// A ring for `entries` writes in flight, with defaults otherwise.
    pub fn write(entries: u32) -> RingOptions {
        RingOptions { for_read: false, ..RingOptions::read(entries) }
    }

    fn geometry(&self) -> Result<Geometry, Error> {
        let RingOptions { entries, io_depth, timeout_ms, .. } = *self;
        if i32::try_from(timeout_ms).is_err() {
            return Err(Error::Invalid(format!("a timeout of {timeout_ms} ms")));
        }
        if u32::try_from(io_depth).is_ok_and(|depth| depth > entries) {
            return Err(Error::Invalid(format!("batches of {io_depth} in a ring of {entries} entries")));
        }
        Geometry::for_entries(entries)
            .ok_or_else(|| Error::Invalid(format!("a ring of {entries} entries: from 1 to some 22 million")))
    }
}

/// An Iov as requests name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Bytes of its UUID, in text order.
    pub id: [u8; 16],
    /// Its length in bytes.
    pub size: u64,
}

impl Buffer {
    /// Are bytes `offset..offset + len` some, and inside?
    #[inline]
    pub fn check(self, offset: u64, len: u64) -> Result<(), PrepError> {
        if len == 0 {
            return Err(PrepError::Empty);
        }
        if len > self.size || offset > self.size - len {
            return Err(PrepError::OutOfIov { offset, len, size: self.size });
        }
        Ok(())
    }
}

impl From<&Iov> for Buffer {
    fn from(iov: &Iov) -> Buffer {
        Buffer { id: iov.id().into_bytes(), size: iov.len() as u64 }
    }
}

/// One read or write, whichever the ring is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The file; it must stay open, see [`RegisteredFile`](crate::RegisteredFile).
    pub file: FileId,
    /// Where in the file, in bytes.
    pub file_offset: u64,
    /// How much, in bytes; not 0.
    pub len: u64,
    /// Where in the Iov, in bytes. Must not straddle two of its blocks.
    pub iov_offset: u64,
    /// Comes back with the completion.
    pub userdata: u64,
}

/// What became of a batch of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared {
    /// So many of them, from the first on, are queued.
    pub queued: usize,
    /// Why the next one is not, if there is a next one.
    pub stopped: Option<PrepError>,
}

/// Completions that one pass takes.
const REAP_MAX: usize = 128;

/// Why a ring takes nothing and gives nothing any more.
enum Unusable {
    Forked,
    Broken(RingFault),
}

impl From<Unusable> for PrepError {
    fn from(why: Unusable) -> PrepError {
        match why {
            Unusable::Forked => PrepError::Forked,
            Unusable::Broken(fault) => PrepError::Broken(fault),
        }
    }
}

impl From<Unusable> for Error {
    fn from(why: Unusable) -> Error {
        match why {
            Unusable::Forked => Error::Forked,
            Unusable::Broken(fault) => Error::Broken(fault),
        }
    }
}

/// A ring as C and Python share it between threads. All methods take `&self`: one thread may prepare while another
/// one waits. Two threads that prepare at once garble each other's requests, but never memory; [`Ring`] does not
/// even allow that.
#[derive(Debug)]
pub struct RingCore {
    ring: ClientRing<SharedMem>,
    slots: Slots,
    for_read: bool,
    made_in: Generation,
    /// Set once the daemon broke the protocol.
    fault: OnceLock<RingFault>,
    /// Up to here the daemon was told of requests.
    announced: AtomicI32,
    done: RingSem,
    spin: Spin,
    submit: SubmitSem,
    id: Uuid,
    // Dropped last, in this order: the daemon lets go, then the memory goes that `ring` and `done` lie in.
    registration: Registration,
    mapping: Mapping,
}

impl RingCore {
    /// Makes a ring and registers it.
    pub fn create(mount: &Mount, options: &RingOptions) -> Result<RingCore, Error> {
        let geometry = options.geometry()?;
        let (mut file, mapping) = new_shm(geometry.file_len(), options.numa)?;
        let id = Uuid::new_v4();
        let attrs = RingAttrs {
            for_read: options.for_read,
            io_depth: options.io_depth,
            priority: options.priority,
            timeout_ms: options.timeout_ms,
            flags: options.flags,
        };
        let name = IovName { id, block_size: None, ring: Some(attrs) };
        let registration = Registration::new(mount, &name.to_string(), file.path())?;
        // The daemon has it open now; without a name it cannot be left behind.
        file.unlink();
        mount.keep_alive();
        let submit = SubmitSem::open(&mount.iovs().join(options.priority.semaphore_link()))?;
        // SAFETY: the mapping has exactly `file_len` bytes, is aligned to a page, and is dropped after the view.
        let mem = unsafe { SharedMem::new(mapping.as_ptr(), mapping.len()) };
        // SAFETY: inside the mapping, which is longer than `sem_at` by the semaphore and more.
        let done = unsafe { mapping.as_ptr().add(geometry.sem_at()) };
        let done = NonNull::new(done).ok_or_else(|| Error::Invalid("a ring at address 0".to_owned()))?;
        Ok(RingCore {
            ring: ClientRing::new(mem, geometry),
            slots: Slots::new(geometry.entries()),
            for_read: options.for_read,
            made_in: Generation::current(),
            fault: OnceLock::new(),
            announced: AtomicI32::new(0),
            // SAFETY: as for `done` above: mapped until after the last use, and a multiple of 8 as `sem_at` is.
            done: unsafe { RingSem::new(done) },
            spin: Spin::default(),
            submit,
            id,
            registration,
            mapping,
        })
    }

    /// Requests that may be in flight.
    pub fn entries(&self) -> u32 {
        self.ring.geometry().entries()
    }

    /// For reads (`true`) or for writes?
    #[inline]
    pub fn for_read(&self) -> bool {
        self.for_read
    }

    /// The id that it is registered by.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Where its shared memory is mapped, and how many bytes. It belongs to the ring protocol; the C interface shows
    /// it because 3FS does.
    pub fn memory(&self) -> (*mut u8, usize) {
        (self.mapping.as_ptr(), self.mapping.len())
    }

    /// Notes that the ring is beyond use.
    #[cold]
    fn broken(&self, fault: RingFault) -> Unusable {
        if self.fault.set(fault).is_ok() {
            tracing::error!("ring {} is broken and must be made anew: {fault}", self.id);
        }
        Unusable::Broken(fault)
    }

    #[inline]
    fn usable(&self) -> Result<(), Unusable> {
        if !self.made_in.is_current() {
            return Err(Unusable::Forked);
        }
        self.fault.get().map_or(Ok(()), |fault| Err(Unusable::Broken(*fault)))
    }

    /// Is it of this process, and was the protocol always kept? Takes no lock: for a look before taking one that
    /// another thread of the parent may have held at the fork.
    pub fn check_usable(&self) -> Result<(), Error> {
        Ok(self.usable()?)
    }

    /// Does the daemon still know it? A waiter who has waited for long asks; the answer comes from the daemon through
    /// the mount. Without the daemon nothing would ever be answered.
    pub fn check_served(&self) -> Result<(), Error> {
        self.registration.check()
    }

    #[inline]
    fn check(&self, buffer: Buffer, request: &Request) -> Result<Args, PrepError> {
        buffer.check(request.iov_offset, request.len)?;
        if !request.file.access.allows(self.for_read) {
            return Err(PrepError::Access);
        }
        Ok(Args {
            buf_id: buffer.id,
            buf_off: request.iov_offset,
            file_iid: request.file.ino,
            file_off: request.file_offset,
            io_len: request.len,
            userdata: request.userdata,
        })
    }

    /// Queues a request and answers its slot, the `index` of its completion. The daemon may start at once, and is
    /// told by [`submit`](Self::submit).
    #[inline]
    pub fn prep(&self, buffer: Buffer, request: &Request) -> Result<u32, PrepError> {
        self.usable()?;
        let args = self.check(buffer, request)?;
        let mut batch = self.ring.start_push().map_err(|fault| self.broken(fault))?;
        let mut lease = self.slots.take(1);
        let slot = lease.peek().ok_or(PrepError::Full)?;
        if !batch.push(slot, &args) {
            return Err(PrepError::Full);
        }
        lease.used();
        batch.publish();
        Ok(slot)
    }

    /// Queues requests on one Iov until one does not fit or is wrong. The daemon sees all of them at once.
    pub fn prep_batch(&self, buffer: Buffer, requests: &[Request]) -> Prepared {
        let mut queued = 0;
        let stopped = self.try_batch(buffer, requests, &mut queued).err();
        Prepared { queued, stopped }
    }

    fn try_batch(&self, buffer: Buffer, requests: &[Request], queued: &mut usize) -> Result<(), PrepError> {
        self.usable()?;
        let mut batch = self.ring.start_push().map_err(|fault| self.broken(fault))?;
        let mut lease = self.slots.take(0);
        let mut stopped = Ok(());
        for request in requests {
            let args = match self.check(buffer, request) {
                Ok(args) => args,
                Err(error) => {
                    stopped = Err(error);
                    break;
                }
            };
            if lease.peek().is_none() {
                let rest = requests.len() - *queued;
                lease = self.slots.take(u32::try_from(rest).unwrap_or(u32::MAX));
            }
            if !lease.peek().is_some_and(|slot| batch.push(slot, &args)) {
                stopped = Err(PrepError::Full);
                break;
            }
            lease.used();
            *queued += 1;
        }
        batch.publish();
        stopped
    }

    /// Tells the daemon that requests are queued. Any thread may.
    pub fn submit(&self) -> Result<(), Error> {
        self.usable()?;
        let head = self.ring.head().map_err(|fault| self.broken(fault))?;
        self.announced.store(head.raw(), Ordering::Relaxed);
        self.submit.post();
        Ok(())
    }

    /// Takes completions into `out`, oldest first, until there are `min` of them (never more than `out` holds) or
    /// the real-time clock reaches `deadline`; the count taken, whose places are written. With a `min` of 0 it does
    /// not wait, and without a deadline it waits for ever.
    pub fn wait(
        &self,
        min: usize,
        out: &mut [MaybeUninit<Cqe>],
        deadline: Option<Deadline>,
    ) -> Result<usize, Error> {
        let min = min.min(out.len());
        let mut filled = 0;
        let mut sleep = Sleep::new(deadline);
        loop {
            match self.reap(&mut out[filled..]) {
                Ok(0) => {
                    if filled >= min || sleep.is_over() {
                        return Ok(filled);
                    }
                    sleep.until_woken(&self.done, &self.spin, || self.has_news());
                }
                Ok(taken) => {
                    filled += taken;
                    if filled == out.len() {
                        return Ok(filled);
                    }
                }
                // What was taken before counts; the next call says why there is no more.
                Err(_) if filled > 0 => return Ok(filled),
                Err(error) => return Err(error),
            }
        }
    }

    /// Is there a completion, or a fault to report?
    fn has_news(&self) -> bool {
        self.ring.completed().map_or(true, |count| count > 0)
    }

    /// Takes what is there. Slots are free again afterwards.
    fn reap(&self, out: &mut [MaybeUninit<Cqe>]) -> Result<usize, Error> {
        self.usable()?;
        let mut indexes = [0; REAP_MAX];
        let taken = self.ring.pop_with(out.len().min(REAP_MAX), |i, cqe| {
            out[i].write(cqe);
            indexes[i] = cqe.index;
        });
        let taken = taken.map_err(|fault| self.broken(fault))?;
        if taken == 0 {
            return Ok(0);
        }
        let mut back = self.slots.giving_back();
        let wrong = indexes[..taken].iter().position(|index| !back.add(*index));
        drop(back);
        self.announce_rest();
        let Some(wrong) = wrong else { return Ok(taken) };
        let fault = RingFault::UnknownCompletion { raw: indexes[wrong], entries: self.entries() };
        let fault = self.broken(fault);
        if wrong == 0 { Err(fault.into()) } else { Ok(wrong) }
    }

    /// Tells the daemon of requests that were prepared and never submitted, as 3FS does with each reaping. Requests
    /// that were submitted need no second word: the daemon always has room for their completions.
    fn announce_rest(&self) {
        let announced = self.announced.load(Ordering::Relaxed);
        if self.ring.head().is_ok_and(|head| head.raw() != announced) && !self.submit.is_posted() {
            self.submit.post();
        }
    }
}

/// A ring, for one thread or, [split](Ring::split), for two.
///
/// ```no_run
/// use usrbio::{Cqe, Iov, Mount, RegisteredFile, Request, Ring, RingOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mount = Mount::of("/data/set.bin")?;
/// let file = RegisteredFile::new(std::fs::File::open("/data/set.bin")?)?;
/// let iov = Iov::create(&mount, 1 << 20, 0, -1)?;
/// let mut ring = Ring::create(&mount, &RingOptions::read(64))?;
///
/// let parts: Vec<Request> = (0..16u64)
///     .map(|i| Request {
///         file: file.id(),
///         file_offset: i * 65536,
///         len: 65536,
///         iov_offset: i * 65536,
///         userdata: i,
///     })
///     .collect();
/// let prepared = ring.prep_batch(&iov, &parts);
/// ring.submit()?;
/// let mut done = [Cqe::default(); 16];
/// let count = ring.wait(prepared.queued, &mut done, None)?;
/// assert!(done[..count].iter().all(|cqe| cqe.result == 65536));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Ring(RingCore);

impl Ring {
    /// Makes a ring and registers it.
    pub fn create(mount: &Mount, options: &RingOptions) -> Result<Ring, Error> {
        RingCore::create(mount, options).map(Ring)
    }

    /// Requests that may be in flight.
    pub fn entries(&self) -> u32 {
        self.0.entries()
    }

    /// The two halves, for a thread that prepares and one that waits.
    pub fn split(&mut self) -> (Preparer<'_>, Reaper<'_>) {
        (Preparer(&self.0), Reaper(&self.0))
    }

    /// See [`Preparer::prep`].
    pub fn prep(&mut self, iov: &Iov, request: &Request) -> Result<u32, PrepError> {
        self.0.prep(iov.into(), request)
    }

    /// See [`Preparer::prep_batch`].
    pub fn prep_batch(&mut self, iov: &Iov, requests: &[Request]) -> Prepared {
        self.0.prep_batch(iov.into(), requests)
    }

    /// See [`Preparer::submit`].
    pub fn submit(&mut self) -> Result<(), Error> {
        self.0.submit()
    }

    /// See [`Reaper::wait`].
    pub fn wait(&mut self, min: usize, out: &mut [Cqe], timeout: Option<Duration>) -> Result<usize, Error> {
        Reaper(&self.0).wait(min, out, timeout)
    }

    /// The ring without the guard against two threads at once.
    pub fn into_core(self) -> RingCore {
        self.0
    }
}

/// The half of a [`Ring`] that queues requests.
#[derive(Debug)]
pub struct Preparer<'a>(&'a RingCore);

impl Preparer<'_> {
    /// Queues a request and answers its slot, the `index` of its completion.
    pub fn prep(&mut self, iov: &Iov, request: &Request) -> Result<u32, PrepError> {
        self.0.prep(iov.into(), request)
    }

    /// Queues requests on one Iov until one does not fit or is wrong.
    pub fn prep_batch(&mut self, iov: &Iov, requests: &[Request]) -> Prepared {
        self.0.prep_batch(iov.into(), requests)
    }

    /// Tells the daemon that requests are queued.
    pub fn submit(&mut self) -> Result<(), Error> {
        self.0.submit()
    }
}

/// The half of a [`Ring`] that takes completions.
#[derive(Debug)]
pub struct Reaper<'a>(&'a RingCore);

impl Reaper<'_> {
    /// Takes completions, oldest first, until there are `min` of them (never more than `out` holds) or `timeout` is
    /// over; the count taken. With a `min` of 0 it does not wait, and without a timeout it waits for ever.
    pub fn wait(&mut self, min: usize, out: &mut [Cqe], timeout: Option<Duration>) -> Result<usize, Error> {
        let places: *mut [MaybeUninit<Cqe>] = std::ptr::from_mut(out) as *mut [MaybeUninit<Cqe>];
        // SAFETY: the same memory, borrowed exclusively; `wait` writes whole, valid completions only.
        self.0.wait(min, unsafe { &mut *places }, timeout.map(Deadline::after))
    }
}

#[cfg(test)]
mod tests;
