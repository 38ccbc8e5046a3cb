//! `hf3fs_iov*`: data buffers.

use crate::boundary::{errno, guard, mount, mount_field, null};
use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;
use std::ptr;
use usrbio::{Error, Iov, Mount};
use uuid::Uuid;

/// `struct hf3fs_iov`.
#[derive(Debug)]
#[repr(C)]
pub struct CIov {
    /// Where it is mapped; NULL once destroyed.
    pub base: *mut u8,
    /// A boxed [`Iov`]; NULL for a wrapped one.
    pub iovh: *mut c_void,
    /// UUID bytes in text order.
    pub id: [u8; 16],
    /// NUL-terminated.
    pub mount_point: [c_char; 256],
    /// Bytes.
    pub size: usize,
    /// As passed.
    pub block_size: usize,
    /// As passed.
    pub numa: c_int,
}

const _: () = assert!(size_of::<CIov>() == 312 && align_of::<CIov>() == 8);
const _: () = assert!(offset_of!(CIov, iovh) == 8 && offset_of!(CIov, id) == 16);
const _: () = assert!(offset_of!(CIov, mount_point) == 32 && offset_of!(CIov, size) == 288);
const _: () = assert!(offset_of!(CIov, block_size) == 296 && offset_of!(CIov, numa) == 304);

/// Makes sure that a struct whose creation fails can still be destroyed.
///
/// # Safety
/// `iov` must point to writable memory for a struct, whatever it holds.
unsafe fn blank(iov: *mut CIov) {
    // SAFETY: writable (caller); raw writes read nothing of what is there.
    unsafe {
        (&raw mut (*iov).base).write(ptr::null_mut());
        (&raw mut (*iov).iovh).write(ptr::null_mut());
    }
}

/// Fills the struct for an Iov that this library maps.
fn described(made: Iov, mount: &Mount, block_size: usize, numa: c_int) -> CIov {
    CIov {
        base: made.as_ptr(),
        id: made.id().into_bytes(),
        mount_point: mount_field(mount),
        size: made.len(),
        block_size,
        numa,
        iovh: Box::into_raw(Box::new(made)).cast(),
    }
}

/// The UUID that a caller names.
///
/// # Safety
/// `id` must be NULL or point to 16 bytes.
unsafe fn uuid(id: *const u8) -> Result<Uuid, Error> {
    if id.is_null() {
        return Err(null("the id"));
    }
    // SAFETY: 16 bytes (caller), of any alignment.
    Ok(Uuid::from_bytes(unsafe { id.cast::<[u8; 16]>().read_unaligned() }))
}

/// Blanks `iov`, then fills it with what `make` makes. 0 or `-errno`.
///
/// # Safety
/// `iov` must be NULL or writable.
unsafe fn fill(function: &'static str, iov: *mut CIov, make: impl FnOnce() -> Result<CIov, Error>) -> c_int {
    -errno(function, || {
        if iov.is_null() {
            return Err(null("iov"));
        }
        // SAFETY: not NULL, so writable (caller).
        unsafe { blank(iov) };
        let made = make()?;
        // SAFETY: as above.
        unsafe { iov.write(made) };
        Ok(())
    })
}

/// Makes and registers a buffer. 0 or `-errno`.
///
/// # Safety
/// `iov` must be NULL or writable; `mount_point` NULL or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovcreate(
    iov: *mut CIov,
    mount_point: *const c_char,
    size: usize,
    block_size: usize,
    numa: c_int,
) -> c_int {
    let make = || {
        // SAFETY: as the caller promised.
        let mount = unsafe { mount(mount_point) }?;
        let made = Iov::create(&mount, size, block_size, numa)?;
        Ok(described(made, &mount, block_size, numa))
    };
    // SAFETY: as the caller promised.
    unsafe { fill("hf3fs_iovcreate", iov, make) }
}

/// Maps a buffer that another process registered. 0 or `-errno`.
///
/// # Safety
/// As for [`hf3fs_iovcreate`]; `id` must be NULL or point to 16 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovopen(
    iov: *mut CIov,
    id: *const u8,
    mount_point: *const c_char,
    size: usize,
    block_size: usize,
    numa: c_int,
) -> c_int {
    let make = || {
        // SAFETY: as the caller promised.
        let (id, mount) = unsafe { (uuid(id)?, mount(mount_point)?) };
        let opened = Iov::open(&mount, id, size, block_size)?;
        Ok(described(opened, &mount, block_size, numa))
    };
    // SAFETY: as the caller promised.
    unsafe { fill("hf3fs_iovopen", iov, make) }
}

/// Describes memory that the caller registered by itself. 0 or `-EINVAL`.
///
/// # Safety
/// As for [`hf3fs_iovopen`]; `base` must be the start of `size` mapped bytes, for as long as `iov` is used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovwrap(
    iov: *mut CIov,
    base: *mut c_void,
    id: *const u8,
    mount_point: *const c_char,
    size: usize,
    block_size: usize,
    numa: c_int,
) -> c_int {
    let make = || {
        // SAFETY: as the caller promised.
        let (id, mount) = unsafe { (uuid(id)?, mount(mount_point)?) };
        if !base.is_null() && size > 0 {
            // SAFETY: mapped (caller).
            unsafe { usrbio::shm::bind_numa(base.cast(), size, numa) };
        }
        Ok(CIov {
            base: base.cast(),
            iovh: ptr::null_mut(),
            id: id.into_bytes(),
            mount_point: mount_field(&mount),
            size,
            block_size,
            numa,
        })
    };
    // SAFETY: as the caller promised.
    unsafe { fill("hf3fs_iovwrap", iov, make) }
}

/// Removes the shared-memory file's name, in the process that made it.
///
/// # Safety
/// `iov` must be NULL or filled by one of the functions above, and used by no other thread meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovunlink(iov: *mut CIov) {
    guard("hf3fs_iovunlink", (), || {
        // SAFETY: NULL or filled (caller).
        let Some(iov) = (unsafe { iov.as_ref() }) else { return };
        // SAFETY: `iovh` is NULL or a boxed Iov (`described`), which nobody else uses (caller).
        if let Some(made) = unsafe { iov.iovh.cast::<Iov>().as_mut() } {
            made.unlink();
        }
    });
}

/// Unmaps a buffer, and unregisters and removes it in the process that made it. Nothing for a wrapped one.
///
/// # Safety
/// As for [`hf3fs_iovunlink`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_iovdestroy(iov: *mut CIov) {
    guard("hf3fs_iovdestroy", (), || {
        // SAFETY: NULL or filled (caller), and used by nobody else.
        let Some(iov) = (unsafe { iov.as_mut() }) else { return };
        let made = std::mem::replace(&mut iov.iovh, ptr::null_mut());
        if made.is_null() {
            tracing::info!("hf3fs_iovdestroy: nothing to do for an iov that is wrapped or destroyed");
            return;
        }
        iov.base = ptr::null_mut();
        // SAFETY: a boxed Iov (`described`), taken out of the struct just now.
        drop(unsafe { Box::from_raw(made.cast::<Iov>()) });
    });
}
