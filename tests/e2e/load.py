"""A pod that writes, reads back and checks until it is told to stop: who disturbs it sees the cost."""

from tests.e2e.kube import Namespace
from tests.e2e.kube3fs import CLASSES, claim, inline, of_claim, pod

# Writes numbered, checksummed blocks until it is told to stop, and reads each back.
_LOAD = """
import hashlib, itertools, os, pathlib
stop = pathlib.Path("/dev/shm/stop")
with open("/data/load", "w+b", buffering=0) as file:
    for number in itertools.count():
        block = hashlib.sha256(str(number).encode()).digest() * 2048
        file.seek(number % 64 * len(block))
        assert file.write(block) == len(block)
        os.fsync(file.fileno())
        with open("/data/load", "rb") as other:
            other.seek(number % 64 * len(block))
            assert other.read(len(block)) == block, number
        pathlib.Path("/dev/shm/new").write_text(str(number))
        os.replace("/dev/shm/new", "/dev/shm/count")
        if stop.exists():
            break
print("good")
"""


def loaded_pod(namespace: Namespace) -> None:
    volumes = {"/data": of_claim("data"), "/dev/shm": inline("shm", size="16Mi")}
    namespace.apply([claim("data", CLASSES["directory"]), pod("load", volumes, "python3", "-c", _LOAD)])
    namespace.wait_ready("load")


def progress(namespace: Namespace) -> int:
    return int(namespace.exec("load", "cat", "/dev/shm/count"))


def has_gone_on(namespace: Namespace, before: int) -> bool:
    return progress(namespace) > before + 5
