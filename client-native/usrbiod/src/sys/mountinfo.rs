//! Lines of `/proc/PID/mountinfo`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount, as one line shows it. Paths are undecoded: see [`unescape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// Number of the mount.
    pub id: u32,
    /// Number of the mount that it lies on.
    pub parent: u32,
    /// `major:minor` of the file system.
    pub device: &'a [u8],
    /// What of the file system is mounted.
    pub root: &'a [u8],
    /// Where.
    pub at: &'a [u8],
    /// The file system's type.
    pub fstype: &'a [u8],
    /// Neither the mount nor the file system is read-only.
    pub writable: bool,
}

impl<'a> Line<'a> {
    /// All lines of a table that are whole.
    pub fn all(table: &'a [u8]) -> impl Iterator<Item = Line<'a>> {
        table.split(|b| *b == b'\n').filter_map(Line::parse)
    }

    /// `id parent major:minor root mount-point options [tags] - type source super-options`.
    fn parse(line: &'a [u8]) -> Option<Line<'a>> {
        let mut fields = line.split(|b| *b == b' ');
        let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
        let (device, root, at, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let (fstype, _source, of_super) = (rest.next()?, rest.next()?, rest.next()?);
        let writable = !is_read_only(options) && !is_read_only(of_super);
        Some(Line { id, parent, device, root, at, fstype, writable })
    }
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn is_read_only(options: &[u8]) -> bool {
    options.split(|b| *b == b',').any(|option| option == b"ro")
}

/// Space, tab, newline and backslash are written as octal numbers there.
pub fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let byte = octal.and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_their_options_and_escapes() {
        let table: &[u8] =
            b"41 29 0:36 /a\\040b /mnt/my\\040data rw,nosuid shared:7 master:2 - fuse.hf3fs hf3fs.c rw,x=1\n\
            42 41 0:36 / /ro ro,relatime - fuse.hf3fs s rw\n43 41 8:1 / /sb rw - ext4 /dev/sda ro\n\
            44 41 0:36 / /mnt\nx 1 0:1 / /a rw - t s rw\n\n";
        let lines: Vec<Line<'_>> = Line::all(table).collect();
        let text = |field| std::str::from_utf8(field).unwrap();
        let seen: Vec<_> =
            lines.iter().map(|l| (l.id, l.parent, text(l.device), text(l.fstype), l.writable)).collect();
        let expected = [
            (41, 29, "0:36", "fuse.hf3fs", true),
            (42, 41, "0:36", "fuse.hf3fs", false),
            (43, 41, "8:1", "ext4", false),
        ];
        assert_eq!(seen, expected);
        assert_eq!((unescape(lines[0].root), unescape(lines[0].at)), ("/a b".into(), "/mnt/my data".into()));
        assert_eq!(unescape(br"a\04\x\134"), PathBuf::from(r"a\04\x\"));
    }
}
