//! What a successor must know: one sparse file per session, mapped by the daemon. `kill -9` loses none of it,
//! since the page cache holds the stores; a power cut ends the mounts as well, so nothing is ever synced.
//!
//! The file is a header page and tables of fixed capacity. A record's first word is its tag: 0 is free. A record is
//! written with tag 0, then tagged, so that a successor never sees half of one.

pub mod records;
mod table;

use crate::types::{Errno, Result};
use records::{ConfRec, HeaderRec, LockRec, NodeRec, ObjectRec, OpenRec, ReplyRec};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
pub use table::{Record, Table};

/// First 8 bytes of a state file; the last digit is the version of the records.
const MAGIC: u64 = u64::from_le_bytes(*b"usrbiod1");

const HEADER_LEN: usize = 4096;
const REPLIES: u32 = 256;
const OBJECTS: u32 = 1 << 16;
const OPENS: u32 = 1 << 22;
const LOCKS: u32 = 1 << 18;
const NODES: u32 = 1 << 24;
const SETTINGS: u32 = 1 << 16;

/// The state of one session. Dropping it leaves the file.
pub struct SessionState {
    header: Table<HeaderRec>,
    /// Outcomes of requests whose reply the kernel may not have seen; the index is the FUSE worker's number.
    pub replies: Table<ReplyRec>,
    /// Iovs and rings.
    pub objects: Table<ObjectRec>,
    /// Open files and directories; the index is part of the FUSE file handle.
    pub opens: Table<OpenRec>,
    /// POSIX and BSD locks held.
    pub locks: Table<LockRec>,
    /// Inodes that the kernel knows; node id = index + 2.
    pub nodes: Table<NodeRec>,
    /// What users set by `set-conf`.
    pub settings: Table<ConfRec>,
}

impl SessionState {
    /// Opens the state of session `name` in `dir`, or makes it. `EBADMSG`: there is a file, of another version or none of
    /// ours.
    pub fn open(dir: impl AsFd, name: &str) -> Result<SessionState> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(dir, format!("{name}.state"), flags, Mode::RUSR | Mode::WUSR)?;
        SessionState::map(file)
    }

    /// A state that nothing outlives, for sessions that nobody takes over.
    pub fn anonymous() -> Result<SessionState> {
        SessionState::map(rustix::fs::memfd_create("usrbiod-state", rustix::fs::MemfdFlags::CLOEXEC)?)
    }

    /// Is there a state of session `name` in `dir`, of whatever version?
    pub fn exists(dir: impl AsFd, name: &str) -> bool {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statat(dir, format!("{name}.state"), flags).is_ok()
    }

    /// Names of all sessions that have a state in `dir`, of whatever version.
    pub fn names(dir: impl AsFd) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_str().ok().and_then(|file| file.strip_suffix(".state"));
            names.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
        }
        Ok(names)
    }

    /// Removes the state of session `name` from `dir`.
    pub fn remove(dir: impl AsFd, name: &str) -> Result<()> {
        rustix::fs::unlinkat(dir, format!("{name}.state"), rustix::fs::AtFlags::empty())
    }

    fn map(file: OwnedFd) -> Result<SessionState> {
        let fresh = rustix::fs::fstat(&file)?.st_size == 0;
        let mut len = HEADER_LEN;
        let mut section = |bytes: usize| {
            let at = len;
            len = (len + bytes).next_multiple_of(4096);
            at
        };
        let replies = section(Table::<ReplyRec>::bytes(REPLIES));
        let objects = section(Table::<ObjectRec>::bytes(OBJECTS));
        let opens = section(Table::<OpenRec>::bytes(OPENS));
        let locks = section(Table::<LockRec>::bytes(LOCKS));
        let nodes = section(Table::<NodeRec>::bytes(NODES));
        let settings = section(Table::<ConfRec>::bytes(SETTINGS));
        rustix::fs::ftruncate(&file, len as u64)?;
        let map = Arc::new(table::Mapping::new(&file, len)?);
        let header = Table::new(&map, 0, 1);
        if fresh {
            header.put(0, &HeaderRec { tag: 1, magic: MAGIC, ..HeaderRec::default() });
        }
        if header.get(0).is_none_or(|h: HeaderRec| h.magic != MAGIC) {
            return Err(Errno::BADMSG);
        }
        Ok(SessionState {
            header,
            replies: Table::new(&map, replies, REPLIES),
            objects: Table::new(&map, objects, OBJECTS),
            opens: Table::new(&map, opens, OPENS),
            locks: Table::new(&map, locks, LOCKS),
            nodes: Table::new(&map, nodes, NODES),
            settings: Table::new(&map, settings, SETTINGS),
        })
    }

    /// What was agreed for the whole session.
    pub fn header(&self) -> HeaderRec {
        self.header.get(0).unwrap_or_default()
    }

    /// Replaces what was agreed for the whole session.
    pub fn set_header(&self, header: &HeaderRec) {
        self.header.put(0, &HeaderRec { tag: 1, magic: MAGIC, ..*header });
    }
}
