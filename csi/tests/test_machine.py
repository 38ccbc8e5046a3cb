"""What the machine refuses is told in words: the volume, where, what to do, and a code to act by."""

import errno
import os
from typing import Any

import grpc
import pytest

from kube3fs_csi.api import csi_pb2
from kube3fs_csi.node import mounts
from kube3fs_csi.node.commands import CommandFailed, run
from kube3fs_csi.node.usrbiod import DaemonError
from kube3fs_csi.serving import machine
from kube3fs_csi.serving.interceptor import CallInterceptor

CODES = {
    errno.ENOSPC: "RESOURCE_EXHAUSTED",
    errno.EDQUOT: "RESOURCE_EXHAUSTED",
    errno.EMFILE: "UNAVAILABLE",
    errno.ENFILE: "UNAVAILABLE",
    errno.EROFS: "UNAVAILABLE",
    errno.EIO: "UNAVAILABLE",
    errno.ENOTCONN: "UNAVAILABLE",
    errno.ENOENT: "UNAVAILABLE",
    errno.ENOTDIR: "UNAVAILABLE",
    errno.EACCES: "UNAVAILABLE",
    errno.EDOM: "INTERNAL",
}


class Aborted(Exception):
    """As grpc.aio ends a call."""


class Context:
    """Keeps what a call is answered."""

    code: grpc.StatusCode
    sentence = ""

    async def abort(self, code: grpc.StatusCode, sentence: str) -> None:
        self.code, self.sentence = code, sentence
        raise Aborted


async def answer(error: BaseException, **request: Any) -> Context:
    """What a call is answered whose work raises `error`."""

    async def call(_request: Any, _context: Any) -> None:
        raise error

    context = Context()
    with pytest.raises(Aborted):
        await CallInterceptor()._wrap("NodePublishVolume", call)(
            csi_pb2.NodePublishVolumeRequest(**request), context
        )
    return context


@pytest.mark.parametrize(("number", "code"), CODES.items(), ids=[errno.errorcode[n] for n in CODES])
async def test_an_errno_is_told_in_words(number: int, code: str) -> None:
    """Code, volume, place and advice: never only the system's word."""
    error = OSError(number, os.strerror(number), "/data/volumes/pvc-1")
    answered = await answer(error, volume_id="pvc-1")
    assert answered.code.name == code
    assert answered.sentence.startswith("NodePublishVolume of volume pvc-1 failed at /data/volumes/pvc-1: ")
    assert os.strerror(number) in answered.sentence
    assert "retry" in answered.sentence or code == "INTERNAL"
    assert "[Errno" not in answered.sentence


async def test_every_advice_says_what_to_do() -> None:
    """For all errnos that are known, and those that are not."""
    for number in (*machine.ADVICE, errno.EDOM, None):
        sentence = str(
            machine.refusal("making volume v1", OSError(number, "words") if number else OSError("words"))
        )
        assert "making volume v1 failed" in sentence
        assert ":" in sentence.removeprefix("making volume v1 failed: ")


async def test_a_defect_names_the_volume_and_no_more() -> None:
    """What went wrong inside stands in the log."""
    answered = await answer(KeyError("secret"), volume_id="pvc-1")
    assert answered.code is grpc.StatusCode.INTERNAL
    assert "NodePublishVolume of volume pvc-1 met a defect" in answered.sentence
    assert "secret" not in answered.sentence


async def test_a_long_sentence_is_cut() -> None:
    """GRPC would drop a header that is too large, and with it the code."""
    answered = await answer(OSError(errno.EIO, "words", "/" + "\u1234" * 100_000), volume_id="pvc-1")
    assert len(answered.sentence) <= 1500


async def test_usrbiod_and_programs_are_heard() -> None:
    """Their words with the volume's name; a full disk is one, whoever says so."""
    answered = await answer(DaemonError("attach", "failed", "EIO"), volume_id="pvc-1")
    assert answered.code is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(CommandFailed) as refused:
        run("sh", "-c", "echo cannot write: No space left on device >&2; exit 1")
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(CommandFailed) as refused:
        run("sh", "-c", "exit 3")
    answered = await answer(refused.value, volume_id="pvc-1")
    assert (answered.code, "volume pvc-1" in answered.sentence) == (grpc.StatusCode.INTERNAL, True)


def test_a_mount_that_fails_names_its_target(tmp_path: Any) -> None:
    """And not the word that the kernel is given for its source."""
    with pytest.raises(OSError, match="No such file or directory") as refused:
        mounts.mount_tmpfs(tmp_path / "none", "size=1M")
    assert refused.value.filename == str(tmp_path / "none")
