"""The command line, as the wheel installs it."""

import ctypes
import gc
import json
import os
import re
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

import usrbio
from usrbio.cli import ls

USRBIO = Path(sysconfig.get_path("scripts")) / "usrbio"
BLOCK = 4096


def call(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([USRBIO, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("command", ["", "serve", "check", "bench", "cp", "ls"])
def test_help_has_examples(command):
    """Each command's --help shows how it is used."""
    assert "examples:\n  " in call(*command.split(), "--help").stdout


def test_check_says_what_works(mount_point, path):
    """On a good mount nothing fails, for a directory and for a file, and nothing is left behind."""
    before = set(os.listdir(mount_point))
    for where in (mount_point, path):
        out = call("check", where).stdout
        assert "ok    a read through the ring is answered\n" in out
        assert "fail" not in out
    findings = json.loads(call("check", mount_point, "--json").stdout)
    assert {finding["state"] for finding in findings} <= {"ok", "note"}
    assert set(os.listdir(mount_point)) == before


def test_check_says_what_does_not_work_and_what_to_do(tmp_path, mount_point):
    """A wrong path fails with advice that names the mounts that are there."""
    out = call("check", tmp_path, status=1).stdout
    assert f"fail  {tmp_path} is on no 3FS mount" in out
    assert f"-> give a path below {mount_point}" in out or " or " in out
    assert "-> give a path that exists" in call("check", tmp_path / "missing", status=1).stdout


def test_check_survives_a_daemon_that_does_not_answer_reads(serve, stopped, tmp_path, monkeypatch):
    """What cannot be found out in time is a failure, not a hang."""
    from usrbio.cli import check

    with serve(tmp_path / "data", tmp_path / "mnt") as daemon:
        (tmp_path / "mnt" / "f").write_bytes(b"content")
        mount = usrbio.Mount(tmp_path / "mnt")
        original = usrbio.Ring.submit

        def submit_to_a_stopped_daemon(self, *arguments):
            with stopped(daemon):
                return _Late(original(self, *arguments))

        monkeypatch.setattr(usrbio.Ring, "submit", submit_to_a_stopped_daemon)
        *_, last = check._ring(mount, str(tmp_path / "mnt" / "f"))
        assert (last.state, last.advice) == ("fail", "the daemon does not answer: look at its log")


class _Late:
    def __init__(self, batch):
        self.batch = batch

    def wait(self, timeout):
        raise TimeoutError(110, "not complete")


def test_bench_prints_a_table_and_json(mount_point, path):
    """A line for each way of reading, for people and for machines."""
    out = call("bench", mount_point, "--seconds", 0.2, "--size", "1M").stdout
    lines = out.splitlines()
    assert "random reads of 4.0 KiB from " in lines[0]
    assert lines[2].split() == ["reads/s", "bytes/s", "CPU", "per", "read", "times", "preadv"]
    assert [line.split("  ")[0] for line in lines[3:]] == [
        "os.preadv in a loop", "ring.read", "ring.submit, two batches in flight",
    ]  # fmt: skip
    result = json.loads(call("bench", path, "--json", "--seconds", 0.1, "--batch", 8, "--block", "1K").stdout)
    assert result["lines"][0]["times_preadv"] == 1.0
    assert all(line["reads_per_second"] > 0 for line in result["lines"])
    assert not [name for name in os.listdir(mount_point) if name.startswith(".usrbio")]


def test_bench_refuses_what_it_cannot_measure(tmp_path, path, mount_point):
    """One sentence on stderr, status 1; wrong options have status 2."""
    assert "is on no 3FS mount" in call("bench", tmp_path, status=1).stderr
    assert call("bench", path, "--block", "1G", status=1).stderr.startswith("usrbio: ")
    for wrong in (("--block", "many"), ("--batch", "0"), ("--size", "-1")):
        assert "error: argument" in call("bench", path, *wrong, status=2).stderr


def test_ls_lists_rings_and_iovs(mount_point, mount, ring, writer, iov):
    """Sessions with their numbers, and each ring and Iov with its id."""
    out = call("ls").stdout
    assert f"{mount_point}  Iov" in re.sub(" {2,}", "  ", out)
    gc.collect()  # what failed tests before this one held on to
    deadline = time.monotonic() + 30
    counts = None
    # What a process of another test left goes a moment after it.
    while counts != (2, 1) and time.monotonic() < deadline:
        listed = json.loads(call("ls", "--json").stdout)
        session = next(s for s in listed["sessions"] if s["mount_point"] == str(mount_point))
        counts = session["rings"], session["iovs"]
    assert counts == (2, 1)
    here = {o["id"]: o["kind"] for o in listed["objects"] if o["mount"] == str(mount_point)}
    assert here == {ring._core.id: "read ring", writer._core.id: "write ring", iov.id: "Iov"}


def test_ls_leaves_out_a_mount_whose_daemon_is_gone(tmp_path, mount_point, iov):
    """It is named, and the others are listed."""
    dead = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={dead},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"hf3fs.dead", os.fsencode(tmp_path), b"fuse.hf3fs", ctypes.c_ulong(0), options) == 0
    os.close(dead)
    try:
        done = call("ls", "--json")
    finally:
        libc.umount2(os.fsencode(tmp_path), 2)  # MNT_DETACH
    assert f"{tmp_path} is left out" in done.stderr
    assert iov.id in {found["id"] for found in json.loads(done.stdout)["objects"]}


def test_names_of_rings_and_iovs_are_understood():
    """The names of the wire contract; what is the daemon's own is none."""
    uuid = "50f3d3cf-0000-4000-8000-00001db8d600"
    kinds = {"": "Iov", ".b1048576": "Iov", ".r0.t0": "read ring", ".w-4.ph.t10.f10": "write ring"}
    for parts, kind in kinds.items():
        assert ls.parse_name(uuid + parts) == {"id": uuid, "kind": kind, "name": uuid + parts}
    assert ls.parse_name("submit-ios.ph") is None


def test_cp_copies_to_from_and_within_a_mount(mount_point, path, tmp_path, content):
    """Bytes and mode are the same, and nothing else is left."""
    path.chmod(0o640)
    local, back, within = tmp_path / "local", mount_point / f"{tmp_path.name}.back", tmp_path / "dir"
    within.mkdir()
    call("cp", path, local)
    call("cp", local, back, "--block", "10000", "--depth", 3)
    call("cp", back, mount_point / f"{tmp_path.name}.again", "--quiet")
    call("cp", path, back, within)
    for copy in (local, back, mount_point / f"{tmp_path.name}.again", within / path.name, within / back.name):
        assert copy.read_bytes() == content
        assert copy.stat().st_mode & 0o777 == 0o640
    assert len(os.listdir(tmp_path)) == 2


def test_cp_copies_trees(mount_point, tmp_path):
    """With -r: directories, empty files, and files of odd sizes."""
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    sizes = {"empty": 0, "a/one": 1, "a/b/odd": 1234567}
    for name, size in sizes.items():
        (tree / name).write_bytes(os.urandom(size))
    target = mount_point / tmp_path.name
    call("cp", "-r", tree, target)
    call("cp", "-r", target, tmp_path / "back")
    for name in sizes:
        assert (tmp_path / "back" / name).read_bytes() == (tree / name).read_bytes()


def test_cp_keeps_holes(mount_point, tmp_path):
    """A sparse file is copied right, and its hole at the end costs nothing."""
    sparse = mount_point / f"{tmp_path.name}.sparse"
    with sparse.open("wb") as file:
        file.write(b"head")
        file.seek(5 << 20)
        file.write(b"middle")
        file.truncate(50 << 20)
    call("cp", sparse, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == sparse.read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < 20 << 20


def test_cp_refuses_with_a_sentence(mount_point, path, tmp_path):
    """Nothing is written when something is wrong."""
    (tmp_path / "f").write_bytes(b"x")
    for arguments, sentence in (
        ((tmp_path / "f", tmp_path / "g"), "is on no USRBIO mount"),
        ((path, path), "are the same file"),
        ((mount_point, tmp_path / "g"), "give -r to copy it"),
        ((tmp_path / "missing", mount_point), f"{tmp_path}/missing: No such file"),
        ((path, path, tmp_path / "g"), "need a directory to go to"),
        (("-r", tmp_path, tmp_path / "in"), "cannot be copied into itself"),
        ((path, tmp_path / "no" / "dir"), "No such file"),
        (("/dev/zero", mount_point), "neither a file nor a directory"),
    ):
        assert sentence in call("cp", *arguments, status=1).stderr
    assert os.listdir(tmp_path) == ["f"]


def test_serve_says_why_it_cannot(tmp_path):
    """The daemon's own sentence and exit code."""
    done = call("serve", tmp_path, tmp_path / "inside", status=10)
    assert "lie one inside the other" in done.stderr


def test_serve_detached_comes_back_when_the_mount_is_there(tmp_path):
    """The directories are made, the mount works when the command ends, and umount ends the daemon."""
    mnt = tmp_path / "made" / "mnt"
    assert call("serve", "--detach", tmp_path / "made" / "data", mnt).stderr == ""
    try:
        (mnt / "f").write_bytes(b"content")
        assert "fail" not in call("check", mnt / "f").stdout
    finally:
        subprocess.run(["umount", mnt], check=True)
    assert (tmp_path / "made" / "data" / "f").read_bytes() == b"content"
    assert call("serve", "--detach", tmp_path / "made", mnt, status=10).stderr
