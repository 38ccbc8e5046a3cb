//! A worker's way to wait and to do I/O that would block: one io_uring. Where io_uring is forbidden (the default seccomp
//! profiles of container runtimes do so), I/O is done at once and blocks the worker's session, and futexes are waited for with
//! `futex_waitv`.

use super::file::RingFile;
use super::job::Ring;
use super::object::Iov;
use super::slab::Slab;
use crate::types::Errno;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue, types};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const SQ_ENTRIES: u32 = 256;
const CQ_ENTRIES: u32 = 4096;
/// Requests that one worker, and so a session with one, has in flight at most.
const MAX_IN_FLIGHT: usize = 1024;
/// Kernel threads that wait for a worker's requests on file systems that make callers wait. As many hang there at most.
const IO_THREADS: u32 = 16;
/// The most that one read or write moves; longer ones go on where it ended.
const MAX_LEN: u64 = 1 << 30;
/// `FUTEX_WAITV_MAX`.
const WAITV_MAX: usize = 128;

const FUTEX: u64 = 1 << 63;
const CANCEL: u64 = u64::MAX;

/// A read or write in flight. It keeps the memory alive that the kernel uses.
pub(super) struct Op {
    pub(super) ring: Arc<Ring>,
    /// Which request of the ring.
    pub(super) seq: u64,
    pub(super) file: Arc<RingFile>,
    pub(super) iov: Arc<Iov>,
    /// Where in the Iov.
    pub(super) at: u64,
    /// Where in the file.
    pub(super) off: u64,
    pub(super) len: u64,
    /// Bytes of `len` that were moved before.
    pub(super) done: u64,
    pub(super) write: bool,
    /// Past the page cache.
    pub(super) direct: bool,
    /// So long that even cached data is better copied by a kernel worker.
    pub(super) background: bool,
}

impl Op {
    /// Takes what the kernel answered: the request's result, or `None` when there is more to do.
    pub(super) fn advance(&mut self, result: i32) -> Option<Result<u64, Errno>> {
        match u64::try_from(result) {
            Err(_) => match Errno::from_raw_os_error(-result) {
                Errno::INTR | Errno::AGAIN => None,
                // Stricter than what statx said, or the file system has no direct I/O for this place.
                Errno::INVAL if self.direct => {
                    self.direct = false;
                    None
                }
                error => Some(Err(error)),
            },
            Ok(0) if self.write => Some(Err(Errno::NODATA)),
            Ok(0) => Some(Ok(self.done)),
            Ok(moved) => {
                self.done += moved;
                if self.done >= self.len {
                    return Some(Ok(self.done));
                }
                // The rest of a direct request need not be aligned.
                self.direct = false;
                None
            }
        }
    }
}

/// What came of waiting.
pub(super) enum Event {
    /// The kernel's answer to an [`Op`].
    Io(Op, i32),
    /// The wait with this token is over: woken, changed, or cancelled.
    Futex(u64),
}

/// See the module.
pub(super) struct Io {
    uring: Option<IoUring>,
    ops: Slab<Op>,
    /// Done without io_uring, not yet taken.
    done: Vec<(Op, i32)>,
    /// Waited for without io_uring.
    waits: Vec<(u64, *const AtomicU32, u32)>,
    min_wait: bool,
    gather_us: u32,
    started: bool,
}

impl Io {
    /// With io_uring if there is one.
    pub(super) fn new() -> Io {
        let uring: std::io::Result<IoUring> = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(CQ_ENTRIES)
            .build(SQ_ENTRIES);
        match uring.and_then(can_wait) {
            Ok(uring) => {
                // Elsewhere than on this thread where a file cannot do without waiting; unbounded ones do not occur.
                let _ = uring.submitter().register_iowq_max_workers(&mut [IO_THREADS, 0]);
                Io::with(Some(uring))
            }
            Err(error) => {
                tracing::warn!(%error, "io_uring cannot be used: rings are served by blocking reads, at a lower rate");
                Io::with(None)
            }
        }
    }

    /// Without io_uring.
    #[cfg(test)]
    pub(super) fn blocking() -> Io {
        Io::with(None)
    }

    fn with(uring: Option<IoUring>) -> Io {
        let min_wait = uring.as_ref().is_some_and(|u| u.params().is_feature_min_timeout());
        Io {
            uring,
            ops: Slab::default(),
            done: Vec::new(),
            waits: Vec::new(),
            min_wait,
            gather_us: GATHER_US,
            started: false,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ops.len() + self.done.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < MAX_IN_FLIGHT
    }

    /// Queues a read or write; [`submit`](Self::submit) starts it.
    pub(super) fn start(&mut self, op: Op) {
        let (len, at, off) = ((op.len - op.done).min(MAX_LEN), op.at + op.done, op.off + op.done);
        let fd = match &op.file.backing.direct {
            Some(direct) if op.direct => direct,
            _ => &op.file.backing.fd,
        };
        if self.uring.is_none() {
            let map = &op.iov.map;
            let result =
                if op.write { map.write_at(at, len, fd, off) } else { map.read_at(at, len, fd, off, false) };
            let result = result.map_or_else(|e| -e.raw_os_error(), |n| n as i32);
            self.done.push((op, result));
            return;
        }
        let Some(memory) = op.iov.map.address(at, len) else { return self.done.push((op, -libc::EFAULT)) };
        let fd = types::Fd(fd.as_raw_fd());
        let entry = if op.write {
            opcode::Write::new(fd, memory, len as u32).offset(off).build()
        } else {
            opcode::Read::new(fd, memory, len as u32).offset(off).build()
        };
        let flags = if op.background { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
        self.started = true;
        let entry = entry.flags(flags).user_data(self.ops.insert(op) as u64);
        self.push(&entry);
    }

    fn push(&mut self, entry: &squeue::Entry) {
        let Some(uring) = &mut self.uring else { return };
        // SAFETY: memory and fds of an `Op` live in `self.ops` until its completion was seen (also in `drop`); futex words are
        // only read by the kernel, which answers EFAULT when they are gone.
        while unsafe { uring.submission().push(entry) }.is_err() {
            let _ = uring.submit();
        }
    }

    /// Starts what is queued.
    pub(super) fn submit(&mut self) {
        if let Some(uring) = &mut self.uring
            && !uring.submission().is_empty()
        {
            let _ = uring.submit();
        }
    }

    /// Waits, in the background, until `futex` is not `expected` or is woken: [`Event::Futex`] with `token`, below 2^62.
    pub(super) fn wait_for(&mut self, token: u64, futex: &AtomicU32, expected: u32) {
        if self.uring.is_none() {
            return self.waits.push((token, futex, expected));
        }
        let entry = opcode::FutexWait::new(
            std::ptr::from_ref(futex).cast(),
            u64::from(expected),
            u64::from(u32::MAX),
            FUTEX2_SIZE_U32,
        )
        .build()
        .user_data(FUTEX | token);
        self.push(&entry);
    }

    /// Ends a wait early; its event still comes.
    pub(super) fn cancel(&mut self, token: u64) {
        if self.uring.is_none() {
            for wait in self.waits.iter_mut().filter(|wait| wait.0 == token) {
                wait.1 = std::ptr::null();
            }
            return;
        }
        self.push(&opcode::AsyncCancel::new(FUTEX | token).build().user_data(CANCEL));
    }

    /// Is there an event, or work of the kernel that leads to one? A few loads, no system call.
    pub(super) fn pending(&mut self) -> bool {
        if !self.done.is_empty() {
            return true;
        }
        let Some(uring) = &mut self.uring else { return false };
        uring.submission().taskrun() || !uring.completion().is_empty()
    }

    /// Takes all events that are there.
    pub(super) fn events(&mut self, out: &mut Vec<Event>) {
        out.extend(self.done.drain(..).map(|(op, result)| Event::Io(op, result)));
        let Some(uring) = &mut self.uring else { return };
        if uring.submission().taskrun() {
            // Runs deferred completions; wants none, so it does not block.
            let _ = uring.submitter().submit_with_args(0, &SubmitArgs::new());
        }
        for cqe in uring.completion() {
            match cqe.user_data() {
                CANCEL => {}
                token if token & FUTEX != 0 => out.push(Event::Futex(token & !FUTEX)),
                index => {
                    if let Some(op) = self.ops.remove(index as usize) {
                        out.push(Event::Io(op, cqe.result()));
                    }
                }
            }
        }
    }

    /// Starts what is queued and sleeps until an event or the timeout. With many requests in flight, waits a little for more of
    /// them: every wake-up costs as much as several requests. A client that submits while others are in flight is looked
    /// after soon; one that waits for all of them is left alone longer each time.
    pub(super) fn sleep(&mut self, timeout: Option<Duration>, out: &mut Vec<Event>) {
        if !self.done.is_empty() {
            return self.events(out);
        }
        let in_flight = self.ops.len();
        let Some(uring) = &mut self.uring else { return self.sleep_without(timeout, out) };
        let timeout = timeout.map(|t| Timespec::new().sec(t.as_secs()).nsec(t.subsec_nanos()));
        let mut args = SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        let mut want = 1;
        if self.min_wait && in_flight >= 4 {
            let more = std::mem::take(&mut self.started);
            self.gather_us = if more { GATHER_US } else { (self.gather_us * 2).min(GATHER_MAX_US) };
            want = in_flight;
            args = args.min_wait_usec(self.gather_us);
        }
        // ETIME and EINTR are as good as an event; EBUSY means that completions wait to be taken.
        let _ = uring.submitter().submit_with_args(want, &args);
        self.events(out);
    }

    fn sleep_without(&mut self, timeout: Option<Duration>, out: &mut Vec<Event>) {
        // More words than one call takes: look often instead.
        let many = self.waits.len() > WAITV_MAX;
        let timeout = if many { Some(Duration::from_millis(1)) } else { timeout };
        let cancelled = self.waits.iter().any(|wait| wait.1.is_null());
        if !cancelled {
            futex_waitv(&self.waits[..self.waits.len().min(WAITV_MAX)], timeout);
        }
        self.waits.retain(|(token, futex, expected)| {
            // SAFETY: null or a word of a mapping that the worker keeps while it waits for it.
            let over = unsafe { futex.as_ref() }.is_none_or(|f| f.load(Ordering::SeqCst) != *expected);
            if over {
                out.push(Event::Futex(*token));
            }
            !over
        });
    }
}

impl Drop for Io {
    /// The kernel may write to an Iov until the request is complete.
    fn drop(&mut self) {
        let mut events = Vec::new();
        while self.ops.len() > 0 {
            self.sleep(None, &mut events);
        }
    }
}

/// Not private: the words are shared with other processes.
const FUTEX2_SIZE_U32: u32 = 2;
/// How long to gather completions when many requests are in flight.
const GATHER_US: u32 = 50;
const GATHER_MAX_US: u32 = 800;

/// Needs Linux 6.7.
fn can_wait(uring: IoUring) -> std::io::Result<IoUring> {
    let mut probe = io_uring::Probe::new();
    uring.submitter().register_probe(&mut probe)?;
    if probe.is_supported(opcode::FutexWait::CODE) {
        return Ok(uring);
    }
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "no FUTEX_WAIT in io_uring before Linux 6.7"))
}

/// Waits until one of the words is not what is expected, or is woken, or the time is over.
fn futex_waitv(waits: &[(u64, *const AtomicU32, u32)], timeout: Option<Duration>) {
    #[repr(C)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    let waiters: Vec<Waiter> = waits
        .iter()
        .map(|(_, futex, expected)| Waiter {
            value: u64::from(*expected),
            address: futex.addr() as u64,
            flags: FUTEX2_SIZE_U32,
            reserved: 0,
        })
        .collect();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let deadline = timeout.map(|t| {
        let nanos = now.tv_nsec as u64 + u64::from(t.subsec_nanos());
        libc::timespec {
            tv_sec: now.tv_sec + t.as_secs() as i64 + (nanos / 1_000_000_000) as i64,
            tv_nsec: (nanos % 1_000_000_000) as i64,
        }
    });
    let deadline = deadline.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the deadline live through the call; the words are only read by the kernel.
    let rc = unsafe {
        let clock = libc::CLOCK_MONOTONIC;
        libc::syscall(libc::SYS_futex_waitv, waiters.as_ptr(), waiters.len(), 0, deadline, clock)
    };
    let known = [libc::EAGAIN, libc::ETIMEDOUT, libc::EINTR];
    if rc < 0 && !std::io::Error::last_os_error().raw_os_error().is_some_and(|e| known.contains(&e)) {
        // Forbidden or unknown as well (Linux 5.16), or a word is gone: look again soon.
        std::thread::sleep(Duration::from_millis(1));
    }
}
