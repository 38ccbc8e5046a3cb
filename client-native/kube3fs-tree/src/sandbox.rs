//! Where a walk runs: a process that sees nothing of the machine but the trees that it was given, may do little, and
//! needs little.

use crate::error::{Doing, Result};
use crate::place::MOST_OPEN;
use crate::sys;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of address space: a walk uses a few MiB.
const MEMORY: u64 = 256 << 20;

/// Open files: the ways through two trees, and some.
const FILES: u64 = 2 * MOST_OPEN as u64 + 64;

/// A directory that every root has, to hang the new root on for a moment.
const HANDLE: &str = "/proc";

/// What may be done with a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is changed, not even the times of access.
    Read,
    /// All.
    Write,
}

/// Leaves the machine: from now on there are only `trees`, each as the root of a mount of its own, so that the kernel
/// goes nowhere above it, and only `capabilities`. Returns them, open.
pub fn enter<const N: usize>(
    trees: [(OwnedFd, Access); N],
    capabilities: CapabilitySet,
) -> Result<[OwnedFd; N]> {
    limit()?;
    let mounts = trees.map(|(tree, access)| mount_of(&tree, access));
    let root = empty_root()?;
    // SAFETY: a mount namespace of its own; fds and memory stay shared with nobody.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .doing(|| "leaving the mount namespace".into())?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).doing(|| "keeping mounts to itself".into())?;
    rustix::mount::move_mount(&root, "", CWD, HANDLE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(|| "mounting the new root".into())?;
    let mut opened = Vec::new();
    for (number, mount) in mounts.into_iter().enumerate() {
        opened.push(attached(&root, number, &mount?)?);
    }
    become_root(&root)?;
    drop_capabilities(capabilities).doing(|| "giving capabilities up".into())?;
    <[OwnedFd; N]>::try_from(opened)
        .map_err(|_| crate::Failure { errno: rustix::io::Errno::INVAL, doing: "opening the trees".into() })
}

fn limit() -> Result<()> {
    for (resource, most) in [(Resource::As, MEMORY), (Resource::Nofile, FILES), (Resource::Core, 0)] {
        let both = Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::setrlimit(resource, both).doing(|| "limiting itself".into())?;
    }
    // If memory runs out all the same, it is not the one who called.
    std::fs::write("/proc/self/oom_score_adj", "1000").map_err(|error| crate::Failure {
        errno: rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
        doing: "limiting itself".into(),
    })
}

/// A mount of its own, nowhere yet, of just this directory.
fn mount_of(tree: &OwnedFd, access: Access) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(tree, "", flags).doing(|| "mounting the tree".into())?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC
        | libc::MOUNT_ATTR_NOSYMFOLLOW
        | libc::MOUNT_ATTR_NOATIME;
    if access == Access::Read {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    sys::set_mount_attributes(&mount, attributes).doing(|| "mounting the tree".into())?;
    Ok(mount)
}

fn empty_root() -> Result<OwnedFd> {
    let made = || -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "size", "4k")?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, hardened)
    };
    made().doing(|| "making a new root".into())
}

/// Mounts a tree in the new root, and opens it there.
fn attached(root: &OwnedFd, number: usize, mount: &OwnedFd) -> Result<OwnedFd> {
    let name = number.to_string();
    let attach = || -> rustix::io::Result<OwnedFd> {
        rustix::fs::mkdirat(root, &name, Mode::RWXU)?;
        rustix::mount::move_mount(mount, "", root, &name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(mount, ".", flags, Mode::empty(), ResolveFlags::BENEATH)
    };
    attach().doing(|| "opening the tree".into())
}

fn become_root(root: &OwnedFd) -> Result<()> {
    let change = || -> rustix::io::Result<()> {
        sys::set_mount_attributes(root, libc::MOUNT_ATTR_RDONLY)?;
        rustix::process::fchdir(root)?;
        // The old root lies on the new one then, and goes: pivot_root(2).
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    change().doing(|| "leaving the old root".into())
}

fn drop_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(true) if !kept.contains(one) => rustix::thread::remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            Err(_) => break, // there are no more
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)
}
