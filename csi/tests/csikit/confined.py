"""Runs a program under a seccomp profile: `confined.py PROFILE PROGRAM ARGUMENT...`.

As container runtimes do, by libseccomp, which Debian's apt brings along.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

_ALLOW, _ERRNO, _MASKED_EQUAL = 0x7FFF0000, 0x00050000, 7


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("one", ctypes.c_uint64),
        ("two", ctypes.c_uint64),
    )


def load(profile: dict[str, Any]) -> None:
    """Puts this process under `profile` for good."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    filter_ = ctypes.c_void_p(library.seccomp_init(_ERRNO | profile["defaultErrnoRet"]))
    for rule in profile["syscalls"]:
        action = _ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else _ERRNO | rule["errnoRet"]
        arguments = rule.get("args", [])
        assert all(argument["op"] == "SCMP_CMP_MASKED_EQ" for argument in arguments)
        comparisons = (_Comparison * len(arguments))(
            *(_Comparison(one["index"], _MASKED_EQUAL, one["value"], one["valueTwo"]) for one in arguments)
        )
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:  # of another architecture, or newer than the library
                continue
            failed = library.seccomp_rule_add_array(filter_, action, number, len(arguments), comparisons)
            assert not failed, (name, failed)
    assert library.seccomp_load(filter_) == 0


if __name__ == "__main__":
    load(json.loads(Path(sys.argv[1]).read_text()))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 this is what it is for
