//! Everything that can be wrong before the first step is taken.

use super::{Options, ServeError};
use crate::sys::mount::{self, FSTYPE};
use crate::types::Errno;
use rustix::fs::{Mode, OFlags};
use std::path::{Path, PathBuf};

/// Checks what was asked; the same options with absolute paths and no symbolic links. A mount that a dead daemon left at
/// the mount point is removed.
pub(super) fn check(options: Options) -> Result<Options, ServeError> {
    let dir = directory(&options.dir, ServeError::DirMissing, ServeError::DirNotADirectory)?;
    if rustix::process::geteuid().is_root() {
        // Nobody else can, and the mount point of a dead daemon cannot even be looked at.
        remove_dead_mount(&options.mount_point)?;
    }
    let mount_point =
        directory(&options.mount_point, ServeError::MountPointMissing, ServeError::MountPointNotADirectory)?;
    if dir.starts_with(&mount_point) || mount_point.starts_with(&dir) {
        return Err(ServeError::Nested { dir, mount_point });
    }
    let table = mount::mounted_at(&mount_point).map_err(ServeError::system("reading the mount table"))?;
    if let Some(fstype) = table.into_iter().next_back() {
        return Err(ServeError::MountPointBusy { path: mount_point, fstype });
    }
    let shm = directory(&options.shm, ServeError::ShmNotADirectory, ServeError::ShmNotADirectory)?;
    if !rustix::process::geteuid().is_root() {
        return Err(ServeError::NotRoot);
    }
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(ServeError::NoFuse)?;
    Ok(Options { dir, mount_point, shm, ..options })
}

fn directory(
    path: &Path,
    missing: fn(PathBuf) -> ServeError,
    no_directory: fn(PathBuf) -> ServeError,
) -> Result<PathBuf, ServeError> {
    let real = path.canonicalize().map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::NOENT) => missing(path.to_owned()),
        Some(Errno::NOTDIR) => no_directory(path.to_owned()),
        _ => ServeError::system(format!("looking at {}", path.display()))(e),
    })?;
    if real.is_dir() { Ok(real) } else { Err(no_directory(path.to_owned())) }
}

fn remove_dead_mount(path: &Path) -> Result<(), ServeError> {
    // `canonicalize` would ask the dead mount; its parent is alive.
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(parent) = parent.canonicalize() else { return Ok(()) };
    let path = parent.join(name);
    while mount::is_dead(&path) {
        let table = mount::mounted_at(&path).map_err(ServeError::system("reading the mount table"))?;
        if table.last().is_none_or(|fstype| fstype != FSTYPE) {
            break;
        }
        tracing::info!(mount_point = %path.display(), "removing the mount that a dead daemon left");
        mount::unmount(&path).map_err(|errno| ServeError::Mount { path: path.clone(), errno })?;
    }
    Ok(())
}
