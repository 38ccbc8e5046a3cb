//! 3FS's own Python module, `hf3fs_py_usrbio`: one request a call. Contract section 14 says what it does; the module of
//! that name in `python/` gives these their names.

mod ioring;
mod iovec;

use crate::error::raise;
use crate::file::borrow;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::path::PathBuf;
use usrbio::fd::TABLE;
use usrbio::{Error, Mount, Registration, mount};

/// Adds all of it to the module.
pub fn add_to(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<iovec::Iovec>()?;
    m.add_class::<ioring::Ioring>()?;
    m.add_function(wrap_pyfunction!(register_fd, m)?)?;
    m.add_function(wrap_pyfunction!(deregister_fd, m)?)?;
    m.add_class::<Memory>()?;
    m.add_function(wrap_pyfunction!(register_memory, m)?)?;
    m.add_function(wrap_pyfunction!(reserve, m)?)?;
    m.add_function(wrap_pyfunction!(hardlink, m)?)?;
    m.add_function(wrap_pyfunction!(punch_hole, m)?)
}

/// Registers a file, so that requests may name it by its fd or by the handle that this answers, a negative number.
#[pyfunction]
#[pyo3(signature = (fd, flags = 0))]
fn register_fd(py: Python<'_>, fd: i32, flags: u64) -> PyResult<i32> {
    let _ = flags; // 3FS has no meaning for them.
    let open = borrow(&fd).ok_or_else(|| raise(Error::BadFd(fd)))?;
    py.detach(|| TABLE.register(open)).map_err(raise)
}

/// Ends a registration, by the fd (also after it was closed) or by the handle.
#[pyfunction]
fn deregister_fd(py: Python<'_>, fd: i32) {
    py.detach(|| TABLE.deregister(fd));
}

/// A registration of memory that the program made; it ends with this.
#[pyclass(name = "Memory", module = "usrbio._usrbio", frozen)]
struct Memory(Registration);

#[pymethods]
impl Memory {
    /// The link that shows it.
    #[getter]
    fn link(&self) -> PathBuf {
        self.0.link()
    }
}

/// Registers the file `path` in `/dev/shm` with the daemon of a mount, under a name of the form of 3FS.
#[pyfunction]
fn register_memory(py: Python<'_>, mount: PathBuf, name: &str, path: PathBuf) -> PyResult<Memory> {
    let mount = Mount::at(mount).map_err(raise)?;
    py.detach(|| {
        let made = Registration::new(&mount, name, &path)?;
        mount.keep_alive();
        Ok(Memory(made))
    })
    .map_err(raise)
}

/// Reserves the first `len` bytes of the shared memory behind `fd`. `path` is for messages.
#[pyfunction]
fn reserve(py: Python<'_>, fd: i32, path: PathBuf, len: u64) -> PyResult<()> {
    let open = borrow(&fd).ok_or_else(|| raise(Error::BadFd(fd)))?;
    py.detach(|| usrbio::shm::reserve(open, &path, len)).map_err(raise)
}

/// Links the file `target` as `link_name`, both on one mount.
#[pyfunction]
fn hardlink(py: Python<'_>, target: PathBuf, link_name: PathBuf) -> PyResult<()> {
    py.detach(|| mount::hardlink(&target, &link_name)).map_err(raise)
}

/// Frees the blocks of the byte ranges `start[i]` to `end[i]` (not included), at most 1000.
#[pyfunction]
#[pyo3(signature = (fd, start, end, flags = 0))]
fn punch_hole(py: Python<'_>, fd: i32, start: Vec<u64>, end: Vec<u64>, flags: u64) -> PyResult<()> {
    if start.len() != end.len() {
        let message = format!("{} starts and {} ends: give one end for each start", start.len(), end.len());
        return Err(PyValueError::new_err(message));
    }
    let open = borrow(&fd).ok_or_else(|| raise(Error::BadFd(fd)))?;
    let ranges: Vec<_> = start.into_iter().zip(end).map(|(start, end)| start..end).collect();
    py.detach(|| mount::punch_hole(open, ranges.into_iter(), flags)).map_err(raise)
}
