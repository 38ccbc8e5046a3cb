"""usrbiod's seccomp profile: `python3 -m kube3fs_csi.seccomp --folder DIR` writes it to DIR/usrbiod.json.

The profiles of container runtimes refuse io_uring. This one allows what the daemon needs and no more: files,
memory, threads, sockets and io_uring. No mounting, no tracing, no namespaces, no modules, no keys, no bpf.

The daemon is root and sees the node's processes: so it sends no signals and touches no limits of others. Of
ioctl(2) it has the requests that it makes, of socket(2) the families that it serves, of mknod(2) what needs
no device. io_uring does none of these past the filter but sockets. What remains with its capabilities: every
file of a file system that a volume lies on, by open_by_handle_at(2). SECURITY.md says what to do about it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from kube3fs_csi.node.state import write_atomically

FILE = "usrbiod.json"

_PROCESS = """
    execve exit exit_group wait4 waitid getpid getppid gettid pidfd_open
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend sigaltstack
    clone clone3 set_tid_address set_robust_list get_robust_list rseq membarrier restart_syscall
    prctl arch_prctl getrlimit setrlimit getrusage sysinfo uname getrandom capget capset
    sched_yield sched_getaffinity sched_getparam sched_getscheduler getcpu getpriority
    getuid geteuid getgid getegid getgroups getresuid getresgid
    setuid setgid setgroups setfsuid setfsgid setresuid setresgid
"""
_TIME = """
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time
    timerfd_create timerfd_settime timerfd_gettime eventfd2 signalfd4
"""
_MEMORY = """
    brk mmap munmap mremap mprotect madvise mincore mlock mlock2 munlock msync memfd_create cachestat
    futex futex_wait futex_wake futex_waitv
"""
_FILES = """
    open openat openat2 close close_range creat read write readv writev pread64 pwrite64 preadv pwritev
    preadv2 pwritev2 lseek dup dup2 dup3 fcntl flock pipe pipe2 sendfile copy_file_range
    stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getcwd chdir fchdir
    mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
    readlink readlinkat truncate ftruncate fallocate fadvise64 getdents64 umask
    chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown utimensat utimes
    getxattr lgetxattr fgetxattr setxattr lsetxattr fsetxattr listxattr llistxattr flistxattr removexattr
    lremovexattr fremovexattr getxattrat setxattrat listxattrat removexattrat
    fsync fdatasync sync_file_range syncfs name_to_handle_at open_by_handle_at
"""
_EVENTS = """
    epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6
    io_uring_setup io_uring_enter io_uring_register
"""
_SOCKETS = """
    socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt
    sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg shutdown
"""
_NAMESPACE_FLAGS = 0x7E020080
"""CLONE_NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWNS and NEWTIME of clone(2), unshare(2)."""


_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET and AF_INET6."""
_IOCTLS = (
    0x4010E501,  # FUSE_DEV_IOC_BACKING_OPEN
    0x4004E502,  # FUSE_DEV_IOC_BACKING_CLOSE
    0x80086601,  # FS_IOC_GETFLAGS
    0x40086602,  # FS_IOC_SETFLAGS: the immutable flag of a file of its volumes
    0x8400941F,  # BTRFS_IOC_FS_INFO: which file system a subvolume belongs to
    0x5401,  # TCGETS: isatty(3)
    0x5421,  # FIONBIO
    0x5451,  # FIOCLEX
)
_S_IFMT, _S_IFCHR = 0o170000, 0o020000
_NODE_KINDS = (0, 0o100000, 0o010000, 0o140000)
"""Kinds of nodes that mknod(2) makes without CAP_MKNOD: regular files, FIFOs and sockets."""
_32_BITS = 0xFFFFFFFF


def _equal(index: int, value: int, mask: int = _32_BITS) -> dict[str, Any]:
    """An argument that must have `value` in the bits of `mask`."""
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _if(name: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(conditions)}


def _by_arguments() -> list[dict[str, Any]]:
    """Calls that are allowed with some arguments only."""
    # Of device nodes only a whiteout of overlayfs, which is none: character device 0:0.
    nodes = [
        rule
        for name, mode in (("mknod", 1), ("mknodat", 2))
        for rule in (
            *(_if(name, _equal(mode, kind, _S_IFMT)) for kind in _NODE_KINDS),
            _if(name, _equal(mode, _S_IFCHR, _S_IFMT), _equal(mode + 1, 0)),
        )
    ]
    return [
        *(_if("ioctl", _equal(1, request)) for request in _IOCTLS),
        *(_if("socket", _equal(0, family)) for family in _FAMILIES),
        _if("prlimit64", _equal(0, 0)),  # its own limits
        _if("tgkill", _equal(2, 0)),  # no signal: whether a thread is there
        *nodes,
    ]


def profile() -> dict[str, Any]:
    """The profile as runtimes take it. clone3 is ENOSYS: its flags cannot be seen; glibc then uses clone."""
    groups = (_PROCESS, _TIME, _MEMORY, _FILES, _EVENTS, _SOCKETS)
    names = sorted({name for group in groups for name in group.split()} - {"clone", "clone3"})
    no_namespaces = {"index": 0, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone", "unshare"], "action": "SCMP_ACT_ALLOW", "args": [no_namespaces]},
            *_by_arguments(),
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    }


def main() -> None:
    """Writes the profile."""
    parser = argparse.ArgumentParser(prog="python3 -m kube3fs_csi.seccomp", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the kubelet looks for profiles")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, json.dumps(profile(), indent=1).encode(), sync=False)


if __name__ == "__main__":
    main()
