//! Handles of `iovs`, by which clients that cannot be seen show that they live.
//!
//! The client library opens `iovs` once and keeps the fd. The kernel closes it when the process ends, which is all there is
//! to see of a process in another pid namespace. A handle that was used for a listing was no such sign: a program may
//! list the directory at any time without losing its rings.

use crate::state::SessionState;
use crate::state::records::OpenRec;
use crate::types::{Errno, NodeId, Owner, Result};
use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

const DIRECTORY: u32 = 2;
/// In the flags of a record: used for a listing.
const LISTED: u32 = 1;

pub(super) struct Handles {
    node: NodeId,
    state: Arc<SessionState>,
    generation: AtomicU32,
    open: Mutex<HashMap<u64, Handle>>,
}

#[derive(Debug, Clone, Copy)]
struct Handle {
    uid: u32,
    tgid: u32,
    listed: bool,
}

impl Handle {
    fn vouches_for(&self, uid: u32) -> bool {
        !self.listed && self.tgid == 0 && self.uid == uid
    }
}

impl Handles {
    /// Handles of `node`; those in `state` are open.
    pub fn new(node: NodeId, state: Arc<SessionState>) -> Handles {
        let records = state.opens.iter().filter(|(_, rec)| rec.tag == DIRECTORY && rec.node == node.0);
        let open = records.map(|(index, rec)| {
            let listed = rec.flags & LISTED != 0;
            (file_handle(index, rec.generation), Handle { uid: rec.uid, tgid: rec.tgid, listed })
        });
        let open = Mutex::new(open.collect());
        // Handles of a predecessor must not come back while a late request may still name one.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let generation = AtomicU32::new((now.as_nanos() >> 10) as u32);
        Handles { node, state, generation, open }
    }

    /// Opens one for `owner`. `ENFILE`: too many are open in the session.
    pub fn open(&self, owner: &Owner) -> Result<u64> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let (uid, tgid) = (owner.uid, owner.tgid);
        let rec = OpenRec { tag: DIRECTORY, generation, node: self.node.0, uid, tgid, ..OpenRec::default() };
        let index = self.state.opens.insert(&rec).ok_or(Errno::NFILE)?;
        let fh = file_handle(index, generation);
        self.lock().insert(fh, Handle { uid, tgid, listed: false });
        Ok(fh)
    }

    /// It is used for a listing.
    pub fn listed(&self, fh: u64) {
        if let Some(handle) = self.lock().get_mut(&fh)
            && !handle.listed
        {
            handle.listed = true;
            if let Some(flags) = self.state.opens.field32(index(fh), offset_of!(OpenRec, flags)) {
                flags.fetch_or(LISTED, Ordering::Relaxed);
            }
        }
    }

    /// Closes one: the user whose unseen processes have no sign of life left by it. A handle that is not open is no error:
    /// a predecessor may have closed it.
    pub fn close(&self, fh: u64) -> Option<u32> {
        let mut open = self.lock();
        let closed = open.remove(&fh)?;
        self.state.opens.remove(index(fh));
        let uid = closed.uid;
        let last = closed.vouches_for(uid) && !open.values().any(|other| other.vouches_for(uid));
        last.then_some(uid)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Handle>> {
        self.open.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn file_handle(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

fn index(fh: u64) -> u32 {
    fh as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(0xffff_ffff_8000_0000);

    fn handles() -> (Handles, Arc<SessionState>) {
        let state = Arc::new(SessionState::anonymous().unwrap());
        (Handles::new(NODE, state.clone()), state)
    }

    fn unseen(uid: u32) -> Owner {
        Owner { uid, gid: 0, tgid: 0, start: 0 }
    }

    #[test]
    fn the_last_handle_of_a_user_speaks_for_the_processes_that_cannot_be_seen() {
        let (handles, _) = handles();
        let [a, b, other] = [1, 1, 2].map(|uid| handles.open(&unseen(uid)).unwrap());
        assert_eq!(handles.close(a), None);
        assert_eq!(handles.close(b), Some(1));
        assert_eq!(handles.close(b), None, "closed once");
        assert_eq!(handles.close(other), Some(2));
    }

    #[test]
    fn a_handle_used_for_a_listing_or_of_a_process_that_is_seen_says_nothing() {
        let (handles, _) = handles();
        let listed = handles.open(&unseen(1)).unwrap();
        handles.listed(listed);
        let seen = handles.open(&Owner { tgid: 7, ..unseen(1) }).unwrap();
        let alive = handles.open(&unseen(1)).unwrap();
        assert_eq!((handles.close(listed), handles.close(seen)), (None, None));
        assert_eq!(handles.close(alive), Some(1));
    }

    #[test]
    fn a_successor_knows_the_handles() {
        let (first, state) = handles();
        let [a, b] = [(); 2].map(|()| first.open(&unseen(1)).unwrap());
        first.listed(b);
        let second = Handles::new(NODE, state.clone());
        assert_eq!((second.close(b), second.close(a)), (None, Some(1)));
        assert_eq!(state.opens.iter().count(), 0);
    }

    #[test]
    fn a_handle_of_another_kind_of_open_is_not_touched() {
        let (handles, state) = handles();
        let index = state.opens.insert(&OpenRec { tag: 1, node: 5, ..OpenRec::default() }).unwrap();
        handles.listed(u64::from(index));
        assert_eq!(handles.close(u64::from(index)), None);
        assert_eq!(state.opens.get(index).map(|rec| rec.flags), Some(0));
    }
}
