//! `iovec`: a part of a buffer that is registered under a UUID.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyIndexError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PySlice;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};
use usrbio::Buffer;
use uuid::Uuid;

/// The registered buffer that slices share.
struct Base {
    /// Keeps the buffer's owner from freeing it, also while requests are in flight.
    bytes: PyUntypedBuffer,
    buffer: Buffer,
    /// Where else in this process the same memory is mapped, if anywhere.
    alias: Option<usize>,
    /// Whatever ends the registration; it goes with the last slice.
    _registration: Option<Py<PyAny>>,
}

impl Base {
    /// Where the byte at `address` is in the buffer.
    fn offset_of(&self, address: usize) -> Option<usize> {
        let len = self.bytes.len_bytes();
        let starts = std::iter::once(self.bytes.buf_ptr().addr()).chain(self.alias);
        starts.filter_map(|start| address.checked_sub(start)).find(|offset| *offset <= len)
    }
}

/// What the last completion left.
#[derive(Default)]
struct Outcome {
    result: i64,
    userdata: Option<Py<PyAny>>,
}

/// A buffer that the daemon knows, or a slice of one.
#[pyclass(name = "iovec", module = "hf3fs_py_usrbio", frozen)]
pub struct Iovec {
    base: Arc<Base>,
    offset: usize,
    len: usize,
    outcome: Mutex<Outcome>,
}

impl Iovec {
    /// As requests name the whole buffer.
    pub fn buffer(&self) -> Buffer {
        self.base.buffer
    }

    /// Which bytes of it this is: first, count.
    pub fn range(&self) -> (u64, u64) {
        (self.offset as u64, self.len as u64)
    }

    /// Notes what became of a request.
    pub fn complete(&self, result: i64, userdata: Option<Py<PyAny>>) {
        let before = std::mem::replace(&mut *self.lock(), Outcome { result, userdata });
        // Dropping it may run Python code, which may ask for the outcome.
        drop(before);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, offset: usize, len: usize) -> Iovec {
        Iovec { base: self.base.clone(), offset, len, outcome: Mutex::default() }
    }
}

#[pymethods]
impl Iovec {
    /// `base` must be the start of shared memory that is registered as `id`. `registration` goes with the last slice.
    /// `alias` is another mapping of the memory, by which `slice_by` knows views.
    #[new]
    #[pyo3(signature = (base, id, hf3fs_mount_point, block_size = 0, numa = -1, *, registration = None, alias = None))]
    fn new(
        base: &Bound<'_, PyAny>,
        id: &str,
        hf3fs_mount_point: &str,
        block_size: usize,
        numa: i32,
        registration: Option<Py<PyAny>>,
        alias: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Iovec> {
        // The daemon knows the mount and the blocks from the registration; the memory lies where its maker put it.
        let _ = (hf3fs_mount_point, block_size, numa);
        let bytes = PyUntypedBuffer::get(base)?;
        if bytes.readonly() || !bytes.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer of an iovec must be writable and without gaps"));
        }
        let id =
            Uuid::parse_str(id).map_err(|e| PyValueError::new_err(format!("id '{id}' is no UUID: {e}")))?;
        let len = bytes.len_bytes();
        let buffer = Buffer { id: id.into_bytes(), size: len as u64 };
        // Its address alone: who closes it is free to.
        let alias =
            alias.map(|alias| PyUntypedBuffer::get(alias).map(|view| view.buf_ptr().addr())).transpose()?;
        let base = Arc::new(Base { bytes, buffer, alias, _registration: registration });
        Ok(Iovec { base, offset: 0, len, outcome: Mutex::default() })
    }

    /// Bytes moved by the last request on it, or -errno.
    #[getter]
    fn result(&self) -> i64 {
        self.lock().result
    }

    /// Where in the registered buffer it starts.
    #[getter]
    fn base_off(&self) -> usize {
        self.offset
    }

    /// What was given to `prepare` with the last request on it.
    #[getter]
    fn userdata(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.lock().userdata.as_ref().map(|userdata| userdata.clone_ref(py))
    }

    fn __len__(&self) -> usize {
        self.len
    }

    fn __getitem__(&self, index: &Bound<'_, PyAny>) -> PyResult<Iovec> {
        let slice = index
            .cast::<PySlice>()
            .map_err(|_| PyTypeError::new_err("an iovec takes slices only, such as iov[0:4096]"))?;
        let range = slice.indices(isize::try_from(self.len)?)?;
        if range.step != 1 {
            return Err(PyValueError::new_err(format!(
                "a slice of step {}: an iovec takes step 1 only",
                range.step
            )));
        }
        Ok(self.part(self.offset + range.start.unsigned_abs(), range.slicelength))
    }

    /// The part that `buf`, a view of the same memory such as a NumPy array, covers.
    fn slice_by(&self, buf: &Bound<'_, PyAny>) -> PyResult<Iovec> {
        let view = PyUntypedBuffer::get(buf)?;
        let inside = |offset: &usize| {
            let end = offset.checked_add(view.len_bytes());
            *offset >= self.offset && end.is_some_and(|end| end <= self.offset + self.len)
        };
        let offset = self.base.offset_of(view.buf_ptr().addr()).filter(inside);
        match offset.filter(|_| view.is_c_contiguous()) {
            Some(offset) => Ok(self.part(offset, view.len_bytes())),
            None => Err(PyIndexError::new_err("the buffer is not inside the iovec, or has gaps")),
        }
    }

    /// # Safety
    /// Python gives a `view` to fill in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill in"));
        }
        let this = slf.get();
        let len = ffi::Py_ssize_t::try_from(this.len)?;
        // SAFETY: inside the base buffer, which was writable and is held by `this`, which the view holds.
        let rc = unsafe {
            let start = this.base.bytes.buf_ptr().cast::<u8>().add(this.offset);
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start.cast(), len, 0, flags)
        };
        if rc == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
