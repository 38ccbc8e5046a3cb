//! DLPack, the exchange of tensors between frameworks without a copy: <https://dmlc.github.io/dlpack/latest/>.
//!
//! An Iov is shown as a one-dimensional tensor of bytes on the CPU.

use crate::iov::Memory;
use pyo3::ffi;
use pyo3::prelude::*;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

const CPU: i32 = 1;
const UINT: u8 = 1;

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Plain {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Plain)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: Tensor,
}

/// What a tensor lives in: what the consumer sees first, then what keeps it valid.
#[repr(C)]
struct Owned<M> {
    managed: M,
    shape: [i64; 1],
    stride: [i64; 1],
    _memory: Arc<Memory>,
}

/// What differs between the two structs.
trait Managed: Sized {
    const NAME: &'static CStr;
    fn new(tensor: Tensor) -> Self;
    fn tensor(&mut self) -> &mut Tensor;
    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Self)>;
}

impl Managed for Plain {
    const NAME: &'static CStr = c"dltensor";

    fn new(tensor: Tensor) -> Plain {
        Plain { tensor, context: std::ptr::null_mut(), deleter: Some(delete::<Plain>) }
    }

    fn tensor(&mut self) -> &mut Tensor {
        &mut self.tensor
    }

    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Plain)> {
        self.deleter
    }
}

impl Managed for Versioned {
    const NAME: &'static CStr = c"dltensor_versioned";

    fn new(tensor: Tensor) -> Versioned {
        let (context, deleter) = (std::ptr::null_mut(), Some(delete::<Versioned> as _));
        // Flags: neither read-only nor a copy.
        Versioned { major: 1, minor: 0, context, deleter, flags: 0, tensor }
    }

    fn tensor(&mut self) -> &mut Tensor {
        &mut self.tensor
    }

    fn deleter(&self) -> Option<unsafe extern "C" fn(*mut Versioned)> {
        self.deleter
    }
}

/// Can its length be a tensor's?
pub fn is_addressable(memory: &Memory) -> bool {
    i64::try_from(memory.iov.len()).is_ok()
}

/// A capsule with a tensor of all bytes, which keeps the memory until the consumer is done with it.
pub fn capsule(py: Python<'_>, memory: Arc<Memory>, versioned: bool) -> PyResult<Bound<'_, PyAny>> {
    if versioned { wrap::<Versioned>(py, memory) } else { wrap::<Plain>(py, memory) }
}

fn wrap<M: Managed>(py: Python<'_>, memory: Arc<Memory>) -> PyResult<Bound<'_, PyAny>> {
    let tensor = Tensor {
        data: memory.iov.as_ptr().cast(),
        device_type: CPU,
        device_id: 0,
        ndim: 1,
        code: UINT,
        bits: 8,
        lanes: 1,
        shape: std::ptr::null_mut(),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    };
    let len = memory.iov.len() as i64;
    let owned = Owned { managed: M::new(tensor), shape: [len], stride: [1], _memory: memory };
    let owned = Box::leak(Box::new(owned));
    let tensor = owned.managed.tensor();
    (tensor.shape, tensor.strides) = (owned.shape.as_mut_ptr(), owned.stride.as_mut_ptr());
    let owned = std::ptr::from_mut(owned);
    // SAFETY: the name is static and the pointer is not NULL.
    let capsule = unsafe { ffi::PyCapsule_New(owned.cast(), M::NAME.as_ptr(), Some(forget::<M>)) };
    if capsule.is_null() {
        // SAFETY: leaked above, and nobody else has it.
        drop(unsafe { Box::from_raw(owned) });
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a new reference that is ours.
    Ok(unsafe { Bound::from_owned_ptr(py, capsule) })
}

/// The consumer is done. It may be any thread, with or without the GIL: only Rust objects are dropped.
unsafe extern "C" fn delete<M>(managed: *mut M) {
    // SAFETY: `managed` is the first field of the `Owned` that `wrap` leaked, and consumers call this once.
    drop(unsafe { Box::from_raw(managed.cast::<Owned<M>>()) });
}

/// The capsule goes. A consumer that took the tensor has renamed it.
unsafe extern "C" fn forget<M: Managed>(capsule: *mut ffi::PyObject) {
    let name: *const c_char = M::NAME.as_ptr();
    // SAFETY: Python calls this with the capsule that `wrap` made. With the name it was made with, it still owns the
    // tensor, which is then valid and whose deleter nobody has called.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, name) == 1 {
            let managed = ffi::PyCapsule_GetPointer(capsule, name).cast::<M>();
            if let Some(delete) = (*managed).deleter() {
                delete(managed);
            }
        }
    }
}
