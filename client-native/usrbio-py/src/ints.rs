//! Arguments that are integers or arrays of them: any buffer of integers (NumPy, array.array, a tensor on the CPU), any
//! iterable of ints, or one number.

use pyo3::buffer::{Element, PyUntypedBuffer};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList, PyTuple};

/// Offsets and lengths are below this, as in pread(2).
pub const LIMIT: u64 = i64::MAX as u64;

/// One number, or one for each request.
pub enum Ints {
    /// One.
    One(u64),
    /// An array.
    Many(Vec<u64>),
}

impl Ints {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Ints::One(_) => 1,
            Ints::Many(numbers) => numbers.len(),
        }
    }

    /// The number of request `i`.
    #[inline]
    pub fn at(&self, i: usize) -> u64 {
        match self {
            Ints::One(number) => *number,
            Ints::Many(numbers) => numbers[i],
        }
    }

    /// The argument called `name`.
    pub fn parse(obj: &Bound<'_, PyAny>, name: &str) -> PyResult<Ints> {
        if obj.is_instance_of::<PyInt>() {
            return number(obj, name, None).map(Ints::One);
        }
        // Asking these for a buffer would cost an exception.
        if obj.is_instance_of::<PyList>() || obj.is_instance_of::<PyTuple>() {
            return iterable(obj, name).map(Ints::Many);
        }
        match PyUntypedBuffer::get(obj) {
            // A NumPy scalar.
            Ok(buffer) if buffer.dimensions() == 0 => number(obj, name, None).map(Ints::One),
            Ok(buffer) => of_buffer(obj.py(), &buffer, name).map(Ints::Many),
            Err(_) => iterable(obj, name).map(Ints::Many),
        }
    }
}

fn of_buffer(py: Python<'_>, buffer: &PyUntypedBuffer, name: &str) -> PyResult<Vec<u64>> {
    if buffer.dimensions() != 1 {
        let message = format!("{name} has {} dimensions: give an array of one", buffer.dimensions());
        return Err(PyValueError::new_err(message));
    }
    macro_rules! first_match {
        ($($t:ty),*) => {
            $(if let Some(numbers) = typed::<$t>(py, buffer, name) { return numbers; })*
        };
    }
    first_match!(i64, u64, i32, u32, i16, u16, i8, u8);
    let format = buffer.format().to_string_lossy();
    Err(PyTypeError::new_err(format!(
        "{name} has elements of format '{format}': give integers, such as int64"
    )))
}

/// The numbers, if they are of type `T`.
fn typed<T>(py: Python<'_>, buffer: &PyUntypedBuffer, name: &str) -> Option<PyResult<Vec<u64>>>
where
    T: Element + TryInto<u64> + std::fmt::Display,
{
    let buffer = buffer.as_typed::<T>().ok()?;
    Some(match buffer.as_slice_ptr() {
        Some(cells) => {
            // SAFETY: `buffer` keeps the elements there. Another thread may write one meanwhile, which is why each is
            // read once, as volatile, and judged after.
            let at = |i| unsafe { cells.cast::<T>().add(i).read_volatile() };
            checked((0..cells.len()).map(at), name)
        }
        // With gaps: a column of a matrix, a reversed array.
        None => buffer.to_vec(py).and_then(|numbers| checked(numbers.into_iter(), name)),
    })
}

#[inline]
fn checked<T>(numbers: impl ExactSizeIterator<Item = T>, name: &str) -> PyResult<Vec<u64>>
where
    T: Copy + TryInto<u64> + std::fmt::Display,
{
    let mut out = Vec::with_capacity(numbers.len());
    for (i, number) in numbers.enumerate() {
        match number.try_into() {
            Ok(n) if n <= LIMIT => out.push(n),
            Ok(_) => return Err(too_large(name, Some(i), number)),
            Err(_) => return Err(negative(name, Some(i), number)),
        }
    }
    Ok(out)
}

fn iterable(obj: &Bound<'_, PyAny>, name: &str) -> PyResult<Vec<u64>> {
    let items = obj.try_iter().map_err(|_| {
        let kind = obj.get_type().name().map_or_else(|_| "object".to_owned(), |n| n.to_string());
        PyTypeError::new_err(format!("{name} is a {kind}: give integers, as an array or any sequence"))
    })?;
    items.enumerate().map(|(i, item)| number(&item?, name, Some(i))).collect()
}

fn number(obj: &Bound<'_, PyAny>, name: &str, index: Option<usize>) -> PyResult<u64> {
    match obj.extract::<i64>() {
        Ok(number) => u64::try_from(number).map_err(|_| negative(name, index, number)),
        Err(error) if error.is_instance_of::<PyOverflowError>(obj.py()) => {
            Err(if obj.lt(0)? { negative(name, index, obj) } else { too_large(name, index, obj) })
        }
        Err(_) => {
            let kind = obj.get_type().name()?;
            Err(PyTypeError::new_err(format!("{} is a {kind}: give an integer", place(name, index))))
        }
    }
}

fn place(name: &str, index: Option<usize>) -> String {
    index.map_or_else(|| name.to_owned(), |i| format!("{name}[{i}]"))
}

#[cold]
fn negative(name: &str, index: Option<usize>, number: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("{} is {number}: it must not be negative", place(name, index)))
}

#[cold]
fn too_large(name: &str, index: Option<usize>, number: impl std::fmt::Display) -> PyErr {
    PyOverflowError::new_err(format!("{} is {number}: the largest is 2**63 - 1", place(name, index)))
}
