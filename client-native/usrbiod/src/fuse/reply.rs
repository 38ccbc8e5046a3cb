//! What operations return, as wire structs.

use super::abi::{self, AttrOut, EntryOut, OpenOut, StatfsOut, StatxOut, SxTime, fopen};
use crate::fs::{Opened, Statfs, Statx};
use crate::types::{Attr, Entry, Errno, Result};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Writes `value` at the start of `body`; its length.
pub fn put<T: IntoBytes + Immutable>(body: &mut [u8], value: &T) -> Result<usize> {
    value.write_to_prefix(body).map_err(|_| Errno::OVERFLOW)?;
    Ok(size_of::<T>())
}

/// Writes `bytes` at the start of `body`; their length.
pub fn put_bytes(body: &mut [u8], bytes: &[u8]) -> Result<usize> {
    body.get_mut(..bytes.len()).ok_or(Errno::OVERFLOW)?.copy_from_slice(bytes);
    Ok(bytes.len())
}

fn wire(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.0 as u64,
        mtime: attr.mtime.0 as u64,
        ctime: attr.ctime.0 as u64,
        atimensec: attr.atime.1,
        mtimensec: attr.mtime.1,
        ctimensec: attr.ctime.1,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Answer to what resolves or makes a name.
pub fn entry(entry: &Entry) -> EntryOut {
    EntryOut {
        nodeid: entry.node.0,
        entry_valid: entry.attr.valid.into(),
        attr_valid: entry.attr.valid.into(),
        attr: wire(&entry.attr),
        ..EntryOut::default()
    }
}

/// Answer to `GETATTR` and `SETATTR`.
pub fn attr(attr: &Attr) -> AttrOut {
    AttrOut { attr_valid: attr.valid.into(), attr: wire(attr), ..AttrOut::default() }
}

/// Answer to `OPEN` of a file. Never `FOPEN_KEEP_CACHE`: pages of an earlier open may be older than what rings wrote.
pub fn opened(opened: &Opened) -> OpenOut {
    let mut open_flags = 0;
    if opened.backing_id.is_some() {
        open_flags |= fopen::PASSTHROUGH;
    } else if opened.direct_io {
        open_flags |= fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES;
    }
    OpenOut { fh: opened.fh, open_flags, backing_id: opened.backing_id.unwrap_or(0) as i32 }
}

/// Answer to `STATFS`.
pub fn statfs(from: &Statfs) -> StatfsOut {
    StatfsOut {
        blocks: from.blocks,
        bfree: from.bfree,
        bavail: from.bavail,
        files: from.files,
        ffree: from.ffree,
        bsize: from.bsize,
        namelen: from.namelen,
        frsize: from.frsize,
        ..StatfsOut::default()
    }
}

fn time(time: (i64, u32)) -> SxTime {
    SxTime { tv_sec: time.0, tv_nsec: time.1, reserved: 0 }
}

/// Answer to `STATX`.
pub fn statx(from: &Statx) -> StatxOut {
    let attr = &from.attr;
    let stat = abi::Statx {
        mask: from.mask,
        blksize: attr.blksize,
        attributes: from.attributes,
        attributes_mask: from.attributes_mask,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        btime: time(from.btime),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: attr.rdev >> 8 & 0xfff,
        rdev_minor: attr.rdev & 0xff | attr.rdev >> 12 & 0xfff00,
        ..abi::Statx::default()
    };
    StatxOut { attr_valid: attr.valid.into(), stat, ..StatxOut::new_zeroed() }
}

/// The value of an extended attribute or the list of them: `size` 0 asks for its length only.
pub fn xattr(body: &mut [u8], value: &[u8], size: u32) -> Result<usize> {
    match size as usize {
        0 => put(body, &abi::GetxattrOut { size: value.len() as u32, padding: 0 }),
        room if room < value.len() => Err(Errno::RANGE),
        _ => put_bytes(body, value),
    }
}

/// Entries of a directory, as many as there is room for.
pub struct DirWriter<'a> {
    body: &'a mut [u8],
    len: usize,
    plus: bool,
}

impl<'a> DirWriter<'a> {
    /// An empty listing; with `plus`, each entry carries its attributes.
    pub fn new(body: &'a mut [u8], size: u32, plus: bool) -> DirWriter<'a> {
        let room = body.len().min(size as usize);
        DirWriter { body: &mut body[..room], len: 0, plus }
    }

    /// Adds an entry, after which the listing goes on from `next`; false when there is no room. An entry without a
    /// node (`.`, `..`) is one that the kernel takes no lookup on.
    pub fn add(&mut self, name: &[u8], ino: u64, next: u64, kind: u8, node: Option<&Entry>) -> bool {
        let head = if self.plus { size_of::<EntryOut>() } else { 0 } + size_of::<abi::Dirent>();
        let total = abi::padded(head + name.len());
        let Some(place) = self.body.get_mut(self.len..self.len + total) else { return false };
        let dirent = abi::Dirent { ino, off: next, namelen: name.len() as u32, kind: u32::from(kind) };
        let (before, after) = place.split_at_mut(head);
        if self.plus {
            let out = node.map_or_else(EntryOut::default, entry);
            before[..size_of::<EntryOut>()].copy_from_slice(out.as_bytes());
        }
        before[head - size_of::<abi::Dirent>()..].copy_from_slice(dirent.as_bytes());
        after[..name.len()].copy_from_slice(name);
        after[name.len()..].fill(0);
        self.len += total;
        true
    }

    /// Bytes written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is nothing written yet?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;
    use zerocopy::FromBytes;

    #[test]
    fn directory_entries_are_padded_and_stop_where_the_room_ends() {
        let mut body = [0xff; 4096];
        let mut writer = DirWriter::new(&mut body, 70, false);
        assert!(writer.add(b"abc", 5, 1, 8, None));
        assert!(writer.add(b"12345678", 6, 2, 4, None));
        assert_eq!(writer.len(), 32 + 32);
        assert!(!writer.add(b"x", 7, 3, 8, None));
        let (first, rest) = abi::Dirent::read_from_prefix(&body).unwrap();
        assert_eq!((first.ino, first.off, first.namelen, first.kind), (5, 1, 3, 8));
        assert_eq!(&rest[..8], b"abc\0\0\0\0\0");
    }

    #[test]
    fn plus_entries_without_a_node_take_no_lookup() {
        let mut body = [0xff; 4096];
        let attr = Attr { ino: 9, size: 3, ..Attr::default() };
        let mut writer = DirWriter::new(&mut body, 4096, true);
        assert!(writer.add(b".", 1, 1, 4, None));
        assert!(writer.add(b"f", 9, 2, 8, Some(&Entry { node: NodeId(4), attr })));
        assert_eq!(writer.len(), 2 * 160);
        let dot = EntryOut::read_from_prefix(&body).unwrap().0;
        let file = EntryOut::read_from_prefix(&body[160..]).unwrap().0;
        assert_eq!((dot.nodeid, file.nodeid, file.attr.size), (0, 4, 3));
    }

    #[test]
    fn names_and_attributes_are_kept_only_where_that_is_said() {
        let by_default = Entry { node: NodeId(2), attr: Attr::default() };
        assert_eq!((entry(&by_default).entry_valid, entry(&by_default).attr_valid), (0, 0));
        let valid = Entry { attr: Attr { valid: 1, ..Attr::default() }, ..by_default };
        assert_eq!((entry(&valid).entry_valid, entry(&valid).attr_valid), (1, 1));
        assert_eq!(attr(&valid.attr).attr_valid, 1);
    }

    #[test]
    fn an_xattr_answers_its_length_its_value_or_erange() {
        let mut body = [0; 64];
        assert_eq!(xattr(&mut body, b"value", 0), Ok(8));
        assert_eq!(body[0], 5);
        assert_eq!(xattr(&mut body, b"value", 4), Err(Errno::RANGE));
        assert_eq!(xattr(&mut body, b"value", 5), Ok(5));
        assert_eq!(&body[..5], b"value");
    }

    #[test]
    fn a_backing_id_excludes_direct_io() {
        let both = Opened { fh: 1, backing_id: Some(3), direct_io: true };
        assert_eq!(opened(&both).open_flags, fopen::PASSTHROUGH);
        assert_eq!(opened(&both).backing_id, 3);
    }
}
