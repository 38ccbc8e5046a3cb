//! Iovs: shared memory as a Python buffer and as a DLPack tensor.

use crate::batches::{Batch, Batches};
use crate::dlpack;
use crate::error::{closed, os_error, raise};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use rustix::io::Errno;
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use usrbio::{Buffer, Iov, Mount};

/// An Iov, kept by whoever may still touch it: the Python object, views, tensors, and requests in flight. The last one
/// unregisters and unmaps it.
#[derive(Debug)]
pub struct Memory {
    /// The shared memory.
    pub iov: Iov,
    /// The mount's device number: which mount it belongs to.
    pub device: u64,
    /// Batches that nobody waits for any more, since a signal ended the call, and that still read or write here.
    // Locked as in `PyIov`.
    unfinished: Mutex<Vec<(Weak<Batches>, Arc<Batch>)>>,
}

impl Memory {
    /// As requests name it.
    pub fn buffer(&self) -> Buffer {
        (&self.iov).into()
    }

    /// Batches that must be complete before the next one is submitted.
    pub fn unfinished(&self) -> MutexGuard<'_, Vec<(Weak<Batches>, Arc<Batch>)>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shared memory of one mount.
#[pyclass(name = "Iov", module = "usrbio._usrbio", subclass, frozen)]
pub struct PyIov {
    memory: Mutex<Option<Arc<Memory>>>,
}

impl PyIov {
    /// What requests and views hold on to.
    pub fn memory(&self) -> PyResult<Arc<Memory>> {
        self.lock().clone().ok_or_else(|| closed("Iov"))
    }

    // Only ever locked with the GIL held and for a moment: a fork cannot catch it locked.
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Memory>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyIov {
    #[new]
    fn new(py: Python<'_>, mount: PathBuf, device: u64, size: usize) -> PyResult<PyIov> {
        let mut iov = py
            .detach(|| Mount::at(mount).and_then(|mount| Iov::create(&mount, size, 0, -1)))
            .map_err(raise)?;
        // The daemon has it open. Without a name nothing is left behind, however this process ends.
        iov.unlink();
        Ok(PyIov { memory: Mutex::new(Some(Arc::new(Memory { iov, device, unfinished: Mutex::default() }))) })
    }

    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.memory()?.iov.id().to_string())
    }

    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    fn close(&self, py: Python<'_>) {
        let memory = self.lock().take();
        // Unregistering asks the daemon.
        py.detach(|| drop(memory));
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(self.memory()?.iov.len())
    }

    /// # Safety
    /// Python gives a `view` to fill in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill in"));
        }
        let memory = slf.get().memory()?;
        let len = ffi::Py_ssize_t::try_from(memory.iov.len())?;
        // SAFETY: `view` is Python's to be filled (caller). The memory is mapped and writable for `len` bytes, and
        // stays so until `__releasebuffer__`, since the view owns the reference put into `internal` below.
        unsafe {
            let rc = ffi::PyBuffer_FillInfo(view, slf.as_ptr(), memory.iov.as_ptr().cast(), len, 0, flags);
            if rc != 0 {
                return Err(PyErr::fetch(slf.py()));
            }
            (*view).internal = Arc::into_raw(memory).cast_mut().cast();
        }
        Ok(())
    }

    /// # Safety
    /// Python gives a `view` that `__getbuffer__` filled in, once.
    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: `__getbuffer__` put the reference there, and Python releases a view once.
        unsafe {
            let memory = std::mem::replace(&mut (*view).internal, std::ptr::null_mut());
            if !memory.is_null() {
                drop(Arc::from_raw(memory.cast_const().cast::<Memory>()));
            }
        }
    }

    /// A tensor of bytes on the CPU. `versioned`: as DLPack 1.0 and later have it.
    fn dlpack<'py>(&self, py: Python<'py>, versioned: bool) -> PyResult<Bound<'py, PyAny>> {
        let memory = self.memory()?;
        if dlpack::is_addressable(&memory) {
            return dlpack::capsule(py, memory, versioned);
        }
        Err(os_error(Errno::OVERFLOW.raw_os_error(), "the Iov is too large for a tensor"))
    }
}
