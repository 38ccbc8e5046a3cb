//! Capabilities and file system ids of the calling *thread*: raw system calls, since glibc's wrappers change all
//! threads.

use crate::types::{Errno, Result};

/// `CAP_FSETID`: with it, a write keeps the file's set-id bits.
pub const CAP_FSETID: u32 = 4;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Effective, permitted and inheritable set; low and high 32 capabilities.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Sets([[u32; 3]; 2]);

fn get() -> Result<Sets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = Sets::default();
    // SAFETY: both point to live structs of the layout that `capget` has for version 3.
    let rc = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
    check(rc).map(|()| sets)
}

fn set(sets: &Sets) -> Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: as in `get`; the kernel only reads.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets) })
}

fn check(rc: libc::c_long) -> Result<()> {
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes `capability` out of the calling thread's effective set.
pub fn drop_effective(capability: u32) -> Result<()> {
    let mut sets = get()?;
    sets.0[(capability / 32) as usize][0] &= !(1 << (capability % 32));
    set(&sets)
}

/// Runs `action` with the file system ids of somebody else and, unless that is root, without the capabilities that
/// override file permissions. Afterwards the thread is as before. `EPERM`: the ids could not be taken.
pub fn with_fs_ids<T>(uid: u32, gid: u32, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = get()?;
    let old_gid = set_fs_id(libc::SYS_setfsgid, gid);
    // Leaving uid 0 clears the file capabilities from the effective set (capabilities(7), "Effect of user ID changes").
    let old_uid = set_fs_id(libc::SYS_setfsuid, uid);
    let taken =
        set_fs_id(libc::SYS_setfsuid, u32::MAX) == uid && set_fs_id(libc::SYS_setfsgid, u32::MAX) == gid;
    let result = if taken { action() } else { Err(Errno::PERM) };
    set_fs_id(libc::SYS_setfsuid, old_uid);
    set_fs_id(libc::SYS_setfsgid, old_gid);
    // Coming back raises all file capabilities, also those that the thread had given up.
    set(&before)?;
    result
}

/// Sets and answers the old id; an invalid id changes nothing, so that it asks.
fn set_fs_id(call: libc::c_long, id: u32) -> u32 {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(call, libc::c_long::from(id)) as u32 }
}
