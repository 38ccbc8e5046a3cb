"""mount(2) and its kin, and the mount table. Nothing here looks *through* a mount: none can hang it.

The kernel writes the whole table anew for every reader, a line for each mount of the node: it is not read to
publish or unpublish what was not there before.
"""

import ctypes
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kube3fs_csi.node import keep_flags

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_RELATIME = 32, 1024, 2048, 4096, 1 << 21
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_NOTHING_MOUNTED = (errno.EINVAL, errno.ENOENT, errno.ENOTDIR)

FUSE_TYPE = "fuse.hf3fs"
_FUSE_OPTIONS = "rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576"
"""As client-native/usrbiod/CONTROL.md asks for."""

ALLOWED_OPTIONS = {
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
    "noexec": MS_NOEXEC,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "ro": MS_RDONLY,
    "rw": 0,
}
"""mountOptions that a StorageClass or PersistentVolume may ask for."""

_KERNEL_TELLS_DEVICE = any(
    (int(major), int(minor)) >= (6, 18) for major, minor in re.findall(r"^(\d+)\.(\d+)", os.uname().release)
)
"""Since Linux 6.18 (the first on which it was seen) the fdinfo of an open /dev/fuse has `fuse_connection`."""

_libc = ctypes.CDLL(None, use_errno=True)
_OCTAL = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo, see proc_pid_mountinfo(5)."""

    path: Path
    root: str
    options: frozenset[str]
    fstype: str
    source: str
    super_options: frozenset[str]
    device: str
    """MAJOR:MINOR of the file system."""


def parse_mountinfo(text: str) -> list[Mount]:
    """The mount table in mount order: of several mounts at one path the last is the one that is seen."""
    return [_parse_line(line) for line in text.splitlines()]


def _parse_line(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    _id, _parent, device, root, path, options, *_optional = left.split(" ")
    fstype, source, super_options = right.split(" ", 2)
    return Mount(
        Path(_unescape(path)),
        _unescape(root),
        frozenset(options.split(",")),
        fstype,
        _unescape(source),
        frozenset(super_options.split(",")),
        device,
    )


def _escape(field: str) -> str:
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", field)


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def table() -> list[Mount]:
    """Every mount of this mount namespace."""
    return parse_mountinfo(_mountinfo())


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")


def mounts_at(path: Path) -> list[Mount]:
    """The mounts stacked at `path`, the lowest first."""
    # A search finds the few lines of a long table that need to be parsed.
    written = _escape(str(path))
    lines = [line for line in _mountinfo().splitlines() if written in line]
    return [mount for mount in map(_parse_line, lines) if mount.path == path]


def mount_of(path: Path) -> Mount:
    """The mount that `path`, which must exist, lies on."""
    resolved = path.resolve()
    under = [mount for mount in table() if mount.path == resolved or mount.path in resolved.parents]
    return max(reversed(under), key=lambda mount: len(mount.path.parts))


def mount_fuse(target: Path, flags: int = 0) -> int:
    """Mounts a FUSE file system at `target` and returns its open /dev/fuse, which nobody serves yet.

    nosuid, nodev and noexec that are asked for stay in pods, too (`keep_flags`).
    """
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        _mount("kube3fs", target, FUSE_TYPE, MS_NOSUID | MS_NODEV | flags, f"fd={fuse},{_FUSE_OPTIONS}")
        if flags & (MS_NOSUID | MS_NODEV | MS_NOEXEC):
            _keep_flags(target, MS_NOSUID | MS_NODEV | flags)
    except BaseException:
        os.close(fuse)
        raise
    return fuse


def _keep_flags(target: Path, flags: int) -> None:
    # Not read-only: the file system is that already, and a runtime that wants "rw" must not be refused.
    remount_bind(target, flags & ~MS_RDONLY)
    copy = keep_flags.locked_copy(target)
    if copy is not None:
        try:
            unmount(target)
            keep_flags.put(copy, target)
        finally:
            os.close(copy)


def fuse_devices() -> dict[Path, int]:
    """Minor numbers of our FUSE mounts by mount point, where usrbiod cannot learn them from the kernel."""
    if _KERNEL_TELLS_DEVICE:
        return {}
    lines = [line for line in _mountinfo().splitlines() if FUSE_TYPE in line]
    ours = [mount for mount in map(_parse_line, lines) if mount.fstype == FUSE_TYPE]
    return {mount.path: int(mount.device.partition(":")[2]) for mount in ours}


def mount_tmpfs(target: Path, options: str) -> None:
    """Mounts a tmpfs that anybody may use as scratch memory, and nobody for devices or programs."""
    _mount("kube3fs-shm", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,{options}")


def remount_tmpfs(target: Path, options: str) -> None:
    """Changes size and huge pages of the tmpfs at `target`."""
    _mount(
        "kube3fs-shm", target, "tmpfs", MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,{options}"
    )


def mount_library(target: Path) -> None:
    """Mounts a tmpfs for programs to load from, to be filled and then sealed."""
    _mount("kube3fs-client", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")


def seal_library(target: Path) -> None:
    """Makes the tmpfs at `target` read-only, for everybody and in every mount of it."""
    _mount("kube3fs-client", target, "tmpfs", MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def bind(source: Path, target: Path) -> None:
    """Shows `source` at `target` as well."""
    _mount(str(source), target, "", MS_BIND)


def remount_bind(target: Path, flags: int) -> None:
    """Gives the mount at `target`, not its file system, these flags and no others."""
    _mount("", target, "", MS_REMOUNT | MS_BIND | flags)


def unmount(target: Path) -> None:
    """Takes away everything mounted at `target`, busy or not. Nothing mounted there is success."""
    while True:
        try:
            _call(_libc.umount2, target, os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in _NOTHING_MOUNTED:
                raise
            return


def _mount(source: str, target: Path, fstype: str, flags: int, data: str = "") -> None:
    _call(
        _libc.mount,
        target,
        source.encode(),
        os.fsencode(target),
        fstype.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )


def _call(function: Callable[..., int], path: Path, *arguments: object) -> None:
    if function(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(path))
