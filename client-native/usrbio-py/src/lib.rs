//! The native part of the Python package `usrbio`: it converts arguments and results, and waits without the GIL. What
//! users see is Python, in `python/usrbio`; `_usrbio.pyi` there describes this module.

mod batches;
mod compat;
mod dlpack;
mod error;
mod file;
mod ints;
mod iov;
mod ring;

use pyo3::prelude::*;

#[pymodule]
fn _usrbio(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<iov::PyIov>()?;
    m.add_class::<file::PyFile>()?;
    m.add_class::<ring::PyRing>()?;
    m.add_class::<ring::PyBatch>()?;
    m.add_function(wrap_pyfunction!(file::mount_point, m)?)?;
    compat::add_to(m)
}
