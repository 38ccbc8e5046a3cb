//! What `O_DIRECT` wants of a file.

use std::os::fd::{AsFd, AsRawFd};

/// Alignment of memory and of file offsets for direct I/O; 4096 when the kernel does not say.
pub fn alignment(fd: impl AsFd) -> (u64, u64) {
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, `stat` has room for the answer and is valid as zeros.
    let (rc, stat) = unsafe {
        let fd = fd.as_fd().as_raw_fd();
        let rc = libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, stat.as_mut_ptr());
        (rc, stat.assume_init())
    };
    if rc != 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 || stat.stx_dio_offset_align == 0 {
        return (4096, 4096);
    }
    (u64::from(stat.stx_dio_mem_align.max(1)), u64::from(stat.stx_dio_offset_align))
}
