//! A 3FS mount and its daemon in this process, for tests: a plain directory holds the links, and a thread serves
//! one ring.

use crate::ior::{RingCore, RingOptions};
use crate::mount::Mount;
use std::ffi::CString;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use usrbio_wire::mem::SharedMem;
use usrbio_wire::{Args, Cqe, Priority, ServerRing, Slot};

/// A directory that looks like a mount, with submit semaphores of its own.
pub(crate) struct FakeMount {
    dir: tempfile::TempDir,
    semaphore: CString,
}

impl FakeMount {
    pub(crate) fn new() -> FakeMount {
        let dir = tempfile::tempdir().unwrap();
        let iovs = dir.path().join("3fs-virt/iovs");
        std::fs::create_dir_all(&iovs).unwrap();
        let name = format!("usrbio-test.{}", uuid::Uuid::new_v4());
        for priority in Priority::ALL {
            let target = format!("/dev/shm/sem.{name}");
            std::os::unix::fs::symlink(target, iovs.join(priority.semaphore_link())).unwrap();
        }
        let semaphore = CString::new(format!("/{name}")).unwrap();
        // SAFETY: a NUL-terminated name; mode and value as O_CREAT wants them.
        let sem = unsafe { libc::sem_open(semaphore.as_ptr(), libc::O_CREAT | libc::O_EXCL, 0o600, 0) };
        assert!(!sem.is_null());
        FakeMount { dir, semaphore }
    }

    pub(crate) fn mount(&self) -> Mount {
        Mount::at(self.dir.path()).unwrap()
    }

    pub(crate) fn iovs(&self) -> PathBuf {
        self.dir.path().join("3fs-virt/iovs")
    }

    pub(crate) fn ring(&self, options: &RingOptions) -> RingCore {
        RingCore::create(&self.mount(), options).unwrap()
    }
}

impl Drop for FakeMount {
    fn drop(&mut self) {
        // SAFETY: a NUL-terminated name.
        unsafe { libc::sem_unlink(self.semaphore.as_ptr()) };
    }
}

/// The daemon's end of a client's ring.
pub(crate) fn server(ring: &RingCore) -> ServerRing<SharedMem> {
    let (base, len) = ring.memory();
    // SAFETY: the tests keep the ring longer than its server.
    let mem = unsafe { SharedMem::new(base, len) };
    let geometry = usrbio_wire::Geometry::for_file_len(len as u64).unwrap();
    ServerRing::new(mem, geometry, Slot::ZERO, Slot::ZERO)
}

/// Answers what is queued with `result`; the count.
pub(crate) fn serve_once(
    ring: &RingCore,
    server: &mut ServerRing<SharedMem>,
    mut result: impl FnMut(&Args) -> i64,
) -> u32 {
    let count = server.published().unwrap();
    for i in 0..count {
        let (sqe, args) = server.claim().unwrap();
        server
            .stage(i, &Cqe { index: sqe.index, reserved: 0, result: result(&args), userdata: sqe.userdata });
    }
    if count > 0 {
        server.publish(count);
        post_done(ring, server);
    }
    count
}

/// Posts the ring's completion semaphore.
pub(crate) fn post_done(ring: &RingCore, server: &ServerRing<SharedMem>) {
    // SAFETY: inside the ring's mapping, as in `RingCore::create`.
    let sem = unsafe { ring.memory().0.add(server.geometry().sem_at()) };
    // SAFETY: as above.
    unsafe { crate::sem::RingSem::new(NonNull::new(sem).unwrap()) }.post();
}

/// Serves a ring until `stop`, with an answer of all bytes asked for.
pub(crate) fn serve(ring: &RingCore, stop: &AtomicBool) {
    let mut server = server(ring);
    let give_up = Instant::now() + Duration::from_secs(120);
    while !stop.load(Ordering::Relaxed) && Instant::now() < give_up {
        if serve_once(ring, &mut server, |args| args.io_len as i64) == 0 {
            std::thread::yield_now();
        }
    }
}
