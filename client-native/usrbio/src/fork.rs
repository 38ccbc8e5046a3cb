//! Tells a forked child from the process that made an object. A counter that the child steps up costs one load
//! to compare, where `getpid` would be a system call for each request.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
    ) -> libc::c_int;
}

/// The process, counted in forks since the first object was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u32);

impl Generation {
    /// That of this process.
    pub(crate) fn current() -> Generation {
        static REGISTER: Once = Once::new();
        REGISTER.call_once(|| {
            // SAFETY: the handler only steps an atomic, which is async-signal-safe. glibc drops it again when the
            // library is unloaded.
            let rc = unsafe { pthread_atfork(None, None, Some(in_child)) };
            if rc != 0 {
                tracing::warn!("pthread_atfork failed ({rc}): rings used after a fork will not be refused");
            }
        });
        Generation(GENERATION.load(Ordering::Relaxed))
    }

    /// Is this the process that it was taken in?
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        GENERATION.load(Ordering::Relaxed) == self.0
    }
}
