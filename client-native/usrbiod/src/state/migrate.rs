//! Reads the state of an earlier version of usrbiod into a new file.
//!
//! The old file is only read. The caller puts the new one in its place when it is whole, so that a process that dies in
//! between leaves the old one, and its successor begins again.

use super::records::{ConfRec, HeaderRec, LockRec, NodeRec, ObjectRec, OpenRec, Record, ReplyRec};
use super::{OpenError, SessionState, Table};
use rustix::io::pread;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use zerocopy::FromBytes;

/// The first version, `usrbiod1` (commit 38167ef): seven tables of fixed places, of which the header's is the first. Each
/// begins with its high-water mark in a word of its own.
mod first {
    use zerocopy::{FromBytes, Immutable};

    pub const MAGIC: u64 = u64::from_le_bytes(*b"usrbiod1");
    /// Place of the header's only record, in a page of its own.
    pub const HEADER_AT: u64 = 8;
    pub const HEADER_LEN: u64 = 4096;
    pub const REPLIES: u32 = 256;
    pub const OBJECTS: u32 = 1 << 16;
    pub const OPENS: u32 = 1 << 22;
    pub const LOCKS: u32 = 1 << 18;
    pub const NODES: u32 = 1 << 24;
    pub const SETTINGS: u32 = 1 << 16;

    #[derive(FromBytes, Immutable)]
    #[repr(C)]
    pub struct Header {
        pub tag: u32,
        pub init_done: u32,
        pub magic: u64,
        pub fuse_minor: u32,
        pub max_write: u32,
        pub fuse_flags: u64,
        pub semaphores: [[u8; 64]; 3],
    }

    #[derive(FromBytes, Immutable)]
    #[repr(C)]
    pub struct Reply {
        pub tag: u32,
        pub opcode: u32,
        pub unique: u64,
        pub errno: u32,
        pub pad: u32,
        pub node: u64,
        pub fh: u64,
        pub ino: u64,
        pub begun: u64,
        pub opened: u64,
    }

    #[derive(FromBytes, Immutable)]
    #[repr(C)]
    pub struct Object {
        pub tag: u32,
        pub uid: u32,
        pub gid: u32,
        pub tgid: u32,
        pub start: u64,
        pub number: u32,
        pub pad: u32,
        pub journal_sq: u32,
        pub journal_cq: u32,
        pub name_len: u32,
        pub target_len: u32,
        pub name: [u8; 256],
        pub target: [u8; 512],
        pub len: u64,
        pub spare: u64,
    }

    #[derive(FromBytes, Immutable)]
    #[repr(C)]
    pub struct Open {
        pub tag: u32,
        pub generation: u32,
        pub node: u64,
        pub flags: u32,
        pub uid: u32,
        pub tgid: u32,
        pub pad: u32,
    }

    #[derive(FromBytes, Immutable)]
    #[repr(C)]
    pub struct Lock {
        pub tag: u32,
        pub kind: u32,
        pub dev: u64,
        pub ino: u64,
        pub owner: u64,
        pub start: u64,
        pub end: u64,
        pub pid: u32,
        pub pad: u32,
    }

    #[derive(FromBytes, Immutable)]
    #[repr(C)]
    pub struct Node {
        pub tag: u32,
        pub backing_id: u32,
        pub nlookup: u64,
        pub ino: u64,
        pub handle_type: i32,
        pub handle_len: u32,
        pub handle: [u8; 80],
        pub dev: u64,
        pub spare: u64,
    }

    #[derive(FromBytes, Immutable)]
    #[repr(C)]
    pub struct Conf {
        pub tag: u32,
        pub uid: u32,
        pub key_len: u32,
        pub value_len: u32,
        pub key: [u8; 72],
        pub value: [u8; 40],
    }
}

/// Records that are read at once.
const BATCH: u32 = 256;

/// Is it a state of the first version?
pub(super) fn is_first_version(file: &OwnedFd) -> Result<bool, OpenError> {
    let mut magic = [0; 8];
    let at = first::HEADER_AT + offset_of!(first::Header, magic) as u64;
    Ok(pread(file, &mut magic, at)? == magic.len() && magic == first::MAGIC.to_ne_bytes())
}

/// The header of `old`, of the first version.
pub(super) fn header(old: &OwnedFd) -> Result<HeaderRec, OpenError> {
    Old { file: old, at: 0 }.header()
}

/// Writes what `old`, of the first version, holds into `new`, which is empty. Indexes stay: node ids and file handles that
/// the kernel knows are made from them.
pub(super) fn migrate(old: &OwnedFd, new: OwnedFd) -> Result<(), OpenError> {
    let state = SessionState::map(new)?;
    let mut old = Old { file: old, at: first::HEADER_LEN };
    state.set_header(&old.header()?);
    old.copy(first::REPLIES, &state.replies, |r: first::Reply| ReplyRec {
        tag: r.tag,
        opcode: r.opcode,
        unique: r.unique,
        node: r.node,
        fh: r.fh,
        ino: r.ino,
        begun: r.begun,
        opened: r.opened,
        errno: r.errno,
        ..ReplyRec::default()
    })?;
    old.copy(first::OBJECTS, &state.objects, |r: first::Object| ObjectRec {
        tag: r.tag,
        uid: r.uid,
        gid: r.gid,
        tgid: r.tgid,
        start: r.start,
        journal_sq: r.journal_sq,
        journal_cq: r.journal_cq,
        len: r.len,
        number: r.number,
        name_len: r.name_len,
        target_len: r.target_len,
        name: r.name,
        target: r.target,
        spare: [0; 19],
    })?;
    old.copy(first::OPENS, &state.opens, |r: first::Open| OpenRec {
        tag: r.tag,
        generation: r.generation,
        node: r.node,
        flags: r.flags,
        uid: r.uid,
        tgid: r.tgid,
        ..OpenRec::default()
    })?;
    old.copy(first::LOCKS, &state.locks, |r: first::Lock| LockRec {
        tag: r.tag,
        kind: r.kind,
        dev: r.dev,
        ino: r.ino,
        owner: r.owner,
        start: r.start,
        end: r.end,
        pid: r.pid,
        ..LockRec::default()
    })?;
    old.copy(first::NODES, &state.nodes, |r: first::Node| NodeRec {
        tag: r.tag,
        backing_id: r.backing_id,
        nlookup: r.nlookup,
        ino: r.ino,
        dev: r.dev,
        handle_type: r.handle_type,
        handle_len: r.handle_len,
        handle: r.handle,
        spare: [0; 6],
    })?;
    old.copy(first::SETTINGS, &state.settings, |r: first::Conf| ConfRec {
        tag: r.tag,
        uid: r.uid,
        key_len: r.key_len,
        value_len: r.value_len,
        key: r.key,
        value: r.value,
        spare: [0; 4],
    })
}

/// A file of the first version, read from one table to the next.
struct Old<'a> {
    file: &'a OwnedFd,
    at: u64,
}

impl Old<'_> {
    fn read(&self, mut bytes: &mut [u8], mut at: u64) -> Result<(), OpenError> {
        while !bytes.is_empty() {
            match pread(self.file, &mut *bytes, at)? {
                0 => return Err(OpenError::refused("its file is cut short")),
                got => (bytes, at) = (&mut bytes[got..], at + got as u64),
            }
        }
        Ok(())
    }

    /// The tag is not asked for: a daemon that died while it changed the header had cleared it, and every field is still
    /// either the old one or the new.
    fn header(&self) -> Result<HeaderRec, OpenError> {
        let mut bytes = [0; size_of::<first::Header>()];
        self.read(&mut bytes, first::HEADER_AT)?;
        let old = zerocopy::transmute!(bytes);
        let first::Header { tag: _, init_done, magic: _, fuse_minor, max_write, fuse_flags, semaphores } =
            old;
        Ok(HeaderRec {
            tag: 1,
            init_done,
            fuse_minor,
            max_write,
            fuse_flags,
            semaphores,
            ..HeaderRec::default()
        })
    }

    fn copy<O: FromBytes, R: Record>(
        &mut self,
        capacity: u32,
        table: &Table<R>,
        convert: impl Fn(O) -> R,
    ) -> Result<(), OpenError> {
        let mut mark = [0; 8];
        self.read(&mut mark, self.at)?;
        let records = (u64::from_ne_bytes(mark) as u32).min(capacity);
        table.reserve(records)?;
        let mut bytes = vec![0; BATCH as usize * size_of::<O>()];
        for from in (0..records).step_by(BATCH as usize) {
            let batch = &mut bytes[..BATCH.min(records - from) as usize * size_of::<O>()];
            self.read(batch, self.at + 8 + u64::from(from) * size_of::<O>() as u64)?;
            for (index, old) in (from..).zip(batch.chunks_exact(size_of::<O>())) {
                let tagged = old[..4] != [0; 4];
                if let (true, Ok(old)) = (tagged, O::read_from_bytes(old)) {
                    table.restore(index, &convert(old));
                }
            }
        }
        self.at = (self.at + 8 + u64::from(capacity) * size_of::<O>() as u64).next_multiple_of(4096);
        Ok(())
    }
}
