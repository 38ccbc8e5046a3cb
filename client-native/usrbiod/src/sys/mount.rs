//! Mounting FUSE, and what is mounted where.

use crate::types::{Errno, Result};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The file system type that USRBIO clients look for.
pub const FSTYPE: &str = "fuse.hf3fs";

/// Longest read that the kernel sends.
const MAX_READ: u32 = 1 << 20;

/// Mounts `/dev/fuse` fd `fuse` at `target`. The mount lives as long as any duplicate of the fd.
pub fn mount_fuse(fuse: &OwnedFd, cluster: &str, target: &Path) -> Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={MAX_READ}",
        fuse.as_raw_fd()
    );
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(format!("hf3fs.{cluster}"), target, FSTYPE, flags, Some(options.as_c_str()))
}

/// Unmounts `target`; a mount that is in use goes when its last file is closed. `true`: it was not in use.
pub fn unmount(target: &Path) -> Result<bool> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::BUSY) => {
            rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
            Ok(false)
        }
        Err(errno) => Err(errno),
    }
}

/// The types of what is mounted at exactly `path`, the topmost last.
pub fn mounted_at(path: &Path) -> std::io::Result<Vec<String>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|b| *b == b'\n').filter_map(parse_line);
    Ok(lines.filter(|(at, _)| at == path).map(|(_, fstype)| fstype).collect())
}

/// Mount point and type of a line of mountinfo.
fn parse_line(line: &[u8]) -> Option<(PathBuf, String)> {
    let mut fields = line.split(|b| *b == b' ');
    let path = unescape(fields.nth(4)?);
    let fstype = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some((path.into(), String::from_utf8_lossy(fstype).into_owned()))
}

/// Space, tab, newline and backslash are written as octal numbers there.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let byte = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

/// Is `path` a FUSE mount that lost its daemon?
pub fn is_dead(path: &Path) -> bool {
    rustix::fs::stat(path.as_os_str().as_bytes()).is_err_and(|errno| errno == Errno::NOTCONN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_with_their_escapes() {
        let line =
            br"41 29 0:36 / /mnt/my\040data rw,nosuid shared:7 master:2 - fuse.hf3fs hf3fs.c rw,user_id=0";
        let parsed = parse_line(line).unwrap();
        assert_eq!(parsed, (PathBuf::from("/mnt/my data"), "fuse.hf3fs".to_owned()));
        assert_eq!(parse_line(b"41 29 0:36 / /mnt"), None);
        assert_eq!(unescape(br"a\04\x\134"), r"a\04\x\");
    }
}
