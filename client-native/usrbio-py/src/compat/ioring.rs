//! `ioring`: requests one at a time, answered with the iovecs that they were made of.

use super::iovec::Iovec;
use crate::error::{closed, os_error, raise, raise_prep};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use usrbio::fd::TABLE;
use usrbio::{
    Cqe, Deadline, Geometry, Mount, PrepError, Priority, Request, RingCore, RingFlags, RingOptions,
};

/// Longest wait before Python may handle a signal.
const SLICE: Duration = Duration::from_millis(100);
/// Longest timeout, some 30 years: more does not fit into a clock.
const LONGEST: Duration = Duration::from_secs(1_000_000_000);

/// What was prepared in a slot of the ring.
type Slot = Option<(Py<Iovec>, Option<Py<PyAny>>)>;

/// A ring for reads or for writes.
#[pyclass(name = "ioring", module = "hf3fs_py_usrbio", frozen)]
pub struct Ioring {
    core: Mutex<Option<Arc<RingCore>>>,
    // Locked with the GIL held and for a moment, as `core` is.
    slots: Mutex<Vec<Slot>>,
    /// Completed, and not answered yet: a `wait` that is interrupted leaves them to the next one.
    completed: Mutex<Vec<Py<Iovec>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[pymethods]
impl Ioring {
    #[new]
    #[pyo3(signature = (hf3fs_mount_point, entries, for_read = true, io_depth = 0, priority = None, timeout = None, numa = -1, flags = 0))]
    #[expect(clippy::too_many_arguments, reason = "3FS's signature")]
    fn new(
        py: Python<'_>,
        hf3fs_mount_point: PathBuf,
        entries: i32,
        for_read: bool,
        io_depth: i32,
        priority: Option<i32>,
        timeout: Option<i32>,
        numa: i32,
        flags: u64,
    ) -> PyResult<Ioring> {
        let entries = u32::try_from(entries)
            .map_err(|_| PyValueError::new_err(format!("a ring of {entries} entries: give 1 or more")))?;
        let timeout_ms = u32::try_from(timeout.unwrap_or(0))
            .map_err(|_| PyValueError::new_err("a negative timeout: give milliseconds, 0 or more"))?;
        let priority = match priority.unwrap_or(0) {
            ..0 => Priority::High,
            0 => Priority::Normal,
            1.. => Priority::Low,
        };
        let flags = RingFlags(flags);
        let options = RingOptions { entries, for_read, io_depth, priority, timeout_ms, flags, numa };
        let core = py
            .detach(|| Mount::at(hf3fs_mount_point).and_then(|mount| RingCore::create(&mount, &options)))
            .map_err(|error| os_error(error.errno(), &error))?;
        let slots = std::iter::repeat_with(|| None).take(entries as usize).collect();
        let (core, slots) = (Mutex::new(Some(Arc::new(core))), Mutex::new(slots));
        Ok(Ioring { core, slots, completed: Mutex::default() })
    }

    /// Requests that may be in flight.
    #[getter]
    fn entries(&self) -> PyResult<u32> {
        Ok(self.core()?.entries())
    }

    /// Queues a request for all bytes of `iov`, at `off` of a registered file; `self`, for chaining.
    #[pyo3(signature = (iov, read, fd, off, userdata = None))]
    fn prepare<'py>(
        slf: Bound<'py, Self>,
        iov: Bound<'py, Iovec>,
        read: bool,
        fd: i32,
        off: u64,
        userdata: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let this = slf.get();
        let core = this.core()?;
        if read != core.for_read() {
            return Err(raise_prep(PrepError::Direction));
        }
        let file = TABLE.lookup(fd).map_err(raise_prep)?;
        let (iov_offset, len) = iov.get().range();
        let request = Request { file, file_offset: off, len, iov_offset, userdata: 0 };
        let mut slots = lock(&this.slots);
        let slot = core.prep(iov.get().buffer(), &request).map_err(raise_prep)?;
        let before = slots[slot as usize].replace((iov.unbind(), userdata));
        drop(slots);
        drop(before);
        Ok(slf)
    }

    /// Tells the daemon of what was prepared; `self`, for chaining.
    fn submit(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        TABLE.next_batch();
        slf.get().core()?.submit().map_err(raise)?;
        Ok(slf)
    }

    /// The iovecs of completed requests, their `result` and `userdata` set: at most `max_results` (or `min_results`, or 1,
    /// if that is more). Waits for `min_results` of them, for `timeout` (seconds or a timedelta) or as long as it takes.
    #[pyo3(signature = (*, max_results = 0, min_results = 0, timeout = None))]
    fn wait(
        &self,
        py: Python<'_>,
        max_results: i32,
        min_results: i32,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Py<Iovec>>> {
        let core = self.core()?;
        let min = usize::try_from(min_results).unwrap_or(0);
        let max = usize::try_from(max_results).unwrap_or(0).max(min).max(1).min(core.entries() as usize);
        let until = timeout.map(|timeout| Ok::<_, PyErr>(Instant::now() + seconds(timeout)?)).transpose()?;
        let mut places = vec![MaybeUninit::<Cqe>::uninit(); max];
        TABLE.next_batch();
        loop {
            let left =
                until.map_or(SLICE, |until| until.saturating_duration_since(Instant::now()).min(SLICE));
            let there = lock(&self.completed).len();
            let places = &mut places[..max.saturating_sub(there)];
            let wanted = min.saturating_sub(there);
            let deadline = Some(Deadline::after(left));
            let count = py.detach(|| core.wait(wanted, places, deadline)).map_err(raise)?;
            let mut completed = lock(&self.completed);
            for place in &places[..count] {
                // SAFETY: `wait` wrote the first `count` places.
                completed.extend(self.complete(unsafe { place.assume_init() }));
            }
            if completed.len() >= min || until.is_some_and(|until| Instant::now() >= until) {
                let count = completed.len().min(max);
                return Ok(completed.drain(..count).collect());
            }
            drop(completed);
            py.check_signals()?;
        }
    }

    /// Gives the ring back. What is in flight is not waited for.
    fn destroy(&self, py: Python<'_>) {
        let core = lock(&self.core).take();
        py.detach(|| drop(core));
        let slots = std::mem::take(&mut *lock(&self.slots));
        let completed = std::mem::take(&mut *lock(&self.completed));
        drop((slots, completed));
    }

    /// Bytes of shared memory that a ring of `entries` takes.
    #[staticmethod]
    fn size_for_entries(entries: i32) -> PyResult<usize> {
        u32::try_from(entries)
            .ok()
            .and_then(Geometry::for_entries)
            .map(|geometry| geometry.file_len())
            .ok_or_else(|| {
                PyValueError::new_err(format!("a ring of {entries} entries: from 1 to some 22 million"))
            })
    }
}

impl Ioring {
    fn core(&self) -> PyResult<Arc<RingCore>> {
        lock(&self.core).clone().ok_or_else(|| closed("ring"))
    }

    /// The ring has checked the index.
    fn complete(&self, cqe: Cqe) -> Option<Py<Iovec>> {
        let slot = usize::try_from(cqe.index).ok()?;
        let (iov, userdata) = lock(&self.slots).get_mut(slot)?.take()?;
        iov.get().complete(cqe.result, userdata);
        Some(iov)
    }
}

/// A timeout, as a timedelta or a number of seconds.
fn seconds(timeout: &Bound<'_, PyAny>) -> PyResult<Duration> {
    if let Ok(timeout) = timeout.extract::<Duration>() {
        return Ok(timeout.min(LONGEST));
    }
    let seconds: f64 = timeout
        .extract()
        .map_err(|_| PyTypeError::new_err("a timeout is a number of seconds or a timedelta"))?;
    // 3FS takes a time that is over for "do not wait".
    Ok(Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST.as_secs_f64())).unwrap_or_default())
}
