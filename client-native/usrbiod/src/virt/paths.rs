//! Paths that callers give. A path is the caller's: in a container the mount may be anywhere, and its [`View`] says where.

use crate::clients::proc_path;
use crate::mounts::View;
use crate::types::{Caller, Errno, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest command line that is looked at; `execve` takes up to 2 MiB.
const COMMAND_LINE_MAX: u64 = 1 << 21;

/// Is it safe to take the link that this process makes for an order to remove? A path with a blank in it, typed without
/// quotes, has become two arguments of `ln`: so each must be an absolute path on this mount.
pub(super) fn arguments_are_safe(view: &View, command_line: &[u8]) -> bool {
    let mut arguments = command_line.split(|b| *b == 0);
    let command = arguments.next().unwrap_or_default();
    if !matches!(command, b"ln" | b"/bin/ln" | b"/usr/bin/ln") {
        return true;
    }
    let mut options = true;
    arguments.filter(|a| !a.iter().all(|b| *b == b' ')).all(|argument| {
        if options && argument.starts_with(b"-") {
            options = argument != b"--";
            return true;
        }
        view.relative(argument).is_ok()
    })
}

/// The command line of a caller; empty when it cannot be seen.
pub(super) fn command_line(caller: &Caller) -> Vec<u8> {
    let mut line = Vec::new();
    if caller.pid != 0
        && let Ok(file) = std::fs::File::open(proc_path(caller.pid, "cmdline"))
    {
        let _ = file.take(COMMAND_LINE_MAX).read_to_end(&mut line);
    }
    line
}

/// Opens the directory that holds `relative`, beneath `root` and through no link; and the last name. `EINVAL` for the
/// root itself.
pub(super) fn open_parent(root: impl AsFd, relative: &Path) -> Result<(OwnedFd, CString)> {
    let name = relative.file_name().ok_or(Errno::INVAL)?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let parent = relative.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok((rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_of_ln_that_is_no_path_of_the_mount_is_noticed() {
        let view = View::parse(b"2 1 0:39 / /data rw - fuse.hf3fs s rw", 39).unwrap();
        let safe = |line: &str| arguments_are_safe(&view, line.as_bytes());
        assert!(safe("ln\0-s\0/data/a b\0/data/3fs-virt/rm-rf/x\0"));
        assert!(safe("/bin/ln\0-s\0--\0/data/a\0 \0/data/3fs-virt/rm-rf/x\0"));
        assert!(!safe("ln\0-s\0/data/\0b\0/data/3fs-virt/rm-rf/x\0"));
        assert!(!safe("ln\0-s\0/other\0/data/a\0/data/3fs-virt/rm-rf/x\0"));
        assert!(!safe("ln\0-s\0--\0-b\0/data/3fs-virt/rm-rf/x\0"));
        assert!(safe("python3\0whatever\0") && safe(""));
    }

    #[test]
    fn no_link_leads_to_a_parent() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", temp.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/", temp.path().join("out")).unwrap();
        let root = std::fs::File::open(temp.path()).unwrap();
        let open = |path: &str| open_parent(&root, Path::new(path)).map(|(_, name)| name);
        assert_eq!(open("a/b"), Ok(c"b".into()));
        assert_eq!(open("a"), Ok(c"a".into()));
        assert_eq!(open("link/b"), Err(Errno::LOOP));
        assert_eq!(open("out/etc"), Err(Errno::LOOP));
        assert_eq!(open(""), Err(Errno::INVAL));
        assert_eq!(open("none/b"), Err(Errno::NOENT));
    }
}
