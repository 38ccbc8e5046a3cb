//! Arguments that are integers or arrays of them: any buffer of integers (NumPy, array.array, a tensor on the CPU), any
//! iterable of ints, or one number.

use pyo3::buffer::{Element, PyUntypedBuffer};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::intern;
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

    /// The numbers, and how far the next request's is from one's: 0 if all share one.
    pub fn strided(&self) -> (&[u64], usize) {
        match self {
            Ints::One(number) => (std::slice::from_ref(number), 0),
            Ints::Many(numbers) => (numbers, 1),
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
            Ok(buffer) if buffer.dimensions() > 0 => of_buffer(obj.py(), &buffer, name).map(Ints::Many),
            // A NumPy scalar, or an array without dimensions.
            _ if obj.hasattr(intern!(obj.py(), "__index__"))? => number(obj, name, None).map(Ints::One),
            _ => iterable(obj, name).map(Ints::Many),
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
            $(if let Some(numbers) = typed::<$t>(py, buffer, name, |number| number as u64) { return numbers; })*
        };
    }
    first_match!(i64, u64, i32, u32, i16, u16, i8, u8);
    let format = buffer.format().to_string_lossy();
    Err(PyTypeError::new_err(format!(
        "{name} has elements of format '{format}': give integers, such as int64"
    )))
}

/// The numbers, if they are of type `T`. `as u64` of `extend` must extend the sign: a negative number is then above LIMIT.
fn typed<T>(
    py: Python<'_>,
    buffer: &PyUntypedBuffer,
    name: &str,
    extend: impl Fn(T) -> u64,
) -> Option<PyResult<Vec<u64>>>
where
    T: Element + Copy + Into<i128>,
{
    let buffer = buffer.as_typed::<T>().ok()?;
    let numbers = match buffer.to_vec(py) {
        Ok(numbers) => numbers,
        Err(error) => return Some(Err(error)),
    };
    let wide: Vec<u64> = numbers.iter().map(|number| extend(*number)).collect();
    // One look at all of them together: this is on the path of every call.
    let all_bits = wide.iter().fold(0, |bits, number| bits | number);
    if all_bits <= LIMIT {
        return Some(Ok(wide));
    }
    let wrong = wide.iter().position(|number| *number > LIMIT).unwrap_or(0);
    let number: i128 = numbers[wrong].into();
    Some(Err(if number < 0 {
        negative(name, Some(wrong), number)
    } else {
        too_large(name, Some(wrong), number)
    }))
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
