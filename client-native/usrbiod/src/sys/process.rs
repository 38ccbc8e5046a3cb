//! Processes and their threads.

use super::last_errno;
use crate::types::Errno;

/// Is `tid` the first thread of its process, so that its number is the process's as well? False also for what is not there.
/// One call, where `/proc/TID/status` takes a hundred times as long.
pub fn is_leader(tid: u32) -> bool {
    let Ok(tid) = libc::pid_t::try_from(tid) else { return false };
    if tid == 0 {
        return false;
    }
    // SAFETY: three integers; signal 0 is never sent. The kernel looks for thread `tid` in process `tid`.
    let rc = unsafe { libc::syscall(libc::SYS_tgkill, tid, tid, 0) };
    // EPERM: it is there, in a process that we may not signal.
    rc == 0 || last_errno() == Errno::PERM
}

/// When a process began, in clock ticks since boot; `None` when there is none of that id.
pub fn start_time(tgid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold spaces and parentheses itself.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_first_threads_are_leaders() {
        let tid = || rustix::thread::gettid().as_raw_nonzero().get() as u32;
        assert!(is_leader(std::process::id()));
        assert!(!std::thread::spawn(move || is_leader(tid())).join().unwrap());
        assert!(is_leader(1));
        assert!(!is_leader(0) && !is_leader(u32::MAX));
    }
}
