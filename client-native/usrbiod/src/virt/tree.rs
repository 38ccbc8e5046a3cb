//! What is in the directories of the tree.

use super::Virt;
use super::conf::UserConf;
use super::nodes::Virtual;
use crate::clients::{asker, owner_of};
use crate::ring::ObjectInfo;
use crate::types::{Caller, Entry, Errno, NodeId, Result};
use std::ffi::{CStr, CString};
use usrbio_wire::{IovName, Priority};

/// Who semaphores and settings belong to.
const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

impl Virt {
    /// A directory of the `3fs-virt` in `place`.
    pub(super) fn directory_named(&self, place: NodeId, name: &str) -> Result<Entry> {
        let known = Virtual::DIRECTORIES.iter().find(|(known, _)| known.to_bytes() == name.as_bytes());
        known.map(|(_, directory)| directory.directory(place, self.since)).ok_or(Errno::NOENT)
    }

    pub(super) fn directories(&self, place: NodeId) -> Vec<(CString, Entry)> {
        let entry = |(name, what): (&CStr, Virtual)| (name.to_owned(), what.directory(place, self.since));
        Virtual::DIRECTORIES.into_iter().map(entry).collect()
    }

    /// The link to the submit semaphore of a priority, and its target. `ENOENT`: the session has no shared memory.
    pub(super) fn semaphore(&self, priority: Priority) -> Result<(Entry, String)> {
        let target = self.parts.rings.semaphore_target(priority).ok_or(Errno::NOENT)?;
        let entry = Virtual::Semaphore(priority).link(0o666, target.len(), &ROOT, self.since);
        Ok((entry, target))
    }

    /// The link of an Iov or ring: its owner's, and nobody else's business.
    pub(super) fn object(&self, info: &ObjectInfo) -> Entry {
        let owner = Caller { uid: info.owner.uid, gid: info.owner.gid, pid: 0 };
        Virtual::Object(info.number).link(0o400, info.target.len(), &owner, self.since)
    }

    /// What the kernel is told was made where a link is an order.
    pub(super) fn order(&self, target_len: usize, caller: &Caller) -> Entry {
        Virtual::Order.link(0o400, target_len, caller, self.since)
    }

    pub(super) fn object_numbered(&self, number: u32, caller: &Caller) -> Result<ObjectInfo> {
        let found = self.parts.rings.list().into_iter().find(|info| info.number == number);
        allowed(found.ok_or(Errno::NOENT)?, caller)
    }

    pub(super) fn iov_named(&self, name: &str, caller: &Caller) -> Result<Entry> {
        if let Some(priority) = semaphore_named(name) {
            return self.semaphore(priority).map(|(entry, _)| entry);
        }
        let found = self.parts.rings.find(name).ok_or(Errno::NOENT)?;
        allowed(found, caller).map(|info| self.object(&info))
    }

    /// The semaphores and what is the caller's own; for root, everything.
    pub(super) fn iovs_of(&self, caller: &Caller) -> Vec<(CString, Entry)> {
        let semaphores = Priority::ALL.into_iter().filter_map(|priority| {
            let (entry, _) = self.semaphore(priority).ok()?;
            Some((CString::new(priority.semaphore_link()).ok()?, entry))
        });
        let objects = self.parts.rings.list().into_iter().filter_map(|info| {
            let info = allowed(info, caller).ok()?;
            Some((CString::new(info.name.as_str()).ok()?, self.object(&info)))
        });
        semaphores.chain(objects).collect()
    }

    /// Makes the shared memory at `target` an Iov or a ring, for as long as the caller's process lives.
    pub(super) fn register(&self, name: &CStr, target: &CStr, caller: &Caller) -> Result<Entry> {
        let (name, target) = (text(name)?, text(target)?);
        if name.split('.').skip(1).any(|part| part == "gdr") {
            // GPU memory: the target is no file. Clients that know of it fall back on EOPNOTSUPP.
            return Err(Errno::OPNOTSUPP);
        }
        let owner = owner_of(caller);
        let ring = IovName::parse(name).ok().and_then(|name| name.ring);
        if self.parts.read_only && ring.is_some_and(|ring| !ring.for_read) {
            return Err(Errno::ROFS);
        }
        if ring.is_some() {
            // So that ring workers need not read its mount table. That it cannot be seen is known then, too.
            let _ = self.parts.mounts.seen_by_owner(&owner);
        }
        let info = self.parts.rings.register(name, target, &owner)?;
        self.parts.clients.watch(&owner);
        Ok(self.object(&info))
    }

    /// 3FS refuses this to users who made themselves read-only, and leaks their rings. It changes no file.
    pub(super) fn unregister(&self, name: &CStr, caller: &Caller) -> Result<()> {
        let name = name.to_str().map_err(|_| Errno::NOENT)?;
        if semaphore_named(name).is_some() {
            return Err(Errno::PERM);
        }
        self.parts.rings.unregister(name, &asker(caller))
    }

    pub(super) fn value(&self, key: usize, caller: &Caller) -> Result<(Entry, String)> {
        let value = self.parts.conf.get(key, caller.uid)?;
        Ok((Virtual::Value(key).link(0o444, value.len(), &ROOT, self.since), value))
    }

    pub(super) fn value_named(&self, name: &str, caller: &Caller) -> Result<Entry> {
        let key = UserConf::names().position(|known| known == name).ok_or(Errno::NOENT)?;
        self.value(key, caller).map(|(entry, _)| entry)
    }

    pub(super) fn values(&self, caller: &Caller) -> Result<Vec<(CString, Entry)>> {
        let named = UserConf::names().enumerate().map(|(key, name)| {
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            Ok((name, self.value(key, caller)?.0))
        });
        named.collect()
    }

    pub(super) fn set_key(&self, name: &CStr, value: &CStr, caller: &Caller) -> Result<Entry> {
        self.parts.conf.set(text(name)?, text(value)?, caller.uid)?;
        self.parts.rings.set_user_read_only(caller.uid, self.parts.conf.read_only(caller.uid));
        Ok(self.order(value.count_bytes(), caller))
    }
}

fn text(name: &CStr) -> Result<&str> {
    name.to_str().map_err(|_| Errno::INVAL)
}

fn semaphore_named(name: &str) -> Option<Priority> {
    Priority::ALL.into_iter().find(|priority| priority.semaphore_link() == name)
}

/// `EPERM` for what belongs to another user.
fn allowed(info: ObjectInfo, caller: &Caller) -> Result<ObjectInfo> {
    if asker(caller).may_manage(&info.owner) { Ok(info) } else { Err(Errno::PERM) }
}
