//! System calls that rustix lacks: one safe function each, the argument for it inside, errno out.

pub mod cgroup;
pub mod creds;
pub mod device;
pub mod dio;
pub mod dirents;
pub mod fuse_dev;
pub mod handle;
pub mod lease;
pub mod mount;
pub mod mountinfo;
pub mod path;
pub mod process;
pub mod residency;

/// What the call that just failed, through libc, left in `errno`.
fn last_errno() -> crate::types::Errno {
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    crate::types::Errno::from_raw_os_error(code)
}
