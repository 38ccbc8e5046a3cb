//! Files that requests may name.

use crate::error::{closed, os_error, raise};
use pyo3::prelude::*;
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use usrbio::{Error, RegisteredFile};

/// A registered file, kept by the Python object and by requests in flight.
#[derive(Debug)]
pub struct Registered {
    /// Keeps the inode known to the daemon.
    pub file: RegisteredFile,
    /// Which mount it is on.
    pub device: u64,
}

/// A file of one mount.
#[pyclass(name = "File", module = "usrbio._usrbio", subclass, frozen)]
pub struct PyFile {
    file: Mutex<Option<Arc<Registered>>>,
}

impl PyFile {
    /// What requests hold on to.
    pub fn registered(&self) -> PyResult<Arc<Registered>> {
        self.lock().clone().ok_or_else(|| closed("file"))
    }

    // As in PyIov: locked for a moment, with the GIL held.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Registered>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An fd that Python names; -1 would be no fd to Rust.
pub fn borrow(fd: &i32) -> Option<BorrowedFd<'_>> {
    // SAFETY: not negative. A number that is not open, or closed meanwhile, gives EBADF from every system call.
    (*fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(*fd) })
}

#[pymethods]
impl PyFile {
    #[new]
    fn new(py: Python<'_>, fd: i32, name: &str) -> PyResult<PyFile> {
        let open = borrow(&fd).ok_or_else(|| raise(Error::BadFd(fd)))?;
        let device =
            rustix::fs::fstat(open).map_err(|e| os_error(e.raw_os_error(), format!("{name}: {e}")))?;
        let file = py.detach(|| RegisteredFile::new(open)).map_err(|error| match error {
            Error::NotOn3fs(_) => {
                let message = format!("{name} is on no 3FS mount: is the path below the mount point?");
                os_error(Errno::NODEV.raw_os_error(), message)
            }
            error => raise(error),
        })?;
        Ok(PyFile { file: Mutex::new(Some(Arc::new(Registered { file, device: device.st_dev }))) })
    }

    /// Which mount it is on, as `st_dev` has it.
    #[getter]
    fn device(&self) -> PyResult<u64> {
        Ok(self.registered()?.device)
    }

    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    /// The fd that keeps the file known to the daemon. It is this object's: do not close it.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.registered()?.file.as_fd().as_raw_fd())
    }

    fn close(&self, py: Python<'_>) {
        let file = self.lock().take();
        // The last descriptor of a file closes it at the daemon.
        py.detach(|| drop(file));
    }
}

/// The mount point of the 3FS mount that holds `path`.
#[pyfunction]
pub fn mount_point(py: Python<'_>, path: PathBuf) -> PyResult<PathBuf> {
    py.detach(|| usrbio::mount::mount_point(&path)).map_err(raise)
}
