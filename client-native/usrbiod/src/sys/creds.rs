//! Credentials of one thread: what is created on behalf of a caller belongs to the caller.
//!
//! Linux keeps credentials per thread. `setfsuid` to another user than root takes the file capabilities off the
//! effective set; [`Scope`] puts them back, since the kernel has checked the access already
//! (`default_permissions`) and the daemon may be asked to create where the caller's supplementary groups matter.

use crate::types::{Errno, Result};
use rustix::fs::Mode;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    static CAPABILITIES: Cell<Option<CapabilitySets>> = const { Cell::new(None) };
    /// Who this thread is between two scopes.
    static OWN_UID: Cell<u32> = const { Cell::new(0) };
}

/// Who writes. File systems keep blocks for root, by the writer's file system user or `CAP_SYS_RESOURCE`: what users write
/// must not take those.
const NOBODY: u32 = 65_534;

/// Makes this thread fit to act for others, once per thread; every further call is free.
///
/// * Its umask becomes its own (`CLONE_FS` is undone), and 0.
/// * It has no supplementary groups.
/// * It gives up `CAP_FSETID`: so the kernel clears set-id bits when it writes, and when the kernel itself writes
///   through a backing file that this thread registered.
/// * It gives up `CAP_SYS_RESOURCE`, which passes over quotas and over what a file system keeps for root.
pub fn prepare_thread() -> Result<()> {
    sets().map(drop)
}

fn sets() -> Result<CapabilitySets> {
    if let Some(sets) = CAPABILITIES.get() {
        return Ok(sets);
    }
    // SAFETY: with `FS` alone, no fd table is unshared: no fd that another thread opens can be missed.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS)? };
    rustix::process::umask(Mode::empty());
    let mut sets = rustix::thread::capabilities(None)?;
    if sets.effective.contains(CapabilitySet::SETGID) {
        rustix::thread::set_thread_groups(&[])?;
    }
    let given_up = CapabilitySet::FSETID | CapabilitySet::SYS_RESOURCE;
    sets.effective.remove(given_up);
    sets.permitted.remove(given_up);
    rustix::thread::set_capabilities(None, sets)?;
    CAPABILITIES.set(Some(sets));
    Ok(sets)
}

/// Makes this thread one that writes for users and creates nothing: nobody, with the daemon's capabilities.
pub fn prepare_writer() -> Result<()> {
    let sets = sets()?;
    OWN_UID.set(NOBODY);
    set_fs_uid(NOBODY)?;
    rustix::thread::set_capabilities(None, sets)
}

/// While this lives, the thread's file system user, group and umask are those of a caller.
#[derive(Debug)]
pub struct Scope {
    ids: bool,
    umask: bool,
    // Credentials are the thread's: the guard must end where it began.
    this_thread: PhantomData<*const ()>,
}

impl Scope {
    /// Acts as `uid` and `gid` with `umask`, keeping the daemon's capabilities.
    pub fn owner(uid: u32, gid: u32, umask: u32) -> Result<Scope> {
        let sets = sets()?;
        let mut scope = Scope::unprivileged(uid, gid)?;
        if scope.ids && uid != 0 {
            rustix::thread::set_capabilities(None, sets)?;
        }
        if umask != 0 {
            rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
            scope.umask = true;
        }
        Ok(scope)
    }

    /// Acts as `uid` and `gid` without capabilities over files (unless `uid` is 0): the kernel checks every access.
    pub fn unprivileged(uid: u32, gid: u32) -> Result<Scope> {
        sets()?;
        let own = OWN_UID.get();
        let scope = Scope { ids: (uid, gid) != (own, 0) || own != 0, umask: false, this_thread: PhantomData };
        // From here on, an early return drops `scope`, which puts everything back.
        if scope.ids {
            set_fs_gid(gid)?;
            if own != 0 {
                // Only the step from root to somebody else takes capabilities off.
                set_fs_uid(0)?;
            }
            set_fs_uid(uid)?;
        }
        Ok(scope)
    }

    /// For writing to what is open, or registering it for the kernel to write.
    pub fn writer() -> Result<Scope> {
        sets()?;
        let scope = Scope { ids: OWN_UID.get() == 0, umask: false, this_thread: PhantomData };
        if scope.ids {
            set_fs_uid(NOBODY)?;
        }
        Ok(scope)
    }

    /// With CAP_SETUID and CAP_SETGID, which a change of the file system user does not take away.
    fn put_back(&self) -> Result<()> {
        let own = OWN_UID.get();
        set_fs_uid(own)?;
        set_fs_gid(0)?;
        if own == 0 { Ok(()) } else { rustix::thread::set_capabilities(None, sets()?) }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if self.umask {
            rustix::process::umask(Mode::empty());
        }
        // A thread that stayed somebody else would mix up its callers: better none.
        if self.ids && self.put_back().is_err() {
            tracing::error!("setfsuid failed; the daemon cannot go on without risk for its callers");
            std::process::abort();
        }
    }
}

/// The raw calls report the previous id and no error, so the result is read back with an id that never is valid.
fn set_fs_uid(uid: u32) -> Result<()> {
    // SAFETY: no memory is involved; glibc changes the calling thread only.
    let now = unsafe {
        libc::setfsuid(uid);
        libc::setfsuid(u32::MAX)
    };
    if now as u32 == uid && uid != u32::MAX { Ok(()) } else { Err(Errno::PERM) }
}

fn set_fs_gid(gid: u32) -> Result<()> {
    // SAFETY: as above.
    let now = unsafe {
        libc::setfsgid(gid);
        libc::setfsgid(u32::MAX)
    };
    if now as u32 == gid && gid != u32::MAX { Ok(()) } else { Err(Errno::PERM) }
}
