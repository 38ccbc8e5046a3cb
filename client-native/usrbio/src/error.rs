//! What can go wrong, with the numbers that matter and the errno that the C interface answers.

use rustix::io::Errno;
use std::path::PathBuf;
use usrbio_wire::RingFault;

/// Why an Iov, a ring or a registration could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A system call failed.
    #[error("cannot {what} {path}: {errno}", path = .path.display())]
    Os {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Its error.
        errno: Errno,
    },
    /// Shared memory could not be made; 3FS answers `EIO`, whatever the cause.
    #[error("cannot {what} {path}: {errno}", path = .path.display())]
    Shm {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Its error.
        errno: Errno,
    },
    /// `/dev/shm` is full.
    #[error(
        "{asked} bytes of shared memory do not fit: {free} of {total} bytes are free in /dev/shm. Make it larger: \
         annotation kube3fs.io/shm-size on the pod, --shm-size for a container, or mount -o remount,size=... \
         /dev/shm"
    )]
    NoSpace {
        /// Bytes wanted.
        asked: u64,
        /// Bytes left.
        free: u64,
        /// Bytes of the tmpfs.
        total: u64,
    },
    /// The daemon cannot open the shared memory that this process made.
    #[error(
        "the daemon cannot open {}: it knows another /dev/shm than this process has. A pod that mounts a volume of its \
         own at /dev/shm gets none of kube3fs: remove that volume; a container shares the daemon's by a bind mount",
        .0.display()
    )]
    ShmNotShared(PathBuf),
    /// The daemon does not take a ring or an Iov, for a reason that has something to do about it.
    #[error("the volume at {} does not take this {what} ({errno}): {why}", .mount.display())]
    Refused {
        /// `ring` or `Iov`.
        what: &'static str,
        /// Where the volume is mounted.
        mount: PathBuf,
        /// What the daemon answered.
        errno: Errno,
        /// What it means, and what to do.
        why: &'static str,
    },
    /// The fd does not belong to a file of a 3FS mount.
    #[error("fd {0} is no file of a 3FS mount: is the path below the mount point?")]
    NotOn3fs(i32),
    /// A negative number is no fd.
    #[error("{0} is no fd")]
    BadFd(i32),
    /// The fd is in the table already.
    #[error("fd {0} is registered already: was it closed without being deregistered?")]
    AlreadyRegistered(i32),
    /// No 3FS mount holds the path.
    #[error("{} is on no 3FS mount (no mount of type fuse.hf3fs with a 3fs-virt directory holds it)", .0.display())]
    NoMount(PathBuf),
    /// The daemon named a semaphore that cannot be one.
    #[error("{link} leads to '{target}', not to /dev/shm/sem.<name>", link = .link.display())]
    Semaphore {
        /// The link below `3fs-virt/iovs`.
        link: PathBuf,
        /// What it says.
        target: String,
    },
    /// The ring was made before a fork and is used in the child.
    #[error("the ring belongs to the parent process: make rings after fork")]
    Forked,
    /// The daemon that the ring or Iov was registered with is gone.
    #[error("the daemon that served {} is gone: serve the mount again, then make rings and Iovs anew", .0.display())]
    Unserved(PathBuf),
    /// The daemon broke the ring protocol; the ring is beyond use.
    #[error("the ring is broken and must be made anew: {0}")]
    Broken(#[from] RingFault),
}

impl Error {
    /// The errno (positive) that the C interface answers.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Invalid(_) | Error::AlreadyRegistered(_) => libc::EINVAL,
            Error::Os { errno, .. } | Error::Refused { errno, .. } => errno.raw_os_error(),
            Error::Shm { .. } | Error::Semaphore { .. } | Error::Broken(_) => libc::EIO,
            Error::NoSpace { .. } => libc::ENOSPC,
            Error::ShmNotShared(_) => libc::EACCES,
            Error::NotOn3fs(_) | Error::BadFd(_) => libc::EBADF,
            Error::NoMount(_) => libc::ENOENT,
            Error::Forked => libc::ECHILD,
            Error::Unserved(_) => libc::ENOTCONN,
        }
    }

    pub(crate) fn os(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Error {
        let path = path.into();
        move |errno| Error::Os { what, path, errno }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = std::io::Error::from_raw_os_error(error.errno()).kind();
        std::io::Error::new(kind, error)
    }
}

/// Why a request was not queued. Small, because it is on the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrepError {
    /// A read on a ring for writes, or the other way round.
    #[error("a ring is for reads or for writes, and this one is for the other")]
    Direction,
    /// Nothing to move.
    #[error("a request of 0 bytes")]
    Empty,
    /// Not inside the Iov.
    #[error("bytes {offset}..{offset}+{len} are not inside the Iov of {size} bytes")]
    OutOfIov {
        /// First byte in the Iov.
        offset: u64,
        /// Bytes to move.
        len: u64,
        /// Bytes of the Iov.
        size: u64,
    },
    /// No such fd or handle can be in the table.
    #[error("fd {0} is beyond every file table")]
    BadFd(i32),
    /// The fd is not registered.
    #[error("fd {0} is not registered")]
    NotRegistered(i32),
    /// The fd was closed after it was registered, and another file has its number now.
    #[error(
        "fd {0} is another file than the one that was registered: that was closed without hf3fs_dereg_fd; register the new one"
    )]
    Replaced(i32),
    /// The file was opened for the other direction only.
    #[error("the file was not opened for this direction")]
    Access,
    /// Every slot is in flight or waits to be reaped.
    #[error("the ring is full: reap completions first")]
    Full,
    /// As [`Error::Forked`].
    #[error("the ring belongs to the parent process: make rings after fork")]
    Forked,
    /// As [`Error::Broken`].
    #[error("the ring is broken and must be made anew: {0}")]
    Broken(RingFault),
}

impl PrepError {
    /// The errno (positive) that the C interface answers.
    pub fn errno(self) -> i32 {
        match self {
            PrepError::Direction | PrepError::Empty | PrepError::OutOfIov { .. } | PrepError::BadFd(_) => {
                libc::EINVAL
            }
            PrepError::NotRegistered(_) | PrepError::Replaced(_) => libc::EBADF,
            PrepError::Access => libc::EACCES,
            PrepError::Full => libc::EAGAIN,
            PrepError::Forked => libc::ECHILD,
            PrepError::Broken(_) => libc::EIO,
        }
    }
}
