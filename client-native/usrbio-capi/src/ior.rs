//! `hf3fs_ior*`, `hf3fs_prep_io`, `hf3fs_submit_ios`, `hf3fs_wait_for_ios`: rings.

use crate::boundary::{errno, guard, mount, mount_field, null};
use crate::iov::CIov;
use std::ffi::{c_char, c_int, c_void};
use std::mem::{MaybeUninit, offset_of};
use std::ptr;
use usrbio::fd::TABLE;
use usrbio::{
    Buffer, Cqe, Deadline, Error, Mount, PrepError, Priority, Request, RingCore, RingFlags, RingOptions,
};

/// `struct hf3fs_ior`.
#[derive(Debug)]
#[repr(C)]
pub struct CIor {
    /// The ring's own memory.
    pub iov: CIov,
    /// A boxed [`RingCore`]; NULL once destroyed.
    pub iorh: *mut c_void,
    /// NUL-terminated.
    pub mount_point: [c_char; 256],
    /// For reads or for writes.
    pub for_read: bool,
    /// As passed.
    pub io_depth: c_int,
    /// As passed.
    pub priority: c_int,
    /// As passed, in ms.
    pub timeout: c_int,
    /// As passed.
    pub flags: u64,
}

const _: () = assert!(size_of::<CIor>() == 600 && align_of::<CIor>() == 8);
const _: () = assert!(offset_of!(CIor, iorh) == 312 && offset_of!(CIor, mount_point) == 320);
const _: () = assert!(offset_of!(CIor, for_read) == 576 && offset_of!(CIor, io_depth) == 580);
const _: () = assert!(offset_of!(CIor, priority) == 584 && offset_of!(CIor, timeout) == 588);
const _: () = assert!(offset_of!(CIor, flags) == 592);
// `struct hf3fs_cqe` is the CQE of the wire protocol.
const _: () = assert!(size_of::<Cqe>() == 24 && align_of::<Cqe>() == 8);
const _: () = assert!(offset_of!(Cqe, result) == 8 && offset_of!(Cqe, userdata) == 16);

/// What the four creating functions take between them.
struct Wanted {
    entries: c_int,
    for_read: bool,
    io_depth: c_int,
    priority: c_int,
    timeout: c_int,
    numa: c_int,
    flags: u64,
}

impl Wanted {
    fn options(&self) -> Result<RingOptions, Error> {
        let not_negative = |what: &str, value: c_int| {
            u32::try_from(value).map_err(|_| Error::Invalid(format!("{what} is {value}")))
        };
        Ok(RingOptions {
            entries: not_negative("the number of entries", self.entries)?,
            for_read: self.for_read,
            io_depth: self.io_depth,
            priority: Priority::from_c(self.priority),
            timeout_ms: not_negative("the timeout", self.timeout)?,
            flags: RingFlags(self.flags),
            numa: self.numa,
        })
    }

    fn described(&self, ring: RingCore, mount: &Mount) -> CIor {
        let (base, size) = ring.memory();
        let mount_point = mount_field(mount);
        CIor {
            iov: CIov {
                base,
                // The ring owns its memory: there is nothing for hf3fs_iovdestroy.
                iovh: ptr::null_mut(),
                id: ring.id().into_bytes(),
                mount_point,
                size,
                block_size: 0,
                numa: self.numa,
            },
            iorh: Box::into_raw(Box::new(ring)).cast(),
            mount_point,
            for_read: self.for_read,
            io_depth: self.io_depth,
            priority: self.priority,
            timeout: self.timeout,
            flags: self.flags,
        }
    }
}

/// # Safety
/// `ior` must be NULL or writable; `mount_point` NULL or NUL-terminated.
unsafe fn create(
    function: &'static str,
    ior: *mut CIor,
    mount_point: *const c_char,
    wanted: &Wanted,
) -> c_int {
    -errno(function, || {
        if ior.is_null() {
            return Err(null("ior"));
        }
        // SAFETY: not NULL, so writable (caller). A struct whose creation fails can still be destroyed.
        unsafe { (&raw mut (*ior).iorh).write(ptr::null_mut()) };
        // SAFETY: as the caller promised.
        let mount = unsafe { mount(mount_point) }?;
        if mount.point().as_os_str().is_empty() {
            return Err(Error::Invalid("the mount point is empty".to_owned()));
        }
        let ring = RingCore::create(&mount, &wanted.options()?)?;
        // SAFETY: not NULL, so writable (caller).
        unsafe { ior.write(wanted.described(ring, &mount)) };
        Ok(())
    })
}

/// Bytes of a ring's shared memory; 0 for a negative number.
#[unsafe(no_mangle)]
pub extern "C" fn hf3fs_ior_size(entries: c_int) -> usize {
    // 3FS answers for 0 entries too, though no such ring can be made.
    usize::try_from(entries).map_or(0, |entries| 4144 + 96 * (entries + 1))
}

/// Makes a ring of normal priority. 0 or `-errno`.
///
/// # Safety
/// `ior` must be NULL or writable; `mount_point` NULL or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iorcreate(
    ior: *mut CIor,
    mount_point: *const c_char,
    entries: c_int,
    for_read: bool,
    io_depth: c_int,
    numa: c_int,
) -> c_int {
    let wanted = Wanted { entries, for_read, io_depth, priority: 0, timeout: 0, numa, flags: 0 };
    // SAFETY: the caller's promise is the same.
    unsafe { create("hf3fs_iorcreate", ior, mount_point, &wanted) }
}

/// As [`hf3fs_iorcreate`], with a priority.
///
/// # Safety
/// As for [`hf3fs_iorcreate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iorcreate2(
    ior: *mut CIor,
    mount_point: *const c_char,
    entries: c_int,
    for_read: bool,
    io_depth: c_int,
    priority: c_int,
    numa: c_int,
) -> c_int {
    let wanted = Wanted { entries, for_read, io_depth, priority, timeout: 0, numa, flags: 0 };
    // SAFETY: the caller's promise is the same.
    unsafe { create("hf3fs_iorcreate2", ior, mount_point, &wanted) }
}

/// As [`hf3fs_iorcreate2`], with a timeout.
///
/// # Safety
/// As for [`hf3fs_iorcreate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iorcreate3(
    ior: *mut CIor,
    mount_point: *const c_char,
    entries: c_int,
    for_read: bool,
    io_depth: c_int,
    priority: c_int,
    timeout: c_int,
    numa: c_int,
) -> c_int {
    let wanted = Wanted { entries, for_read, io_depth, priority, timeout, numa, flags: 0 };
    // SAFETY: the caller's promise is the same.
    unsafe { create("hf3fs_iorcreate3", ior, mount_point, &wanted) }
}

/// As [`hf3fs_iorcreate`], with a timeout and flags.
///
/// # Safety
/// As for [`hf3fs_iorcreate`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iorcreate4(
    ior: *mut CIor,
    mount_point: *const c_char,
    entries: c_int,
    for_read: bool,
    io_depth: c_int,
    timeout: c_int,
    numa: c_int,
    flags: u64,
) -> c_int {
    let wanted = Wanted { entries, for_read, io_depth, priority: 0, timeout, numa, flags };
    // SAFETY: the caller's promise is the same.
    unsafe { create("hf3fs_iorcreate4", ior, mount_point, &wanted) }
}

/// Unregisters and unmaps a ring.
///
/// # Safety
/// `ior` must be NULL or filled by a creating function, and used by no other thread meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iordestroy(ior: *mut CIor) {
    guard("hf3fs_iordestroy", (), || {
        // SAFETY: NULL or filled (caller), and used by nobody else.
        let Some(ior) = (unsafe { ior.as_mut() }) else { return };
        let ring = std::mem::replace(&mut ior.iorh, ptr::null_mut());
        if ring.is_null() {
            return;
        }
        ior.iov.base = ptr::null_mut();
        // SAFETY: a boxed RingCore (`described`), taken out of the struct just now.
        drop(unsafe { Box::from_raw(ring.cast::<RingCore>()) });
    });
}

/// The ring behind a struct, unless that is NULL or destroyed.
///
/// # Safety
/// `ior` must be NULL or filled by a creating function, and not be destroyed while the result is used.
#[inline]
unsafe fn ring<'a>(ior: *const CIor) -> Option<&'a RingCore> {
    if ior.is_null() {
        return None;
    }
    // SAFETY: filled (caller), so that `iorh` is NULL or a live RingCore, which is made to be shared.
    unsafe { (*ior).iorh.cast::<RingCore>().as_ref() }
}

/// Requests that may be in flight; `-EINVAL` without a ring.
///
/// # Safety
/// As for [`hf3fs_submit_ios`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_io_entries(ior: *const CIor) -> c_int {
    // SAFETY: the caller's promise is the same.
    let entries = unsafe { ring(ior) }.and_then(|ring| c_int::try_from(ring.entries()).ok());
    entries.unwrap_or(-libc::EINVAL)
}

/// Queues a request. Its slot, or `-errno`.
///
/// # Safety
/// `ior` and `iov` must be NULL or filled; one thread prepares on a ring at a time. `ptr` is only compared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_prep_io(
    ior: *const CIor,
    iov: *const CIov,
    read: bool,
    ptr: *mut c_void,
    fd: c_int,
    off: usize,
    len: u64,
    userdata: *const c_void,
) -> c_int {
    guard("hf3fs_prep_io", -libc::EIO, || {
        // SAFETY: the caller's promise is the same.
        let Some(ring) = (unsafe { ring(ior) }) else { return -libc::EINVAL };
        // SAFETY: NULL or filled (caller).
        let Some(iov) = (unsafe { iov.as_ref() }) else { return -libc::EINVAL };
        let queued = prep(ring, iov, read, ptr.addr(), fd, off as u64, len, userdata.addr() as u64);
        // A slot is below `entries`, which fits.
        queued.map_or_else(|error| -error.errno(), |slot| slot as c_int)
    })
}

#[expect(clippy::too_many_arguments, reason = "those of hf3fs_prep_io")]
#[inline]
fn prep(
    ring: &RingCore,
    iov: &CIov,
    read: bool,
    at: usize,
    fd: c_int,
    file_offset: u64,
    len: u64,
    userdata: u64,
) -> Result<u32, PrepError> {
    if read != ring.for_read() {
        return Err(PrepError::Direction);
    }
    let buffer = Buffer { id: iov.id, size: iov.size as u64 };
    let base = iov.base.addr();
    let outside = PrepError::OutOfIov { offset: at.wrapping_sub(base) as u64, len, size: buffer.size };
    let iov_offset = if base == 0 { None } else { at.checked_sub(base) }.ok_or(outside)? as u64;
    // Before the file is looked up: a wrong range is EINVAL also with a wrong fd.
    buffer.check(iov_offset, len)?;
    let file = TABLE.lookup(fd)?;
    ring.prep(buffer, &Request { file, file_offset, len, iov_offset, userdata })
}

/// Tells the daemon that requests are queued. 0 or `-errno`.
///
/// # Safety
/// `ior` must be NULL or filled by a creating function, and not be destroyed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_submit_ios(ior: *const CIor) -> c_int {
    guard("hf3fs_submit_ios", -libc::EIO, || {
        TABLE.next_batch();
        // SAFETY: the caller's promise is the same.
        match unsafe { ring(ior) }.map(RingCore::submit) {
            None => -libc::EINVAL,
            Some(Ok(())) => 0,
            Some(Err(error)) => failed("hf3fs_submit_ios", &error),
        }
    })
}

/// Takes completions. How many, or `-errno`.
///
/// # Safety
/// As for [`hf3fs_submit_ios`]; `cqes` must be NULL or have room for `cqec` structs, `abs_timeout` be NULL or live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_wait_for_ios(
    ior: *const CIor,
    cqes: *mut Cqe,
    cqec: c_int,
    min_results: c_int,
    abs_timeout: *const libc::timespec,
) -> c_int {
    guard("hf3fs_wait_for_ios", -libc::EIO, || {
        // SAFETY: the caller's promise is the same.
        let Some(ring) = (unsafe { ring(ior) }) else { return -libc::EINVAL };
        let room = usize::try_from(cqec).unwrap_or(0);
        if cqes.is_null() || room == 0 {
            return -libc::EINVAL;
        }
        // SAFETY: room for `cqec` structs (caller), which may be uninitialised.
        let out = unsafe { std::slice::from_raw_parts_mut(cqes.cast::<MaybeUninit<Cqe>>(), room) };
        // SAFETY: NULL or live (caller).
        let deadline = match unsafe { abs_timeout.as_ref() } {
            None => None,
            Some(time) => match Deadline::new(time.tv_sec, time.tv_nsec) {
                None => return -libc::EINVAL,
                deadline => deadline,
            },
        };
        TABLE.next_batch();
        match ring.wait(usize::try_from(min_results).unwrap_or(0), out, deadline) {
            // At most `cqec`.
            Ok(count) => count as c_int,
            Err(error) => failed("hf3fs_wait_for_ios", &error),
        }
    })
}

/// Says why a ring is beyond use.
#[cold]
fn failed(function: &str, error: &Error) -> c_int {
    tracing::warn!("{function}: {error}");
    -error.errno()
}
