//! Paths that callers give: where they lie on this mount.
//!
//! A path is the caller's: in a container the mount may be anywhere. The caller's own mount table says where, by the
//! number of the FUSE connection (in `/proc/self/fdinfo` on newer kernels; seen on 6.18). Without it, paths must begin
//! with the mount point that the session was given.

use crate::clients::proc_path;
use crate::types::{Caller, Errno, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Longest command line that is looked at; `execve` takes up to 2 MiB.
const COMMAND_LINE_MAX: u64 = 1 << 21;

/// Where one mount is seen.
pub(super) struct Mounts {
    mount_point: PathBuf,
    /// Minor device number of the mount; the major one is 0.
    connection: Option<u32>,
}

impl Mounts {
    /// The mount behind the `/dev/fuse` fd `fuse`, which clients see at `mount_point` if nothing better is known.
    pub fn new(mount_point: PathBuf, fuse: impl AsFd) -> Mounts {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fuse.as_fd().as_raw_fd()));
        let connection = info.ok().and_then(|info| {
            info.lines().find_map(|line| line.strip_prefix("fuse_connection:")?.trim().parse().ok())
        });
        Mounts { mount_point, connection }
    }

    /// A caller's view of the mount.
    pub fn seen_by(&self, caller: &Caller) -> View {
        let table = self.connection.filter(|_| caller.pid != 0).and_then(|connection| {
            let table = std::fs::read(proc_path(caller.pid, "mountinfo")).ok()?;
            Some(View(parse_mounts(&table, connection)))
        });
        let root = Mounted { at: self.mount_point.clone(), root: Some(PathBuf::new()) };
        table.unwrap_or_else(|| View(vec![root]))
    }
}

/// A line of a mount table.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    at: PathBuf,
    /// What of our mount is there; `None` for another file system.
    root: Option<PathBuf>,
}

/// Mounts as a caller sees them.
pub(super) struct View(Vec<Mounted>);

impl View {
    /// The path below the root of this mount, with nothing but names in it. `EINVAL`: it is relative, leads elsewhere or
    /// holds `..`, which could mean another file than the caller thinks.
    pub fn relative(&self, path: &[u8]) -> Result<PathBuf> {
        let path = Path::new(OsStr::from_bytes(path));
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            return Err(Errno::INVAL);
        }
        let best =
            self.0.iter().filter(|m| path.starts_with(&m.at)).max_by_key(|m| m.at.components().count());
        let (at, root) = best.and_then(|m| Some((&m.at, m.root.as_ref()?))).ok_or(Errno::INVAL)?;
        let rest = path.strip_prefix(at).map_err(|_| Errno::INVAL)?;
        // `components` leaves out `.` and doubled slashes.
        Ok(root.join(rest).components().collect())
    }

    /// Is it safe to take the link that this process makes for an order to remove? A path with a blank in it, typed without
    /// quotes, has become two arguments of `ln`: so each must be an absolute path on this mount.
    pub fn arguments_are_safe(&self, command_line: &[u8]) -> bool {
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
            self.relative(argument).is_ok()
        })
    }
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

/// Lines of `/proc/PID/mountinfo`: `id parent major:minor root mount-point ...`.
fn parse_mounts(table: &[u8], connection: u32) -> Vec<Mounted> {
    let ours = format!("0:{connection}");
    let line = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ').skip(2);
        let (device, root, at) = (fields.next()?, fields.next()?, fields.next()?);
        let root = (device == ours.as_bytes()).then(|| unescape(root.strip_prefix(b"/").unwrap_or(root)));
        Some(Mounted { at: unescape(at), root })
    };
    table.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Blanks and the like are `\040` in a mount table.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.get(..3)).flatten();
        let code = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        path.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsStr::from_bytes(&path))
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

    fn view(mounts: &[(&str, Option<&str>)]) -> View {
        let mounted =
            |(at, root): &(&str, Option<&str>)| Mounted { at: at.into(), root: root.map(Into::into) };
        View(mounts.iter().map(mounted).collect())
    }

    #[test]
    fn a_path_is_taken_relative_to_the_innermost_mount() {
        let view = view(&[("/", None), ("/data", Some("")), ("/data/in", None), ("/part", Some("a/b"))]);
        let relative = |path: &str| view.relative(path.as_bytes());
        assert_eq!(relative("/data/x/y"), Ok("x/y".into()));
        assert_eq!(relative("/data//x/./y/"), Ok("x/y".into()));
        assert_eq!(relative("/part/c"), Ok("a/b/c".into()));
        assert_eq!(relative("/data"), Ok("".into()));
        for other in ["x/y", "/", "/database/x", "/data/in/x", "/data/../data/x", "/data/x/..", ""] {
            assert_eq!(relative(other), Err(Errno::INVAL), "{other}");
        }
    }

    #[test]
    fn a_mount_table_shows_where_the_mount_is() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/sda rw\n\
            42 22 0:39 / /mnt/my\\040data rw,relatime - fuse.hf3fs hf3fs rw\n\
            43 22 0:39 /sub /part rw shared:1 - fuse.hf3fs hf3fs rw\n44 22 0:3 / /proc\n\nbroken\n";
        let mounts = parse_mounts(table, 39);
        let mounted = |at: &str, root: Option<&str>| Mounted { at: at.into(), root: root.map(Into::into) };
        let expected = [
            mounted("/", None),
            mounted("/mnt/my data", Some("")),
            mounted("/part", Some("sub")),
            mounted("/proc", None),
        ];
        assert_eq!(mounts, expected);
    }

    #[test]
    fn an_argument_of_ln_that_is_no_path_of_the_mount_is_noticed() {
        let view = view(&[("/data", Some(""))]);
        let safe = |line: &str| view.arguments_are_safe(line.as_bytes());
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

    #[test]
    fn callers_see_the_mount_point_of_the_session_when_nothing_better_is_known() {
        let mounts = Mounts::new("/mnt/x".into(), std::fs::File::open("/dev/null").unwrap());
        let me = Caller { uid: 0, gid: 0, pid: std::process::id() };
        assert_eq!(mounts.seen_by(&me).relative(b"/mnt/x/y"), Ok("y".into()));
    }
}
