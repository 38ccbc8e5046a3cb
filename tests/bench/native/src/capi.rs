//! The C functions of `libusrbio.so` that the benchmark calls, bound at run time as a C program would call them.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use anyhow::{Context, Result};
use libloading::Library;

/// `struct hf3fs_iov`.
#[repr(C)]
pub struct Iov {
    pub base: *mut u8,
    iovh: *mut c_void,
    id: [u8; 16],
    mount_point: [c_char; 256],
    pub size: usize,
    block_size: usize,
    numa: c_int,
}

/// `struct hf3fs_ior`.
#[repr(C)]
pub struct Ior {
    iov: Iov,
    iorh: *mut c_void,
    mount_point: [c_char; 256],
    for_read: bool,
    io_depth: c_int,
    priority: c_int,
    timeout: c_int,
    flags: u64,
}

/// `struct hf3fs_cqe`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cqe {
    index: i32,
    reserved: i32,
    pub result: i64,
    pub userdata: *const c_void,
}

impl Cqe {
    /// Room for a completion.
    pub const EMPTY: Self = Self { index: 0, reserved: 0, result: 0, userdata: std::ptr::null() };
}

const _: () = assert!(size_of::<Iov>() == 312 && size_of::<Ior>() == 600 && size_of::<Cqe>() == 24);

type IovCreate = unsafe extern "C" fn(*mut Iov, *const c_char, usize, usize, c_int) -> c_int;
type IorCreate = unsafe extern "C" fn(*mut Ior, *const c_char, c_int, bool, c_int, c_int) -> c_int;
type PrepIo = unsafe extern "C" fn(
    *const Ior,
    *const Iov,
    bool,
    *mut c_void,
    c_int,
    usize,
    u64,
    *const c_void,
) -> c_int;
type WaitForIos = unsafe extern "C" fn(*const Ior, *mut Cqe, c_int, c_int, *const libc::timespec) -> c_int;

/// The functions, by their names without `hf3fs_`.
pub struct Capi {
    pub iovcreate: IovCreate,
    pub iovunlink: unsafe extern "C" fn(*mut Iov),
    pub iovdestroy: unsafe extern "C" fn(*mut Iov),
    pub iorcreate: IorCreate,
    pub iordestroy: unsafe extern "C" fn(*mut Ior),
    pub reg_fd: unsafe extern "C" fn(c_int, u64) -> c_int,
    pub dereg_fd: unsafe extern "C" fn(c_int),
    pub prep_io: PrepIo,
    pub submit_ios: unsafe extern "C" fn(*const Ior) -> c_int,
    pub wait_for_ios: WaitForIos,
    // Last: the code behind the pointers above must stay mapped.
    _library: Library,
}

impl Capi {
    /// Loads the library at `path`.
    pub fn load(path: &Path) -> Result<Self> {
        // SAFETY: the library's constructors do nothing but set up its own state (contract section 2.2).
        let library =
            unsafe { Library::new(path) }.with_context(|| format!("cannot load {}", path.display()))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the symbol has the signature of contract section 2.2, which the field's type states, and
                // the library stays loaded for as long as the copied pointer.
                *unsafe { library.get($name.as_bytes()) }
                    .with_context(|| format!("{} has no {}", path.display(), $name))?
            };
        }
        Ok(Self {
            iovcreate: function!("hf3fs_iovcreate"),
            iovunlink: function!("hf3fs_iovunlink"),
            iovdestroy: function!("hf3fs_iovdestroy"),
            iorcreate: function!("hf3fs_iorcreate"),
            iordestroy: function!("hf3fs_iordestroy"),
            reg_fd: function!("hf3fs_reg_fd"),
            dereg_fd: function!("hf3fs_dereg_fd"),
            prep_io: function!("hf3fs_prep_io"),
            submit_ios: function!("hf3fs_submit_ios"),
            wait_for_ios: function!("hf3fs_wait_for_ios"),
            _library: library,
        })
    }
}
