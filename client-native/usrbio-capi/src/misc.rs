//! Mount points, hard links and holes.

use crate::boundary::{errno, guard, null, path_of};
use crate::fd::with_fd;
use crate::log;
use std::ffi::{c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use usrbio::{Error, mount};
use usrbio_wire::ioctl::PUNCH_HOLE_MAX;

/// Does `fd` belong to a file or directory of a 3FS mount?
#[unsafe(no_mangle)]
pub extern "C" fn hf3fs_is_hf3fs(fd: c_int) -> bool {
    guard("hf3fs_is_hf3fs", false, || with_fd(fd, mount::is_3fs).unwrap_or(false))
}

/// Finds the mount point of the 3FS mount that holds `path`. Its length with the NUL, or -1. It is written only if
/// it fits into the `size` bytes of `buf`.
///
/// # Safety
/// `buf` must be NULL or have `size` bytes; `path` must be NULL or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_extract_mount_point(
    buf: *mut c_char,
    size: c_int,
    path: *const c_char,
) -> c_int {
    log::start();
    guard("hf3fs_extract_mount_point", -1, || {
        // SAFETY: NULL or NUL-terminated (caller), and used only here.
        let found = unsafe { path_of(path) }.and_then(mount::mount_point);
        let point = match found {
            Ok(point) => point,
            Err(error) => {
                tracing::info!("hf3fs_extract_mount_point: {error}");
                return -1;
            }
        };
        let bytes = point.as_os_str().as_bytes();
        if !buf.is_null() && usize::try_from(size).is_ok_and(|size| bytes.len() < size) {
            // SAFETY: `size` bytes (caller), more than there are to copy.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), buf.cast(), bytes.len());
                buf.add(bytes.len()).write(0);
            }
        }
        c_int::try_from(bytes.len() + 1).unwrap_or(-1)
    })
}

/// Links the file `target` as `link_name`. 0 or a **positive** errno.
///
/// # Safety
/// Both must be NULL or NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_hardlink(target: *const c_char, link_name: *const c_char) -> c_int {
    errno("hf3fs_hardlink", || {
        // SAFETY: NULL or NUL-terminated (caller), and used only here.
        let (target, link) = unsafe { (path_of(target)?, path_of(link_name)?) };
        mount::hardlink(target, link)
    })
}

/// Frees the blocks of the byte ranges `start[i]..end[i]`. 0 or a **positive** errno.
///
/// # Safety
/// `start` and `end` must be NULL or have `n` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf3fs_punchhole(
    fd: c_int,
    n: c_int,
    start: *const usize,
    end: *const usize,
    flags: usize,
) -> c_int {
    errno("hf3fs_punchhole", || {
        let n = usize::try_from(n).ok().filter(|n| *n <= PUNCH_HOLE_MAX).ok_or_else(|| {
            Error::Invalid(format!("{n} ranges: there may be 0 to {PUNCH_HOLE_MAX} in one call"))
        })?;
        let numbers = |from: *const usize, what| match (n, from.is_null()) {
            (0, _) => Ok(&[][..]),
            (_, true) => Err(null(what)),
            // SAFETY: `n` numbers (caller).
            (_, false) => Ok(unsafe { std::slice::from_raw_parts(from, n) }),
        };
        let (start, end) = (numbers(start, "start")?, numbers(end, "end")?);
        let ranges = start.iter().zip(end).map(|(start, end)| *start as u64..*end as u64);
        with_fd(fd, |fd| mount::punch_hole(fd, ranges, flags as u64)).unwrap_or(Err(Error::BadFd(fd)))
    })
}
