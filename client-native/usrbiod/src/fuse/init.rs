//! `FUSE_INIT`: what is agreed with the kernel for the life of a mount.

use super::abi::{self, InitIn, InitOut, init};
use super::buffer::MAX_IO;
use crate::types::{Errno, Result};

/// What is asked for where the kernel offers it.
///
/// * `ASYNC_READ`, `ASYNC_DIO`, `PARALLEL_DIROPS`: workers run side by side.
/// * `POSIX_LOCKS`, `FLOCK_LOCKS`: pods that mount one directory see each other's locks.
/// * `DONT_MASK`, `POSIX_ACL`: the backing file system applies umask or default ACL; the kernel checks ACLs.
/// * `HANDLE_KILLPRIV_V2`: set-id bits go by the daemon's lack of CAP_FSETID, without a request for each write.
/// * `AUTO_INVAL_DATA`: cached pages go when rings or another session changed the file. It does nothing to passthrough.
/// * `DIRECT_IO_ALLOW_MMAP`: files that are opened uncached can still be mapped.
/// * `NO_EXPORT_SUPPORT`: node ids are used again, so that an NFS handle could name another file later.
///
/// Not asked for: `WRITEBACK_CACHE` (excludes passthrough), `CACHE_SYMLINKS` (links of `3fs-virt` change),
/// `NO_OPEN_SUPPORT` (rings and passthrough need to know opens), `CREATE_SUPP_GROUP` (the daemon's capabilities stand in for the caller's groups),
/// `OVER_IO_URING` (cannot be taken over). Asked for by some sessions only: [`asked`].
const WANTED: u64 = init::ASYNC_READ
    | init::POSIX_LOCKS
    | init::FLOCK_LOCKS
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP
    | init::NO_EXPORT_SUPPORT
    | init::HAS_RESEND;

/// Requests that the kernel sends ahead (readahead, asynchronous direct I/O).
const MAX_BACKGROUND: u16 = 64;

/// What a session asks for beyond what all do.
///
/// With `ALLOW_IDMAP` the mount can be mapped into a user namespace (Linux 6.12), and the kernel names the caller's uid and
/// gid in requests that create something only ([`UNKNOWN_ID`](crate::types::UNKNOWN_ID) in all others), hence not always.
pub fn asked(passthrough: bool, idmap: bool) -> u64 {
    let flag = |asked: bool, flag: u64| if asked { flag } else { 0 };
    flag(passthrough, init::PASSTHROUGH) | flag(idmap, init::ALLOW_IDMAP)
}

/// The answer to an `INIT`. The flags that were agreed are those of the answer, except when it only names the version that
/// the kernel shall ask for next.
pub fn answer(arg: &InitIn, flags2: u32, asked: u64) -> Result<InitOut> {
    let version = InitOut {
        major: abi::KERNEL_VERSION,
        minor: abi::KERNEL_MINOR_VERSION.min(arg.minor),
        ..InitOut::default()
    };
    if arg.major > abi::KERNEL_VERSION {
        return Ok(InitOut { minor: abi::KERNEL_MINOR_VERSION, ..version });
    }
    if arg.major < abi::KERNEL_VERSION || arg.minor < abi::OLDEST_MINOR_VERSION {
        tracing::error!(
            "the kernel speaks FUSE {}.{}; {}.{} or newer is needed (Linux 5.4)",
            arg.major,
            arg.minor,
            abi::KERNEL_VERSION,
            abi::OLDEST_MINOR_VERSION
        );
        return Err(Errno::PROTO);
    }
    let offered = u64::from(arg.flags) | u64::from(flags2) << 32;
    let agreed = offered & (WANTED | asked);
    Ok(InitOut {
        max_readahead: arg.max_readahead,
        flags: agreed as u32,
        flags2: (agreed >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_IO as u32,
        max_pages: (MAX_IO / 4096) as u16,
        time_gran: 1,
        // Backing files lie on ordinary file systems: the mount is one level above them.
        max_stack_depth: u32::from(agreed & init::PASSTHROUGH != 0),
        ..version
    })
}

/// The flags of an answer as one word.
pub fn flags(out: &InitOut) -> u64 {
    u64::from(out.flags) | u64::from(out.flags2) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: InitIn = InitIn { major: 7, minor: 45, max_readahead: 131_072, flags: u32::MAX };

    #[test]
    fn only_what_is_offered_and_wanted_is_agreed() {
        let out = answer(&ALL, u32::MAX, init::PASSTHROUGH).unwrap();
        assert_eq!(flags(&out), WANTED | init::PASSTHROUGH);
        assert_eq!((out.minor, out.max_stack_depth, out.max_write), (45, 1, 1 << 20));
        let older = answer(&InitIn { minor: 36, ..ALL }, 0, init::PASSTHROUGH).unwrap();
        assert_eq!((older.minor, flags(&older) >> 32, older.max_stack_depth), (36, 0, 0));
    }

    #[test]
    fn passthrough_never_comes_with_a_writeback_cache() {
        let out = answer(&ALL, u32::MAX, init::PASSTHROUGH).unwrap();
        assert_eq!(flags(&out) & init::WRITEBACK_CACHE, 0);
        assert_eq!(flags(&answer(&ALL, u32::MAX, 0).unwrap()) & init::PASSTHROUGH, 0);
    }

    #[test]
    fn other_major_versions_are_negotiated_or_refused() {
        let newer = answer(&InitIn { major: 8, minor: 1, ..ALL }, 0, init::PASSTHROUGH).unwrap();
        assert_eq!((newer.major, newer.minor, flags(&newer)), (7, 45, 0));
        assert_eq!(answer(&InitIn { major: 6, ..ALL }, 0, init::PASSTHROUGH).err(), Some(Errno::PROTO));
        assert_eq!(answer(&InitIn { minor: 30, ..ALL }, 0, init::PASSTHROUGH).err(), Some(Errno::PROTO));
    }
}
