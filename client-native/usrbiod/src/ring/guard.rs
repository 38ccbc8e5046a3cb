//! What happens when a peer truncates a file that the daemon has mapped: the next touch of a lost page raises
//! SIGBUS, and without care it ends the process for everybody.
//!
//! Every shared mapping is entered in a fixed table. The signal handler finds the mapping of the faulting address,
//! marks it *poisoned* and lays anonymous zero pages over all of it, so that the touch goes through. Whoever uses a
//! mapping asks [`Guard::poisoned`] afterwards and throws the result away. All of the mapping is replaced at once: page by
//! page, a peer could make the daemon run out of mappings.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, Once};

/// `vm.max_map_count` is 65530 by default: there cannot be many more.
const SLOTS: usize = 1 << 16;

const WRITABLE: u32 = 1;
const POISONED: u32 = 2;

struct Entry {
    start: AtomicUsize,
    len: AtomicUsize,
    flags: AtomicU32,
}

static TABLE: [Entry; SLOTS] =
    [const { Entry { start: AtomicUsize::new(0), len: AtomicUsize::new(0), flags: AtomicU32::new(0) } };
        SLOTS];
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static INSTALL: Once = Once::new();

/// A mapping's place in the table, for as long as the mapping lives.
#[derive(Debug)]
pub(super) struct Guard {
    slot: u32,
}

impl Guard {
    /// Enters the mapping `start..start + len`, whole pages; `None` when the table is full.
    pub(super) fn new(start: usize, len: usize, writable: bool) -> Option<Guard> {
        prepare_signals();
        let slot = {
            let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
            match free.pop() {
                Some(slot) => slot as usize,
                None if HIGH_WATER.load(Ordering::Relaxed) < SLOTS => {
                    HIGH_WATER.fetch_add(1, Ordering::AcqRel)
                }
                None => return None,
            }
        };
        let entry = &TABLE[slot];
        entry.flags.store(if writable { WRITABLE } else { 0 }, Ordering::Relaxed);
        entry.len.store(len, Ordering::Release);
        // Last: the handler believes an entry whose start is not 0.
        entry.start.store(start, Ordering::Release);
        Some(Guard { slot: slot as u32 })
    }

    /// Was a page of the mapping lost? What was read from it since the last time it was not may be zeros.
    pub(super) fn poisoned(&self) -> bool {
        TABLE[self.slot as usize].flags.load(Ordering::Acquire) & POISONED != 0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.slot as usize].start.store(0, Ordering::Release);
        FREE.lock().unwrap_or_else(|e| e.into_inner()).push(self.slot);
    }
}

/// Sets up what the process does on the signals that shared memory may raise; once.
pub(super) fn prepare_signals() {
    INSTALL.call_once(install);
}

fn install() {
    // Somebody opens a file while `sweep` has a lease on it: the kernel tells by SIGIO, whose default action ends the
    // process. There is nothing to do: the lease ends at once anyway.
    // SAFETY: no handler is installed, no memory is involved.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and does only what is allowed in a handler. The struct
    // is valid as zeros: no flags, empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Runs on the thread that touched the lost page. Async-signal-safe: atomics of a static table, mmap, sigaction, raise.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`; errno is this thread's own and is put back below.
    let (code, address, errno) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, *libc::__errno_location()) };
    // A hole under a mapping, or memory that the hardware lost.
    let fault = code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR;
    let absorbed = fault && absorb(address);
    // SAFETY: as above; the default action ends the process when the instruction runs into the fault again, or at once
    // when somebody sent the signal.
    unsafe {
        *libc::__errno_location() = errno;
        if !absorbed {
            libc::signal(signal, libc::SIG_DFL);
            if !fault {
                libc::raise(signal);
            }
        }
    }
}

fn absorb(address: usize) -> bool {
    let high = HIGH_WATER.load(Ordering::Acquire).min(SLOTS);
    for entry in &TABLE[..high] {
        let start = entry.start.load(Ordering::Acquire);
        let len = entry.len.load(Ordering::Acquire);
        if start == 0 || address < start || address - start >= len {
            continue;
        }
        // The slot may have been given to another mapping between the two loads. The one that holds `address` is in use by
        // this very thread and stays as it is.
        if entry.start.load(Ordering::Acquire) != start {
            continue;
        }
        let flags = entry.flags.fetch_or(POISONED, Ordering::AcqRel);
        let prot = libc::PROT_READ | if flags & WRITABLE != 0 { libc::PROT_WRITE } else { 0 };
        let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: replaces a mapping that a `SharedMap` owns by one of the same range and protection. Nobody holds a Rust
        // reference into it, and its users expect any bytes there.
        let at = unsafe { libc::mmap(start as *mut _, len, prot, how, -1, 0) };
        return at != libc::MAP_FAILED;
    }
    false
}
