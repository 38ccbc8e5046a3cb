//! Numbers and attributes of what the virtual tree shows. The numbers are those of 3FS, whose tools know them.

use crate::types::{Attr, Caller, Entry, NodeId};
use std::ffi::CStr;
use usrbio_wire::Priority;

const TREE: u64 = 0xffff_ffff_ffff_fffe;
const RM_RF: u64 = 0xffff_ffff_ffff_fffd;
const IOVS: u64 = 0xffff_ffff_8000_0000;
const GET_CONF: u64 = 0xffff_ffff_0000_0000;
const SET_CONF: u64 = 0xffff_fffe_8000_0000;
/// The link that the kernel is told was made where a link is an order. It is never cached nor found again.
const ORDER: u64 = 0xffff_fffd_0000_0000;
/// In the root of a volume the directories have the numbers above. In any other directory, which may be the root of a mount
/// (`subPath`), they have numbers of their own, since a directory has one place only: this, their kind, and the
/// number of the directory, which is below 2^56.
const ELSEWHERE: u64 = 0xe000_0000_0000_0000;
const KIND_SHIFT: u32 = 56;
const PLACE: u64 = (1 << KIND_SHIFT) - 1;
/// Object `k` of `iovs` has this number less `k`.
const FIRST_OBJECT: u64 = IOVS - 65_535;
const OBJECTS: u64 = 1 << 16;

/// Something in the virtual tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Virtual {
    /// `3fs-virt`.
    Tree,
    /// `rm-rf`: a link made in it, or a directory moved to it, is removed with all below.
    RmRf,
    /// `iovs`: registered Iovs and rings, and the submit semaphores.
    Iovs,
    /// `get-conf`: links to the values of settings.
    GetConf,
    /// `set-conf`: a link made in it sets the key of its name.
    SetConf,
    /// A link in `iovs` to a submit semaphore.
    Semaphore(Priority),
    /// An Iov or ring, by its number.
    Object(u32),
    /// A link in `get-conf`, by the number of its key.
    Value(usize),
    /// See [`ORDER`].
    Order,
}

impl Virtual {
    /// The directories in the tree, in the order of a listing.
    pub const DIRECTORIES: [(&CStr, Virtual); 4] = [
        (c"rm-rf", Virtual::RmRf),
        (c"iovs", Virtual::Iovs),
        (c"get-conf", Virtual::GetConf),
        (c"set-conf", Virtual::SetConf),
    ];

    /// What a node is, if it is virtual.
    pub fn of(node: NodeId) -> Option<Virtual> {
        if node.0 & 0xf000_0000_0000_0000 == ELSEWHERE {
            let kind = (node.0 >> KIND_SHIFT & 0xf) as usize;
            return Virtual::with_a_place().nth(kind).filter(|_| node.0 & PLACE > NodeId::ROOT.0);
        }
        Some(match node.0 {
            TREE => Virtual::Tree,
            RM_RF => Virtual::RmRf,
            IOVS => Virtual::Iovs,
            GET_CONF => Virtual::GetConf,
            SET_CONF => Virtual::SetConf,
            ORDER => Virtual::Order,
            n if n < IOVS && IOVS - n <= 3 => Virtual::Semaphore(Priority::ALL[(IOVS - n - 1) as usize]),
            n if n <= FIRST_OBJECT && FIRST_OBJECT - n < OBJECTS => {
                Virtual::Object((FIRST_OBJECT - n) as u32)
            }
            n if n < GET_CONF && GET_CONF - n <= OBJECTS => Virtual::Value((GET_CONF - n - 1) as usize),
            _ => return None,
        })
    }

    /// Everything that is once for each directory of the volume.
    fn with_a_place() -> impl Iterator<Item = Virtual> {
        std::iter::once(Virtual::Tree).chain(Virtual::DIRECTORIES.map(|(_, directory)| directory))
    }

    /// The directory of the volume in whose `3fs-virt` a directory is; the root for everything else.
    pub fn place(node: NodeId) -> NodeId {
        let elsewhere = node.0 & 0xf000_0000_0000_0000 == ELSEWHERE;
        if elsewhere { NodeId(node.0 & PLACE) } else { NodeId::ROOT }
    }

    /// Its node in the `3fs-virt` of the directory `place`.
    fn node_at(self, place: NodeId) -> NodeId {
        match Virtual::with_a_place().position(|other| other == self) {
            Some(kind) if place != NodeId::ROOT => {
                NodeId(ELSEWHERE | (kind as u64) << KIND_SHIFT | place.0 & PLACE)
            }
            _ => self.node(),
        }
    }

    /// Its node.
    pub fn node(self) -> NodeId {
        NodeId(match self {
            Virtual::Tree => TREE,
            Virtual::RmRf => RM_RF,
            Virtual::Iovs => IOVS,
            Virtual::GetConf => GET_CONF,
            Virtual::SetConf => SET_CONF,
            Virtual::Order => ORDER,
            Virtual::Semaphore(Priority::High) => IOVS - 1,
            Virtual::Semaphore(Priority::Normal) => IOVS - 2,
            Virtual::Semaphore(Priority::Low) => IOVS - 3,
            Virtual::Object(k) => FIRST_OBJECT - u64::from(k),
            Virtual::Value(k) => GET_CONF - 1 - k as u64,
        })
    }

    /// Permissions of a directory; `None` for links.
    fn directory_mode(self) -> Option<u32> {
        match self {
            Virtual::Tree | Virtual::GetConf => Some(0o555),
            Virtual::RmRf | Virtual::Iovs | Virtual::SetConf => Some(0o777),
            _ => None,
        }
    }

    /// Is it a directory?
    pub fn is_directory(self) -> bool {
        self.directory_mode().is_some()
    }

    /// The entry of a directory of the tree at `place`, which is root's. Its inode number is the same everywhere: clients
    /// of 3FS know it, and what it stands for is one.
    pub fn directory(self, place: NodeId, since: (i64, u32)) -> Entry {
        let mode = libc::S_IFDIR | self.directory_mode().unwrap_or_default();
        let entry = self.entry(Attr { mode, nlink: 2, ..Attr::default() }, since);
        Entry { node: self.node_at(place), ..entry }
    }

    /// The entry of a link of `target_len` bytes that belongs to `owner`.
    pub fn link(self, mode: u32, target_len: usize, owner: &Caller, since: (i64, u32)) -> Entry {
        let (uid, gid) = (owner.uid, owner.gid);
        let attr = Attr { size: target_len as u64, uid, gid, ..Attr::default() };
        self.entry(Attr { mode: libc::S_IFLNK | mode, nlink: 1, ..attr }, since)
    }

    fn entry(self, attr: Attr, since: (i64, u32)) -> Entry {
        let node = self.node();
        // Nothing virtual is kept by the kernel (`valid`): what a user sees there depends on who asks, and a key of
        // `set-conf` must be settable twice.
        let times = Attr { atime: since, mtime: since, ctime: since, ..attr };
        Entry { node, attr: Attr { ino: node.0, blksize: 4096, ..times } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_3fs_tools_know() {
        let known = [
            (Virtual::Tree, 0xffff_ffff_ffff_fffe),
            (Virtual::RmRf, 0xffff_ffff_ffff_fffd),
            (Virtual::Iovs, 0xffff_ffff_8000_0000),
            (Virtual::Semaphore(Priority::High), 0xffff_ffff_7fff_ffff),
            (Virtual::Semaphore(Priority::Low), 0xffff_ffff_7fff_fffd),
            (Virtual::Object(0), 0xffff_ffff_7fff_0001),
            (Virtual::GetConf, 0xffff_ffff_0000_0000),
            (Virtual::SetConf, 0xffff_fffe_8000_0000),
        ];
        for (what, number) in known {
            assert_eq!(what.node(), NodeId(number), "{what:?}");
        }
    }

    #[test]
    fn every_number_leads_back_to_what_it_names() {
        let all = Virtual::DIRECTORIES.map(|(_, v)| v).into_iter().chain([Virtual::Tree, Virtual::Order]);
        let links = Priority::ALL.map(Virtual::Semaphore).into_iter();
        let numbered = [Virtual::Object(0), Virtual::Object(65_535), Virtual::Value(0), Virtual::Value(16)];
        for what in all.chain(links).chain(numbered) {
            assert_eq!(Virtual::of(what.node()), Some(what));
            assert!(what.node().is_virtual());
        }
    }

    #[test]
    fn every_directory_has_a_tree_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for place in [2, 3, 1 << 32, (1 << 32) + 1].map(NodeId) {
            for what in Virtual::with_a_place() {
                let entry = what.directory(place, (0, 0));
                assert_eq!((Virtual::of(entry.node), Virtual::place(entry.node)), (Some(what), place));
                assert_eq!(entry.attr.ino, what.node().0);
                assert!(entry.node.is_virtual() && seen.insert(entry.node));
            }
        }
        for what in Virtual::with_a_place().chain([Virtual::Order, Virtual::Object(1)]) {
            assert_eq!(what.node_at(NodeId::ROOT), what.node());
            assert_eq!(Virtual::place(what.node()), NodeId::ROOT);
        }
        for none in [ELSEWHERE, ELSEWHERE | 1, ELSEWHERE | 5 << KIND_SHIFT | 7] {
            assert_eq!(Virtual::of(NodeId(none)), None);
        }
    }

    #[test]
    fn other_numbers_name_nothing() {
        for number in
            [0, 1, 2, u64::MAX, IOVS - 4, IOVS + 1, FIRST_OBJECT + 1, FIRST_OBJECT - OBJECTS, GET_CONF + 1]
        {
            assert_eq!(Virtual::of(NodeId(number)), None, "{number:#x}");
        }
    }
}
