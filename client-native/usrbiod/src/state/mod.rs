//! What a successor must know: one sparse file per session, mapped by the daemon. `kill -9` loses none of it,
//! since the page cache holds the stores; a power cut ends the mounts as well, so nothing is ever synced.
//!
//! The file is a directory of tables and the tables (`file`). A record's first word is its tag: 0 is free. A record is
//! written with tag 0, then tagged, so that a successor never sees half of one.
//!
//! Versions: see `records` for how a record gains a field. A successor reads what an older version wrote, and what a newer one
//! wrote as long as that used nothing new: spare bytes that are zero, tables that are unknown and empty. The first version
//! had another file, which `migrate` reads. What cannot be read is refused, session by session.

mod file;
mod migrate;
pub mod records;
mod table;
#[cfg(test)]
mod tests;

use crate::types::{Errno, Result};
use file::Directory;
use records::{ConfRec, HeaderRec, LockRec, NodeRec, ObjectRec, OpenRec, ReplyRec};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
pub use table::Table;

/// Requests that can be noted, come what may: as many as the pool has workers for one session.
const NOTED: u32 = 64;

const SUFFIX: &str = ".state";
/// A state that is being migrated; it takes the place of the old one when it is whole.
const UNFINISHED: &str = ".state.new";

/// Why there is no state to go on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A system call failed. `ENOSPC`: the file system of the state directory is full.
    #[error("{0}")]
    System(#[from] Errno),
    /// This version cannot go on with it; half a sentence that says why.
    #[error("{0}")]
    Refused(String),
}

impl OpenError {
    fn refused(why: impl Into<String>) -> OpenError {
        OpenError::Refused(why.into())
    }
}

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
    /// Opens the state of session `name` in `dir`, or makes it. That of the first version is migrated before.
    pub fn open(dir: impl AsFd, name: &str) -> std::result::Result<SessionState, OpenError> {
        let dir = dir.as_fd();
        let path = format!("{name}{SUFFIX}");
        let file = open_file(dir, &path, OFlags::CREATE)?;
        if !migrate::is_first_version(&file)? {
            return SessionState::map(file);
        }
        let unfinished = format!("{name}{UNFINISHED}");
        remove_if_there(dir, &unfinished)?;
        let migrated = open_file(dir, &unfinished, OFlags::CREATE | OFlags::EXCL)
            .map_err(OpenError::from)
            .and_then(|new| migrate::migrate(&file, new));
        if let Err(error) = migrated.and_then(|()| Ok(rustix::fs::renameat(dir, &unfinished, dir, &path)?)) {
            remove_if_there(dir, &unfinished)?;
            return Err(error);
        }
        tracing::info!(session = name, "the state of the first version was migrated");
        SessionState::map(open_file(dir, &path, OFlags::empty())?)
    }

    /// A state that nothing outlives, for sessions that nobody takes over.
    pub fn anonymous() -> Result<SessionState> {
        let file = rustix::fs::memfd_create("usrbiod-state", rustix::fs::MemfdFlags::CLOEXEC)?;
        SessionState::map(file).map_err(|error| match error {
            OpenError::System(errno) => errno,
            OpenError::Refused(_) => Errno::BADMSG,
        })
    }

    /// Is there a state of session `name` in `dir`, of whatever version?
    pub fn exists(dir: impl AsFd, name: &str) -> bool {
        rustix::fs::statat(dir, format!("{name}{SUFFIX}"), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The header of a state that nobody goes on with, of whatever version that is known.
    pub fn leftover_header(dir: impl AsFd, name: &str) -> std::result::Result<HeaderRec, OpenError> {
        let file = open_file(dir.as_fd(), &format!("{name}{SUFFIX}"), OFlags::empty())?;
        if migrate::is_first_version(&file)? {
            return migrate::header(&file);
        }
        Ok(SessionState::map(file)?.header())
    }

    /// Names of all sessions that have a state in `dir`, of whatever version.
    pub fn names(dir: impl AsFd) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in rustix::fs::Dir::read_from(dir)? {
            let entry = entry?;
            let file = entry.file_name().to_str().ok();
            let name = file.and_then(|f| f.strip_suffix(SUFFIX).or(f.strip_suffix(UNFINISHED)));
            names.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
        }
        Ok(names)
    }

    /// Removes the state of session `name` from `dir`.
    pub fn remove(dir: impl AsFd, name: &str) -> Result<()> {
        remove_if_there(dir.as_fd(), &format!("{name}{UNFINISHED}"))?;
        remove_if_there(dir.as_fd(), &format!("{name}{SUFFIX}"))
    }

    fn map(file: OwnedFd) -> std::result::Result<SessionState, OpenError> {
        let mut directory = Directory::read(&file)?.unwrap_or_else(Directory::empty);
        // The order of the kinds, which is that of the tables in a new file.
        let header = directory.place::<HeaderRec>();
        let replies = directory.place::<ReplyRec>();
        let objects = directory.place::<ObjectRec>();
        let opens = directory.place::<OpenRec>();
        let locks = directory.place::<LockRec>();
        let nodes = directory.place::<NodeRec>();
        let settings = directory.place::<ConfRec>();
        let entries = directory.entries().to_vec();
        let map = Arc::new(directory.map(file)?);
        let known = [header, replies, objects, opens, locks, nodes, settings];
        for (index, entry) in entries.iter().enumerate() {
            if !known.contains(&index) && !table::is_empty(&map, entry) {
                let kind = entry.kind;
                let why =
                    format!("a newer version wrote a table of kind {kind}, which this usrbiod does not know");
                return Err(OpenError::refused(why));
            }
        }
        let state = SessionState {
            header: Table::open(&map, header, &entries[header])?,
            replies: Table::open(&map, replies, &entries[replies])?,
            objects: Table::open(&map, objects, &entries[objects])?,
            opens: Table::open(&map, opens, &entries[opens])?,
            locks: Table::open(&map, locks, &entries[locks])?,
            nodes: Table::open(&map, nodes, &entries[nodes])?,
            settings: Table::open(&map, settings, &entries[settings])?,
        };
        if state.header.get(0).is_none() {
            state.header.insert(&HeaderRec { tag: 1, ..HeaderRec::default() });
        }
        // A request that could not be noted would be done twice after a crash.
        state.replies.reserve(NOTED)?;
        Ok(state)
    }

    /// What was agreed for the whole session.
    pub fn header(&self) -> HeaderRec {
        self.header.get(0).unwrap_or_default()
    }

    /// Replaces what was agreed for the whole session.
    pub fn set_header(&self, header: &HeaderRec) {
        self.header.overwrite(0, &HeaderRec { tag: 1, ..*header });
    }
}

fn open_file(dir: BorrowedFd<'_>, path: &str, how: OFlags) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | how;
    rustix::fs::openat(dir, path, flags, Mode::RUSR | Mode::WUSR)
}

fn remove_if_there(dir: BorrowedFd<'_>, path: &str) -> Result<()> {
    match rustix::fs::unlinkat(dir, path, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
