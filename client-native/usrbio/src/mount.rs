//! 3FS mounts: telling one from other mounts, finding the mount point of a path, the two ioctls that take names
//! or ranges, and the open directory that tells the daemon this process lives.

use crate::error::Error;
use crate::fork::Generation;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use usrbio_wire::ioctl;

/// Longest path of a mount point, in bytes: the C structs have 256 with the NUL.
pub const MOUNT_POINT_MAX: usize = 255;

/// The directory at the mount point that shows a 3FS mount, whatever its file-system type says.
const VIRTUAL_DIR: &str = "3fs-virt";

/// Set to `yes`, it makes mount points found by their `3fs-virt` directory alone.
const ANY_FS_TYPE: &str = "HF3FS_USRBIO_DONT_CHECKFS_FOR_MP";

/// Does `fd` belong to a file or directory of a 3FS mount?
pub fn is_3fs(fd: BorrowedFd<'_>) -> bool {
    let mut magic = 0u32;
    // SAFETY: `fd` is open (it is borrowed), and `GET_MAGIC_NUM` writes a u32, for which there is room.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl::GET_MAGIC_NUM as libc::c_ulong, &raw mut magic) };
    rc == 0 && magic == ioctl::SUPER_MAGIC
}

/// A 3FS mount, by the path of its mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    point: PathBuf,
}

impl Mount {
    /// The mount at `point`. Nothing is looked up; a path that is none shows when an Iov or a ring is made.
    pub fn at(point: impl Into<PathBuf>) -> Result<Mount, Error> {
        let point = point.into();
        let len = point.as_os_str().len();
        if len > MOUNT_POINT_MAX {
            let message = format!("the mount point's path has {len} bytes, more than {MOUNT_POINT_MAX}");
            return Err(Error::Invalid(message));
        }
        Ok(Mount { point })
    }

    /// The mount that holds `path`, which must exist.
    pub fn of(path: impl AsRef<Path>) -> Result<Mount, Error> {
        Mount::at(mount_point(path.as_ref())?)
    }

    /// Its mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The directory where Iovs and rings are registered. Plain concatenation, as in 3FS.
    pub(crate) fn iovs(&self) -> PathBuf {
        let mut path = self.point.clone().into_os_string();
        path.push("/3fs-virt/iovs");
        path.into()
    }

    /// Keeps `3fs-virt/iovs` open from now on, once a mount and process: when the last such descriptor goes, the
    /// daemon knows that the process is gone and cleans up after it.
    ///
    /// Making an Iov or a ring does this; who registers memory by hand calls it. Such a directory is never closed
    /// here, not even a superfluous one: 3FS takes any close for the end of the process.
    pub fn keep_alive(&self) {
        if let Err(errno) = self.open_iovs() {
            tracing::warn!(
                "cannot keep {} open ({errno}): the daemon may not clean up when this process dies",
                self.iovs().display()
            );
        }
    }

    /// `3fs-virt/iovs`, opened once a mount and process.
    fn open_iovs(&self) -> Result<Arc<OwnedFd>, Errno> {
        let iovs = self.iovs();
        let stat = rustix::fs::stat(&iovs)?;
        let key = (Generation::current(), stat.st_dev, stat.st_ino);
        if let Some(life) = lives().iter().find(|life| life.key == key) {
            return Ok(life.dir.clone());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = Arc::new(rustix::fs::open(&iovs, flags, Mode::empty())?);
        lives().push(Life { key, dir: dir.clone() });
        Ok(dir)
    }

    /// Registers `target` as `name` where the mount takes no link, since it is read-only.
    pub(crate) fn register(&self, name: &OsStr, target: &Path) -> Result<(), Errno> {
        let target = field(target.as_os_str())?;
        let arg = ioctl::RegisterArg { name: field(name)?, target };
        // SAFETY: `REGISTER` reads one RegisterArg.
        unsafe { command(self.open_iovs()?.as_fd(), ioctl::REGISTER, &raw const arg) }
    }

    /// Ends a registration where no link can be removed.
    pub(crate) fn unregister(&self, name: &OsStr) -> Result<(), Errno> {
        let arg = ioctl::UnregisterArg { name: field(name)? };
        // SAFETY: `UNREGISTER` reads one UnregisterArg.
        unsafe { command(self.open_iovs()?.as_fd(), ioctl::UNREGISTER, &raw const arg) }
    }
}

/// A name of an ioctl's argument, which a NUL ends.
fn field<const N: usize>(name: &OsStr) -> Result<[u8; N], Errno> {
    let mut field = [0; N];
    field
        .get_mut(..name.len())
        .filter(|_| name.len() < N)
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(name.as_bytes());
    Ok(field)
}

/// A directory kept open. A forked child needs its own; the number of the device tells mounts apart.
struct Life {
    key: (Generation, u64, u64),
    dir: Arc<OwnedFd>,
}

fn lives() -> std::sync::MutexGuard<'static, Vec<Life>> {
    static LIVES: Mutex<Vec<Life>> = Mutex::new(Vec::new());
    LIVES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The mount point of the 3FS mount that holds `path`, which must exist.
pub fn mount_point(path: &Path) -> Result<PathBuf, Error> {
    let wrap = |what, path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| Error::Os {
            what,
            path,
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        }
    };
    let real = std::fs::canonicalize(path).map_err(wrap("resolve", path))?;
    let table = Path::new("/proc/self/mountinfo");
    let mountinfo = std::fs::read(table).map_err(wrap("read", table))?;
    let any_type = std::env::var_os(ANY_FS_TYPE).is_some_and(|value| value == "yes");
    let mut candidates: Vec<PathBuf> =
        candidates(&mountinfo, any_type).filter(|point| real.starts_with(point)).collect();
    // All are prefixes of one path: the longest is the innermost mount. Only those are looked into, so that a dead
    // mount elsewhere cannot stall the search.
    candidates.sort_unstable_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    candidates
        .into_iter()
        .find(|point| rustix::fs::stat(point.join(VIRTUAL_DIR)).is_ok())
        .ok_or_else(|| Error::NoMount(path.to_owned()))
}

/// Mount points that may be 3FS's, from the text of `/proc/self/mountinfo`. A mount of `3fs-virt` itself stands
/// for the directory that holds it.
fn candidates(mountinfo: &[u8], any_type: bool) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|b| *b == b'\n').filter_map(move |line| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').filter(|field| !field.is_empty()).collect();
        if fields.len() < 10 || !(any_type || fields[fields.len() - 3] == b"fuse.hf3fs") {
            return None;
        }
        let mut point = normalised(&PathBuf::from(OsString::from_vec(unescaped(fields[4]))));
        if point.file_name() == Some(OsStr::new(VIRTUAL_DIR)) {
            point.pop();
        }
        Some(point)
    })
}

/// Decodes the octal escapes of mountinfo (`\040` is a space).
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| matches!(d, b'0'..=b'7')));
        let value = octal.map(|digits| digits.iter().fold(0u32, |value, d| value * 8 + u32::from(d - b'0')));
        match value.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn normalised(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// Links the file `target` as `link`, both on one 3FS mount. Where the daemon cannot judge who asks, as in a user namespace,
/// `linkat(2)` does it.
pub fn hardlink(target: &Path, link: &Path) -> Result<(), Error> {
    let (parent, name) = split_link(link)?;
    let file = rustix::fs::open(target, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::os("open", target))?;
    let of_file = rustix::fs::fstat(&file).map_err(Error::os("stat", target))?;
    let of_parent = rustix::fs::statat(CWD, parent, AtFlags::empty()).map_err(Error::os("stat", parent))?;
    // The ioctl carries a bare inode number, which means another directory on another mount.
    if of_file.st_dev != of_parent.st_dev {
        return Err(Error::os("link across mounts to", link)(Errno::XDEV));
    }
    let mut arg = ioctl::HardlinkArg { parent: of_parent.st_ino, name: [0; 255], pad: 0 };
    arg.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: `HARDLINK` reads one HardlinkArg.
    let linked = unsafe { command(file.as_fd(), ioctl::HARDLINK, &raw const arg) };
    let linked = match linked {
        Err(Errno::PERM | Errno::ACCESS) => {
            rustix::fs::linkat(CWD, target, CWD, link, AtFlags::SYMLINK_FOLLOW)
        }
        linked => linked,
    };
    linked.map_err(Error::os("link", link))
}

/// The directory and the name of a new link.
fn split_link(link: &Path) -> Result<(&Path, &OsStr), Error> {
    let bytes = link.as_os_str().as_bytes();
    let (parent, name) = match bytes.iter().rposition(|b| *b == b'/') {
        Some(0) => (&b"/"[..], &bytes[1..]),
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (&b"."[..], bytes),
    };
    if matches!(name, b"" | b"." | b"..") {
        return Err(Error::Invalid(format!("'{}' does not end in a file name", link.display())));
    }
    // The argument has 255 bytes with the NUL.
    if name.len() > 254 {
        return Err(Error::os("link", link)(Errno::NAMETOOLONG));
    }
    Ok((Path::new(OsStr::from_bytes(parent)), OsStr::from_bytes(name)))
}

/// Frees the blocks of the byte `ranges` of `file`, at most [`ioctl::PUNCH_HOLE_MAX`] of them; 3FS wants multiples
/// of the file's chunk size. A file that is open for reading only is opened for writing, if the caller may.
pub fn punch_hole(
    file: BorrowedFd<'_>,
    ranges: impl ExactSizeIterator<Item = Range<u64>>,
    flags: u64,
) -> Result<(), Error> {
    let n = ranges.len();
    if n > ioctl::PUNCH_HOLE_MAX {
        return Err(Error::Invalid(format!("{n} ranges, more than {}", ioctl::PUNCH_HOLE_MAX)));
    }
    let zeros = [0; ioctl::PUNCH_HOLE_MAX];
    let mut arg = Box::new(ioctl::PunchHoleArg { n: n as i32, pad: 0, flags, start: zeros, end: zeros });
    for (i, range) in ranges.take(n).enumerate() {
        if range.start > range.end {
            return Err(Error::Invalid(format!(
                "range {i} ends at {}, before its start {}",
                range.end, range.start
            )));
        }
        (arg.start[i], arg.end[i]) = (range.start, range.end);
    }
    // SAFETY: `PUNCH_HOLE` reads one PunchHoleArg.
    let punched = unsafe { command(file, ioctl::PUNCH_HOLE, &raw const *arg) };
    let punched = match punched {
        Err(Errno::PERM | Errno::ACCESS | Errno::BADF) => punch_by_fallocate(file, &arg),
        punched => punched,
    };
    punched.map_err(Error::os("punch holes into", format!("fd {}", file.as_raw_fd())))
}

fn punch_by_fallocate(file: BorrowedFd<'_>, arg: &ioctl::PunchHoleArg) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = match rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Err(Errno::BADF), // no such fd
        opened => opened?,
    };
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let ranges = arg.start.iter().zip(&arg.end).take(usize::try_from(arg.n).unwrap_or(0));
    ranges
        .filter(|(start, end)| start < end)
        .try_for_each(|(start, end)| rustix::fs::fallocate(&file, mode, *start, end - start))
}

/// Runs an ioctl that reads one `T`.
///
/// # Safety
/// `request` must be an ioctl that reads no more than a `T` and writes nothing.
unsafe fn command<T>(fd: BorrowedFd<'_>, request: u32, arg: *const T) -> Result<(), Errno> {
    // SAFETY: as the caller promised; the fd is borrowed.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_ulong, arg) };
    if rc >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(text: &str, any_type: bool) -> Vec<String> {
        candidates(text.as_bytes(), any_type).map(|p| p.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn only_fuse_hf3fs_lines_with_ten_fields_count() {
        let text = "36 35 0:44 / /data rw,nosuid shared:1 - fuse.hf3fs hf3fs.x rw\n\
                    37 35 0:45 / /short rw - fuse.hf3fs  rw\n\
                    38 35 0:46 / /other rw shared:2 - ext4 /dev/sda rw\n\n";
        assert_eq!(points(text, false), ["/data"]);
        assert_eq!(points(text, true), ["/data", "/other"]);
    }

    #[test]
    fn escapes_are_decoded_and_a_mount_of_3fs_virt_stands_for_its_parent() {
        let text = "1 2 0:1 / /my\\040data\\134x/3fs-virt rw a:1 - fuse.hf3fs s rw\n\
                    1 2 0:1 / /a\\04 rw a:1 - fuse.hf3fs s rw\n\
                    1 2 0:1 / /a\\777b rw a:1 - fuse.hf3fs s rw\n";
        assert_eq!(points(text, false), ["/my data\\x", "/a\\04", "/a\\777b"]);
    }

    #[test]
    fn a_path_that_does_not_exist_has_no_mount() {
        assert_eq!(Mount::of("/no/such/path").unwrap_err().errno(), libc::ENOENT);
    }

    #[test]
    fn a_path_on_another_file_system_has_no_mount() {
        assert!(matches!(Mount::of("/proc/self"), Err(Error::NoMount(_))));
    }

    #[test]
    fn a_link_is_split_at_its_last_slash() {
        let split = |path: &'static str| {
            split_link(Path::new(path)).map(|(p, n)| (p.to_str().unwrap(), n.to_str().unwrap())).ok()
        };
        assert_eq!(split("/a/b"), Some(("/a", "b")));
        assert_eq!(split("/b"), Some(("/", "b")));
        assert_eq!(split("b"), Some((".", "b")));
        for bad in ["", "/", "a/", "a/..", "."] {
            assert_eq!(split(bad), None, "{bad}");
        }
        let long = "x".repeat(255);
        assert_eq!(split_link(Path::new(&long)).unwrap_err().errno(), libc::ENAMETOOLONG);
    }

    #[test]
    fn more_ranges_than_the_ioctl_holds_are_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let punch = |n: usize| punch_hole(file.as_fd(), vec![0..1u64; n].into_iter(), 0).unwrap_err().errno();
        assert_eq!(punch(1001), libc::EINVAL);
        assert_eq!(punch(1000), libc::ENOTTY);
        #[expect(clippy::reversed_empty_ranges)]
        let backwards = punch_hole(file.as_fd(), std::iter::once(2..1u64), 0);
        assert_eq!(backwards.unwrap_err().errno(), libc::EINVAL);
    }
}
