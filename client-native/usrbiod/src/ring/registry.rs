//! The Iovs and rings of one session: registering, finding, dropping, and taking them over.

use super::engine::Engine;
use super::job::Ring;
use super::object::{Core, Iov, lock};
use super::reserve;
use super::sem::SubmitSem;
use super::shm::{self, SharedMap};
use super::sweep::{Sweeper, same_file};
use super::{Files, ObjectInfo};
use crate::budget::{Held, Share};
use crate::control::Keeper;
use crate::metrics::SessionMetrics;
use crate::session::Limits;
use crate::state::SessionState;
use crate::state::records::{HeaderRec, ObjectRec};
use crate::types::{Errno, Hung, Owner, Result};
use rustix::fs::AtFlags;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use usrbio_wire::{Geometry, IovName, NameError, Priority, RingAttrs, Slot};

const TAG_IOV: u32 = 1;
const TAG_RING: u32 = 2;
/// Clients of 3FS name their Iovs so. Other names are a program's own business, also when it is gone.
pub(super) const IOV_FILE_PREFIX: &str = "hf3fs-iov-";

/// What the rings of a session stand on.
pub struct RingsConfig {
    /// The session's name.
    pub session: String,
    /// Where files come from.
    pub files: Arc<dyn Files>,
    /// What a successor must know.
    pub state: Arc<SessionState>,
    /// Counters.
    pub metrics: Arc<SessionMetrics>,
    /// Who keeps the fds.
    pub keeper: Arc<Keeper>,
    /// The directory that clients see as `/dev/shm`; without it nothing can be registered.
    pub shm: Option<OwnedFd>,
    /// What the session may use.
    pub limits: Limits,
    /// What it may have of the daemon's fds.
    pub fds: Share,
    /// Refuse all writes.
    pub read_only: bool,
}

/// The Iovs and rings of one session.
pub struct SessionRings {
    core: Arc<Core>,
    engine: Arc<Engine>,
    keeper: Arc<Keeper>,
    fds: Share,
    shm: Option<OwnedFd>,
    objects: Mutex<Objects>,
    /// Held while memory is reserved.
    reserving: Mutex<()>,
    sweeper: Sweeper,
}

#[derive(Default)]
struct Objects {
    by_name: HashMap<String, Object>,
    iov_bytes: u64,
    rings: u32,
}

struct Object {
    info: ObjectInfo,
    memory: Memory,
    _held: [Held; 2],
}

enum Memory {
    Iov(Arc<Iov>),
    Ring(Arc<Ring>),
}

impl Object {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.memory {
            Memory::Iov(iov) => iov.fd.as_fd(),
            Memory::Ring(ring) => ring.fd.as_fd(),
        }
    }
}

/// A name and a file that fit together.
struct Plan {
    name: IovName,
    ring: Option<(RingAttrs, Geometry)>,
    len: u64,
}

impl SessionRings {
    /// The rings of a session, none yet; its submit semaphores are there when this returns. `state` may be a dead
    /// predecessor's: then [`resume`](Self::resume) follows.
    pub fn new(config: RingsConfig, engine: &Arc<Engine>) -> Result<SessionRings> {
        let RingsConfig { session, files, state, metrics, keeper, shm, limits, fds, read_only } = config;
        let semaphores = shm.as_ref().map(|shm| semaphores(shm, &state)).transpose()?;
        let core = Arc::new(Core::new(session, files, state, metrics, limits, read_only, semaphores));
        engine.adopt(&core);
        Ok(SessionRings {
            core,
            engine: engine.clone(),
            keeper,
            fds,
            shm,
            objects: Mutex::default(),
            reserving: Mutex::default(),
            sweeper: Sweeper::default(),
        })
    }

    /// Registers `name` for the shared memory at `target`: opens, checks, maps, and for a ring starts to serve it. All of
    /// it is done when this returns. Errors as in the contract: `EINVAL` for the name (`EIO` for its UUID), `EACCES` for
    /// the memory (`ENOSPC`, `ENOMEM` where its pages cannot be had), `EEXIST` for a name or an Iov's id that is
    /// there. At a limit: `EMFILE` for the number of rings or of all, `E2BIG` for the entries of a ring, `EDQUOT` for the bytes
    /// of all Iovs.
    pub fn register(&self, name: &str, target: &str, owner: &Owner) -> Result<ObjectInfo> {
        let parsed = parse(name)?;
        let shm = self.shm.as_ref().ok_or(Errno::ACCESS)?;
        if lock(&self.objects).by_name.contains_key(name) {
            return Err(Errno::EXIST);
        }
        let (fd, stat) = shm::open_for(shm, shm::relative(target)?, owner)?;
        let plan = self.plan(parsed, stat.st_size as u64)?;
        let record = record(name, target, owner, &plan)?;
        self.check_limits(&lock(&self.objects), &plan)?;
        // One at a time: a session has one helper.
        let reserving = lock(&self.reserving);
        reserve::reserve(&self.core.name, &fd, &stat, plan.len, owner)?;
        drop(reserving);
        // From here on under the lock, so that limits and names hold.
        let mut objects = lock(&self.objects);
        if objects.by_name.contains_key(name) {
            return Err(Errno::EXIST);
        }
        self.check_id(&plan)?;
        self.check_limits(&objects, &plan)?;
        let map = SharedMap::new(&fd, plan.len, true).map_err(|_| Errno::ACCESS)?;
        if let Some((_, geometry)) = plan.ring {
            map.init_semaphore(geometry.sem_at())?;
            if map.poisoned() {
                return Err(Errno::ACCESS);
            }
        }
        // Its own fd, and one by which the client's end is seen.
        let held = [self.fds.take()?, self.fds.take()?];
        let number = self.core.state.objects.insert(&record).ok_or(Errno::MFILE)?;
        self.keeper.keep(&self.core.name, name, fd.as_fd());
        let object = self.object(name, target, owner, number, &plan, fd, map, (Slot::ZERO, Slot::ZERO), held);
        let info = object.info.clone();
        self.enter(&mut objects, object, &plan);
        drop(objects);
        // Nobody watches a client that was killed before it registered anything: the next one cleans up.
        self.sweeper.sweep_now_and_then(shm.as_fd());
        Ok(info)
    }

    /// What a name asks of a file of `len` bytes.
    fn plan(&self, name: IovName, len: u64) -> Result<Plan> {
        if name.block_size.is_some_and(|block| block > len) {
            return Err(Errno::INVAL);
        }
        let Some(attrs) = name.ring else { return Ok(Plan { name, ring: None, len }) };
        let geometry = Geometry::for_file_len(len).ok_or(Errno::INVAL)?;
        if i64::from(attrs.io_depth) > i64::from(geometry.entries()) {
            return Err(Errno::INVAL);
        }
        if geometry.entries() > self.core.limits.ring_entries {
            return Err(Errno::TOOBIG);
        }
        Ok(Plan { name, ring: Some((attrs, geometry)), len })
    }

    /// Requests name an Iov by its id: nobody may put another one in its place, under whatever name.
    fn check_id(&self, plan: &Plan) -> Result<()> {
        let iovs = self.core.iovs.read().unwrap_or_else(PoisonError::into_inner);
        let taken = plan.ring.is_none() && iovs.contains_key(&plan.name.id);
        if taken { Err(Errno::EXIST) } else { Ok(()) }
    }

    fn check_limits(&self, objects: &Objects, plan: &Plan) -> Result<()> {
        let limits = &self.core.limits;
        let room = objects.by_name.len() < limits.iovs as usize
            && (plan.ring.is_none() || objects.rings < limits.rings);
        if !room || self.core.closing() {
            return Err(Errno::MFILE);
        }
        let bytes = objects.iov_bytes.saturating_add(plan.len);
        if plan.ring.is_none() && bytes > limits.iov_bytes { Err(Errno::DQUOT) } else { Ok(()) }
    }

    #[allow(clippy::too_many_arguments)]
    fn object(
        &self,
        name: &str,
        target: &str,
        owner: &Owner,
        number: u32,
        plan: &Plan,
        fd: OwnedFd,
        map: SharedMap,
        positions: (Slot, Slot),
        held: [Held; 2],
    ) -> Object {
        let owner = *owner;
        let memory = match plan.ring {
            Some((attrs, geometry)) => {
                let map = Arc::new(map);
                Memory::Ring(Arc::new(Ring::new(
                    &self.core, number, attrs, owner, fd, map, geometry, positions,
                )))
            }
            None => {
                let (id, block) = (plan.name.id, plan.name.block_size);
                Memory::Iov(Arc::new(Iov { id, block, owner, map, fd }))
            }
        };
        let is_ring = plan.ring.is_some();
        let info = ObjectInfo {
            name: name.to_owned(),
            target: target.to_owned(),
            owner,
            number,
            is_ring,
            len: plan.len,
        };
        Object { info, memory, _held: held }
    }

    fn enter(&self, objects: &mut Objects, object: Object, plan: &Plan) {
        match &object.memory {
            Memory::Iov(iov) => {
                objects.iov_bytes += plan.len;
                self.core.iovs.write().unwrap_or_else(PoisonError::into_inner).insert(iov.id, iov.clone());
                self.core.changed();
            }
            Memory::Ring(ring) => {
                objects.rings += 1;
                self.core.change_rings(|rings| rings.push(ring.clone()));
                self.engine.kick(&self.core);
            }
        }
        objects.by_name.insert(object.info.name.clone(), object);
    }

    /// Drops a registration. `ENOENT`, or `EPERM` for somebody else's (root may drop any).
    pub fn unregister(&self, name: &str, asker: &Owner) -> Result<()> {
        let mut objects = lock(&self.objects);
        let object = objects.by_name.get(name).ok_or(Errno::NOENT)?;
        if !asker.may_manage(&object.info.owner) {
            return Err(Errno::PERM);
        }
        let object = self.remove(&mut objects, name);
        // Unmapping takes long where there is much.
        drop(objects);
        drop(object);
        Ok(())
    }

    /// Takes an object out of everything. Requests in flight keep its memory until they are done.
    fn remove(&self, objects: &mut Objects, name: &str) -> Option<Object> {
        let object = objects.by_name.remove(name)?;
        match &object.memory {
            Memory::Iov(iov) => {
                objects.iov_bytes -= object.info.len;
                self.forget_iov(iov);
            }
            Memory::Ring(ring) => {
                objects.rings -= 1;
                ring.closed.store(true, Ordering::Release);
                self.core.leaves(ring);
                self.core.change_rings(|rings| rings.retain(|known| !Arc::ptr_eq(known, ring)));
                self.engine.kick(&self.core);
            }
        }
        self.core.state.objects.remove(object.info.number);
        self.keeper.forget(&self.core.name, name);
        Some(object)
    }

    fn forget_iov(&self, iov: &Iov) {
        self.core.iovs.write().unwrap_or_else(PoisonError::into_inner).remove(&iov.id);
        self.core.changed();
        // An idle ring would keep the memory until its next request, which would then wait for the unmapping. A ring
        // that is busy lets go of it by itself, or the workers' scan sees to it.
        for ring in self.core.rings().iter() {
            ring.drop_closed();
        }
    }

    /// The object of that name.
    pub fn find(&self, name: &str) -> Option<ObjectInfo> {
        lock(&self.objects).by_name.get(name).map(|object| object.info.clone())
    }

    /// All objects, by number.
    pub fn list(&self) -> Vec<ObjectInfo> {
        let mut list: Vec<_> =
            lock(&self.objects).by_name.values().map(|object| object.info.clone()).collect();
        list.sort_by_key(|info| info.number);
        list
    }

    /// Where the link to the submit semaphore of a priority leads (`/dev/shm/sem.<name>`); `None` without a shm directory.
    pub fn semaphore_target(&self, priority: Priority) -> Option<String> {
        let semaphores = self.core.semaphores.as_ref()?;
        Some(format!("/dev/shm/{}", semaphores[priority as usize].name()))
    }

    /// Refuses ring writes of a user, or allows them again (`usr.readonly`).
    pub fn set_user_read_only(&self, uid: u32, read_only: bool) {
        let mut users = self.core.read_only_users.write().unwrap_or_else(PoisonError::into_inner);
        if read_only {
            users.insert(uid)
        } else {
            users.remove(&uid)
        };
        drop(users);
        self.core.changed();
    }

    /// Drops everything that matches, as when its process is gone; the number dropped. Memory of an Iov that only its
    /// library knew is given back as well.
    pub fn reap(&self, gone: impl Fn(&Owner) -> bool) -> usize {
        let mut objects = lock(&self.objects);
        let names: Vec<String> =
            objects.by_name.values().filter(|o| gone(&o.info.owner)).map(|o| o.info.name.clone()).collect();
        for name in &names {
            if let Some(object) = self.remove(&mut objects, name) {
                self.unlink_memory(&object);
            }
        }
        drop(objects);
        // The process may have made more than it registered, or another one may have died unseen.
        self.sweep();
        names.len()
    }

    /// Unlinks the shared-memory files of 3FS clients that no process has open or mapped; the number of those. For when
    /// clients may have died before they registered them.
    pub fn sweep(&self) -> usize {
        self.shm.as_ref().map_or(0, |shm| self.sweeper.sweep(shm.as_fd()))
    }

    /// Unlinks the file of an Iov, or of a ring whose client died before it could, if it is still the one that was registered, its owner's, and made by a 3FS library.
    fn unlink_memory(&self, object: &Object) {
        let Some(shm) = &self.shm else { return };
        let Ok(path) = shm::relative(&object.info.target) else { return };
        if path.contains('/') || !path.starts_with(IOV_FILE_PREFIX) {
            return;
        }
        let (Ok(there), Ok(ours)) =
            (rustix::fs::statat(shm, path, AtFlags::SYMLINK_NOFOLLOW), rustix::fs::fstat(object.fd()))
        else {
            return;
        };
        if same_file(&there, &ours) && ours.st_uid == object.info.owner.uid {
            let _ = rustix::fs::unlinkat(shm, path, AtFlags::empty());
        }
    }

    /// Takes over what a predecessor registered, with the fds that the peer kept by name. Every ring goes on where it was
    /// published last. What has no fd, or does not fit its fd, is dropped; the number of those.
    pub fn resume(&self, mut fds: HashMap<String, OwnedFd>) -> usize {
        let mut objects = lock(&self.objects);
        let mut records: Vec<_> = self.core.state.objects.iter().collect();
        // Rings last: one is served from the moment that it is entered, and its requests name Iovs.
        records.sort_by_key(|(_, record)| record.tag == TAG_RING);
        let mut dropped = 0;
        for (number, record) in records {
            let name = text(&record.name, record.name_len);
            let taken = name.and_then(|name| fds.remove(name).ok_or(Errno::NOENT));
            if let Err(error) = taken.and_then(|fd| self.take_over(&mut objects, number, &record, fd)) {
                tracing::warn!(session = self.core.name, object = number, %error, "registration could not be resumed");
                self.core.state.objects.remove(number);
                if let Ok(name) = name {
                    self.keeper.forget(&self.core.name, name);
                }
                dropped += 1;
            }
        }
        dropped
    }

    fn take_over(&self, objects: &mut Objects, number: u32, record: &ObjectRec, fd: OwnedFd) -> Result<()> {
        let (name, target) = (text(&record.name, record.name_len)?, text(&record.target, record.target_len)?);
        let owner = Owner { uid: record.uid, gid: record.gid, tgid: record.tgid, start: record.start };
        // The length at registration, whatever the file has now: both ends must see the same ring.
        let plan = self.plan(parse(name)?, record.len)?;
        if plan.ring.is_some() != (record.tag == TAG_RING) {
            return Err(Errno::BADMSG);
        }
        let slot =
            |raw: u32, (_, geometry): (RingAttrs, Geometry)| geometry.slot(raw as i32).ok_or(Errno::BADMSG);
        let positions = match plan.ring {
            Some(ring) => (slot(record.journal_sq, ring)?, slot(record.journal_cq, ring)?),
            None => (Slot::ZERO, Slot::ZERO),
        };
        self.check_id(&plan)?;
        let map = SharedMap::new(&fd, plan.len, true)?;
        let held = [self.fds.take_anyway(1), self.fds.take_anyway(1)];
        let object = self.object(name, target, &owner, number, &plan, fd, map, positions, held);
        if let Memory::Ring(ring) = &object.memory {
            ring.restore();
        }
        self.enter(objects, object, &plan);
        Ok(())
    }

    /// Duplicates of the fds of all objects by name, for a peer that lost what it kept.
    pub fn fds(&self) -> Result<Vec<(String, OwnedFd)>> {
        let objects = lock(&self.objects);
        let dup = |object: &Object| rustix::io::fcntl_dupfd_cloexec(object.fd(), 0);
        objects.by_name.iter().map(|(name, object)| Ok((name.clone(), dup(object)?))).collect()
    }

    /// Claims no request until [`go_on`](Self::go_on). What is in flight is completed and published.
    pub fn pause(&self) {
        self.core.paused.store(true, Ordering::SeqCst);
        self.engine.kick(&self.core);
    }

    /// Ends a [pause](Self::pause). What clients submitted meanwhile is found by the workers' next scan.
    pub fn go_on(&self) {
        self.core.paused.store(false, Ordering::SeqCst);
        self.engine.kick(&self.core);
    }

    /// Is nothing in flight, and no worker at a ring? Also of rings that are not registered any more.
    pub fn is_idle(&self) -> bool {
        let busy = |ring: &Arc<Ring>| ring.attended.load(Ordering::SeqCst) != 0 || ring.in_flight() > 0;
        !self.core.all_rings().iter().any(busy)
    }

    /// Requests in flight that hang.
    pub fn hung(&self) -> Hung {
        let mut hung = Hung::default();
        for (requests, since) in self.core.all_rings().iter().filter_map(|ring| ring.waiting()) {
            hung.add(u64::from(requests), since.map_or(Duration::ZERO, |since| since.elapsed()));
        }
        hung
    }

    /// Ends serving: nothing more is claimed, and what is in flight is completed and published. `false`: it was not done by
    /// the deadline. A successor may go on from here.
    pub fn quiesce(&self, timeout: Duration) -> bool {
        self.core.closing.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + timeout;
        loop {
            self.engine.kick(&self.core);
            if self.is_idle() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the session for good: drops every object and removes the semaphores.
    pub fn detach(&self, timeout: Duration) {
        if !self.quiesce(timeout) {
            tracing::warn!(
                session = self.core.name,
                "requests are still in flight; their memory stays until they end"
            );
        }
        self.reap(|_| true);
        if let (Some(shm), Some(semaphores)) = (&self.shm, &self.core.semaphores) {
            semaphores.iter().for_each(|semaphore| semaphore.unlink(shm));
        }
    }
}

impl Drop for SessionRings {
    /// Leaves registrations for a successor, but no thread behind.
    fn drop(&mut self) {
        // Rings and their session hold each other.
        self.core.end();
        self.engine.kick(&self.core);
    }
}

#[cfg(test)]
impl SessionRings {
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

fn parse(name: &str) -> Result<IovName> {
    IovName::parse(name).map_err(|error| {
        tracing::debug!(%error, "registration refused");
        match error {
            NameError::Uuid(_) => Errno::IO,
            NameError::TooLong(_) => Errno::NAMETOOLONG,
            NameError::Part(..) | NameError::NotARing(_) => Errno::INVAL,
        }
    })
}

fn record(name: &str, target: &str, owner: &Owner, plan: &Plan) -> Result<ObjectRec> {
    let mut record = ObjectRec {
        tag: if plan.ring.is_some() { TAG_RING } else { TAG_IOV },
        uid: owner.uid,
        gid: owner.gid,
        tgid: owner.tgid,
        start: owner.start,
        len: plan.len,
        name_len: name.len() as u32,
        target_len: target.len() as u32,
        ..zerocopy::FromZeros::new_zeroed()
    };
    record.name.get_mut(..name.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name.as_bytes());
    record.target.get_mut(..target.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(target.as_bytes());
    Ok(record)
}

fn text(bytes: &[u8], len: u32) -> Result<&str> {
    let bytes = bytes.get(..len as usize).ok_or(Errno::BADMSG)?;
    std::str::from_utf8(bytes).map_err(|_| Errno::BADMSG)
}

/// Removes the semaphores of a session that ended without a daemon.
pub fn remove_semaphores(shm: &OwnedFd, header: &HeaderRec) {
    for known in header.semaphores {
        let len = known.iter().position(|byte| *byte == 0).unwrap_or(known.len());
        let Ok(name) = std::str::from_utf8(&known[..len]) else { continue };
        if let Ok(semaphore) = SubmitSem::reopen(shm, name) {
            semaphore.unlink(shm);
        }
    }
}

/// The session's submit semaphores: a predecessor's where they are still there.
fn semaphores(shm: &OwnedFd, state: &SessionState) -> Result<[SubmitSem; 3]> {
    let mut header: HeaderRec = state.header();
    let mut make = |priority: Priority| {
        let known = &header.semaphores[priority as usize];
        let len = known.iter().position(|byte| *byte == 0).unwrap_or(known.len());
        let known = std::str::from_utf8(&known[..len]).ok().filter(|name| !name.is_empty());
        if let Some(semaphore) = known.and_then(|name| SubmitSem::reopen(shm, name).ok()) {
            return Ok(semaphore);
        }
        let semaphore = SubmitSem::create(shm)?;
        let field = &mut header.semaphores[priority as usize];
        *field = [0; 64];
        field[..semaphore.name().len()].copy_from_slice(semaphore.name().as_bytes());
        Ok::<_, Errno>(semaphore)
    };
    let semaphores = [make(Priority::High)?, make(Priority::Normal)?, make(Priority::Low)?];
    state.set_header(&header);
    Ok(semaphores)
}
