//! Rings: arrays in, one array out, and the GIL released in between.

use crate::batches::{Batch, Batches};
use crate::error::{closed, os_error, raise};
use crate::file::{PyFile, Registered};
use crate::ints::{Ints, LIMIT};
use crate::iov::{Memory, PyIov};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyType};
use rustix::io::Errno;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use usrbio::{FileId, Mount, Request, RingCore, RingOptions};

/// Longest wait before Python may handle a signal.
const SLICE: Duration = Duration::from_millis(100);
/// Longest wait without a word from the daemon before it is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(1);

/// Results (bytes moved or -errno) as an `array.array` of int64, and the first failed one or -1.
type Results<'py> = (Bound<'py, PyAny>, isize);

/// A ring of one mount.
#[pyclass(name = "Ring", module = "usrbio._usrbio", frozen)]
pub struct PyRing {
    batches: Mutex<Option<Arc<Batches>>>,
    device: u64,
    reads: bool,
}

/// Requests that were submitted together.
#[pyclass(name = "Batch", module = "usrbio._usrbio", frozen)]
pub struct PyBatch {
    /// Weak: a closed ring goes, whoever still has its batches. Python's Batch keeps the ring that is not closed.
    batches: Weak<Batches>,
    batch: Arc<Batch>,
}

/// What one call asks for, checked.
struct Job {
    requests: Vec<Request>,
    memory: Arc<Memory>,
    files: Vec<Arc<Registered>>,
}

#[pymethods]
impl PyRing {
    #[new]
    fn new(py: Python<'_>, mount: PathBuf, device: u64, depth: u32, reads: bool) -> PyResult<PyRing> {
        let options = RingOptions { for_read: reads, ..RingOptions::read(depth) };
        let core = py
            .detach(|| Mount::at(mount).and_then(|mount| RingCore::create(&mount, &options)))
            .map_err(raise)?;
        Ok(PyRing { batches: Mutex::new(Some(Arc::new(Batches::new(core)))), device, reads })
    }

    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.batches()?.core().id().to_string())
    }

    /// Waits for what is in flight, then unregisters the ring. In a forked child it only lets go of it.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let Some(batches) = self.lock().clone() else { return Ok(()) };
        let waited = if batches.core().check_usable().is_ok() {
            wait(py, &batches, || batches.is_idle(), None).map(|_| ())
        } else {
            Ok(())
        };
        drop(self.lock().take());
        py.detach(|| drop(batches));
        waited
    }

    /// Submits and waits.
    fn run<'py>(
        &self,
        py: Python<'py>,
        file: &Bound<'py, PyAny>,
        offsets: &Bound<'py, PyAny>,
        lengths: &Bound<'py, PyAny>,
        iov: &PyIov,
        iov_offsets: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Results<'py>> {
        let batches = self.batches()?;
        let job = self.job(file, offsets, lengths, iov, iov_offsets)?;
        wait_for_unfinished(py, &job.memory)?;
        let batch = batches.batch(job.requests, job.memory.buffer());
        let done = py.detach(|| {
            batches.submit(&batch, job.memory, job.files)?;
            batches.wait(|| batch.is_done(), SLICE)
        });
        let done = match done {
            Ok(false) => wait(py, &batches, || batch.is_done(), None),
            done => done.map_err(raise),
        };
        done.inspect_err(|_| batches.leave(&batch))?;
        results(py, &batch)
    }

    /// Submits.
    fn submit<'py>(
        &self,
        py: Python<'py>,
        file: &Bound<'py, PyAny>,
        offsets: &Bound<'py, PyAny>,
        lengths: &Bound<'py, PyAny>,
        iov: &PyIov,
        iov_offsets: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<PyBatch> {
        let batches = self.batches()?;
        let job = self.job(file, offsets, lengths, iov, iov_offsets)?;
        wait_for_unfinished(py, &job.memory)?;
        let batch = batches.batch(job.requests, job.memory.buffer());
        py.detach(|| batches.submit(&batch, job.memory, job.files)).map_err(raise)?;
        Ok(PyBatch { batches: Arc::downgrade(&batches), batch })
    }

    /// Does what `run` does, but for the ring: for the benchmark of what a call costs by itself.
    fn rehearse<'py>(
        &self,
        py: Python<'py>,
        file: &Bound<'py, PyAny>,
        offsets: &Bound<'py, PyAny>,
        lengths: &Bound<'py, PyAny>,
        iov: &PyIov,
        iov_offsets: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Results<'py>> {
        let batches = self.batches()?;
        let job = self.job(file, offsets, lengths, iov, iov_offsets)?;
        let batch = batches.batch(job.requests, job.memory.buffer());
        py.detach(|| batch.results().iter().for_each(|place| place.store(0, Ordering::Relaxed)));
        results(py, &batch)
    }

    /// Batches completed so far.
    fn completed(&self) -> PyResult<u64> {
        Ok(self.batches()?.completed())
    }

    /// Waits until more than `seen` batches are complete, or for about a tenth of a second; how many are.
    fn wait_completed(&self, py: Python<'_>, seen: u64) -> PyResult<u64> {
        let batches = self.batches()?;
        py.detach(|| batches.wait(|| batches.completed() > seen, SLICE)).map_err(raise)?;
        Ok(batches.completed())
    }

    /// Raises if the daemon is gone.
    fn check_served(&self, py: Python<'_>) -> PyResult<()> {
        let batches = self.batches()?;
        py.detach(|| batches.check_served()).map_err(raise)
    }
}

impl PyRing {
    fn batches(&self) -> PyResult<Arc<Batches>> {
        self.lock().clone().ok_or_else(|| closed("ring"))
    }

    // As in PyIov: locked for a moment, with the GIL held.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Batches>>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn job(
        &self,
        file: &Bound<'_, PyAny>,
        offsets: &Bound<'_, PyAny>,
        lengths: &Bound<'_, PyAny>,
        iov: &PyIov,
        iov_offsets: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Job> {
        let memory = iov.memory()?;
        if memory.device != self.device {
            return Err(PyValueError::new_err("the Iov belongs to another mount than the ring"));
        }
        let offsets = Ints::parse(offsets, "offsets")?;
        let lengths = Ints::parse(lengths, "lengths")?;
        let iov_offsets = iov_offsets.map(|obj| Ints::parse(obj, "iov_offsets")).transpose()?;
        let count = match (&offsets, &lengths) {
            (Ints::One(_), Ints::Many(_)) => return Err(different("lengths", lengths.len(), 1)),
            (_, Ints::Many(numbers)) if numbers.len() != offsets.len() => {
                return Err(different("lengths", numbers.len(), offsets.len()));
            }
            _ => offsets.len(),
        };
        if let Some(places) = iov_offsets.as_ref().filter(|places| places.len() != count) {
            return Err(different("iov_offsets", places.len(), count));
        }
        let files = self.files(file, count)?;
        let ids: Vec<FileId> = files.iter().map(|file| file.file.id()).collect();
        let next_file = usize::from(ids.len() > 1);
        let ((offsets, next_offset), (lengths, next_length)) = (offsets.strided(), lengths.strided());
        let buffer = memory.buffer();
        let mut requests = Vec::with_capacity(count);
        let mut packed = 0u64;
        for i in 0..count {
            let (file_offset, len) = (offsets[i * next_offset], lengths[i * next_length]);
            let iov_offset = iov_offsets.as_ref().map_or(packed, |places| places.strided().0[i]);
            if len == 0 || file_offset > LIMIT - len || buffer.check(iov_offset, len).is_err() {
                return Err(refused(i, file_offset, iov_offset, len, buffer.size, iov_offsets.is_none()));
            }
            packed = iov_offset + len;
            requests.push(Request { file: ids[i * next_file], file_offset, len, iov_offset, userdata: 0 });
        }
        Ok(Job { requests, memory, files })
    }

    /// The file of all requests, or of each.
    fn files(&self, file: &Bound<'_, PyAny>, count: usize) -> PyResult<Vec<Arc<Registered>>> {
        if let Ok(file) = file.cast::<PyFile>() {
            return Ok(vec![self.checked(file.get())?]);
        }
        let wrong = |kind: &Bound<'_, PyAny>| {
            let kind = kind.get_type().name().map_or_else(|_| "object".to_owned(), |n| n.to_string());
            PyTypeError::new_err(format!("file is a {kind}: give a usrbio.File, or one for each offset"))
        };
        let mut files = Vec::with_capacity(count);
        for item in file.try_iter().map_err(|_| wrong(file))? {
            let item = item?;
            files.push(self.checked(item.cast::<PyFile>().map_err(|_| wrong(&item))?.get())?);
        }
        if files.len() == count { Ok(files) } else { Err(different("file", files.len(), count)) }
    }

    fn checked(&self, file: &PyFile) -> PyResult<Arc<Registered>> {
        let file = file.registered()?;
        if file.device != self.device {
            return Err(PyValueError::new_err("the file is on another mount than the ring"));
        }
        if !file.file.id().access.allows(self.reads) {
            let (want, have) = if self.reads { ("reading", "writing") } else { ("writing", "reading") };
            let message = format!("the file is open for {have} only: open it for {want}");
            return Err(os_error(Errno::ACCESS.raw_os_error(), message));
        }
        Ok(file)
    }
}

#[pymethods]
impl PyBatch {
    fn __len__(&self) -> usize {
        self.batch.results().len()
    }

    /// Is it complete? Takes completions that are there.
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        if !self.batch.is_done() {
            let batches = self.batches()?;
            py.detach(|| batches.poll()).map_err(raise)?;
        }
        Ok(self.batch.is_done())
    }

    /// Waits for `timeout` seconds, or for as long as it takes; `None` if that was not enough.
    fn wait<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Option<Results<'py>>> {
        let timeout = timeout.map(|seconds| {
            Duration::try_from_secs_f64(seconds).map_err(|_| {
                PyValueError::new_err(format!(
                    "a timeout of {seconds} s: give 0 or more, or None to wait for ever"
                ))
            })
        });
        let timeout = timeout.transpose()?;
        if !self.batch.is_done() {
            let batches = self.batches()?;
            let done = wait(py, &batches, || self.batch.is_done(), timeout);
            // `ring.submit(...).wait()`: the batch goes with the exception.
            if !done.inspect_err(|_| batches.leave(&self.batch))? {
                return Ok(None);
            }
        }
        results(py, &self.batch).map(Some)
    }
}

impl PyBatch {
    fn batches(&self) -> PyResult<Arc<Batches>> {
        self.batches.upgrade().ok_or_else(|| closed("ring"))
    }
}

/// Waits in slices, between which Python handles signals. Without a timeout nothing but the daemon's end stops it.
fn wait(
    py: Python<'_>,
    batches: &Batches,
    is_over: impl Fn() -> bool + Sync,
    timeout: Option<Duration>,
) -> PyResult<bool> {
    let start = Instant::now();
    let mut heard = (start, batches.completed());
    loop {
        let left = timeout.map_or(SLICE, |timeout| timeout.saturating_sub(start.elapsed()).min(SLICE));
        if py.detach(|| batches.wait(&is_over, left)).map_err(raise)? {
            return Ok(true);
        }
        py.check_signals()?;
        if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
            return Ok(false);
        }
        if batches.completed() != heard.1 {
            heard = (Instant::now(), batches.completed());
        } else if timeout.is_none() && heard.0.elapsed() > SILENCE {
            // Asking may take for ever itself, which a caller with a timeout does not want.
            py.detach(|| batches.check_served()).map_err(raise)?;
            heard.0 = Instant::now();
        }
    }
}

/// Waits until the batches that earlier calls left in flight are out of this memory.
fn wait_for_unfinished(py: Python<'_>, memory: &Memory) -> PyResult<()> {
    loop {
        let Some((batches, batch)) = memory.unfinished().last().cloned() else { return Ok(()) };
        // A ring that is closed or beyond use, or a forked child's parent's, tells of no completion.
        if let Some(batches) = batches.upgrade().filter(|batches| batches.core().check_usable().is_ok()) {
            wait(py, &batches, || batch.is_done(), None)?;
        }
        memory.unfinished().retain(|(_, known)| !Arc::ptr_eq(known, &batch));
    }
}

fn results<'py>(py: Python<'py>, batch: &Batch) -> PyResult<Results<'py>> {
    static ARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let mut failed = -1;
    let places = batch.results();
    let bytes = PyBytes::new_with(py, size_of_val(places), |bytes| {
        for (i, (place, out)) in places.iter().zip(bytes.chunks_exact_mut(size_of::<i64>())).enumerate() {
            let result = place.load(Ordering::Relaxed);
            if result < 0 && failed < 0 {
                failed = i as isize;
            }
            out.copy_from_slice(&result.to_ne_bytes());
        }
        Ok(())
    })?;
    let array = ARRAY.import(py, "array", "array")?.call1(("q", bytes))?;
    Ok((array, failed))
}

#[cold]
fn different(name: &str, has: usize, wants: usize) -> PyErr {
    PyValueError::new_err(format!("{name} has {has} elements for {wants} offsets: give one for each"))
}

/// Why a request cannot be made.
#[cold]
fn refused(index: usize, file_offset: u64, iov_offset: u64, len: u64, size: u64, packed: bool) -> PyErr {
    let end = |offset: u64| u128::from(offset) + u128::from(len);
    if len == 0 {
        return PyValueError::new_err(format!("request {index} is for 0 bytes: give lengths from 1 on"));
    }
    if file_offset > LIMIT - len {
        return PyOverflowError::new_err(format!(
            "request {index} is for bytes {file_offset} to {} of the file: the last byte of a file is at 2**63 - 1",
            end(file_offset)
        ));
    }
    let hint = if packed { " (one after another, since iov_offsets is not given)" } else { "" };
    PyValueError::new_err(format!(
        "request {index} is for bytes {iov_offset} to {} of an Iov of {size} bytes{hint}: give a larger Iov or smaller \
         requests",
        end(iov_offset)
    ))
}
