"""What the machine refuses, in words: an errno becomes the code that callers act by, and what to do. Pure."""

import errno
import os

from kube3fs_csi.serving.errors import CsiError, Exhausted, Unavailable

_FULL = (Exhausted, "its file system is full: delete data, or give it a larger one; then retry")
_FILES = (
    Unavailable,
    "the node plugin has as many files open as it may: raise LimitNOFILE of the container runtime, or "
    "fs.file-max of the node; then retry",
)
_DISK = (Unavailable, "the disk below it fails or is away: look at the node's kernel log (dmesg); then retry")
_MEMORY = (Unavailable, "the node has no memory left for it: free some; then retry")
_RIGHTS = (
    Unavailable,
    "the node refuses it: look at the folder's owner, mode and security labels; then retry",
)
_KIND = (Unavailable, "something else is in its place: look at the folder, and move that away; then retry")
_FEATURE = (Unavailable, "the kernel or the file system of the node cannot do it: use another; then retry")
_TIME = (Unavailable, "it did not answer in time: look at the network or disk below it; then retry")

ADVICE: dict[int, tuple[type[CsiError], str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EROFS: (
        Unavailable,
        "its file system is read-only: mount it writable, or look why it became so; then retry",
    ),
    errno.EIO: _DISK,
    errno.EUCLEAN: _DISK,
    errno.ENODEV: _DISK,
    errno.ENXIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ESHUTDOWN: _DISK,
    errno.ENOTCONN: (
        Unavailable,
        "what served it is gone: delete the pods that use it, and let them be made again; then retry",
    ),
    errno.ENOMEM: _MEMORY,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EBUSY: (Unavailable, "somebody is using it: retry, and look who does if that lasts"),
    errno.EAGAIN: (Unavailable, "the node is short of something just now: retry"),
    errno.EINTR: (Unavailable, "it was interrupted: retry"),
    errno.ENOTDIR: _KIND,
    errno.EISDIR: _KIND,
    errno.EEXIST: _KIND,
    errno.ENOTEMPTY: _KIND,
    errno.ELOOP: _KIND,
    errno.ENOSYS: _FEATURE,
    errno.EOPNOTSUPP: _FEATURE,
    errno.ETIMEDOUT: _TIME,
    errno.EHOSTUNREACH: _TIME,
    errno.ECONNRESET: _TIME,
    errno.ENOENT: (Unavailable, "it is not there: look whether its disk is mounted; then retry"),
    errno.ENAMETOOLONG: (
        Unavailable,
        "a name there is too long for the file system: use another file system",
    ),
}


def refusal(what: str, error: OSError) -> CsiError:
    """The error for `what`, such as "NodePublishVolume of volume v1"; INTERNAL where nobody knows why."""
    kind, advice = ADVICE.get(
        error.errno or 0, (CsiError, "nobody foresaw it: see the log of the node plugin, and report it")
    )
    named = isinstance(error.filename, str | bytes)
    where = f" at {os.fsdecode(error.filename)}" if named else ""
    return kind(f"{what} failed{where}: {advice} ({error.strerror or error})")


def code_of(words: str) -> type[CsiError]:
    """The kind of error that the last words of a program are: they end with the system's own for an errno."""
    for number, (kind, _advice) in ADVICE.items():
        if words.rstrip(".").endswith(os.strerror(number)):
            return kind
    return CsiError
