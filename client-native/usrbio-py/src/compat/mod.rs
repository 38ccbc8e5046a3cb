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
use usrbio::{Error, Mount, mount};

/// Adds all of it to the module.
pub fn add_to(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<iovec::Iovec>()?;
    m.add_class::<ioring::Ioring>()?;
    m.add_function(wrap_pyfunction!(register_fd, m)?)?;
    m.add_function(wrap_pyfunction!(deregister_fd, m)?)?;
    m.add_function(wrap_pyfunction!(keep_alive, m)?)?;
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

/// Tells the daemon of a mount that this process lives, for memory that it registers by hand.
#[pyfunction]
fn keep_alive(py: Python<'_>, mount: PathBuf) -> PyResult<()> {
    let mount = Mount::at(mount).map_err(raise)?;
    py.detach(|| mount.keep_alive());
    Ok(())
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
