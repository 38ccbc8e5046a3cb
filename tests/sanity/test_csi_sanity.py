"""csi-sanity, all suites, against the driver's two processes with the real usrbiod."""

import asyncio
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from csikit.driver import CLUSTER, Driver, running

REPOSITORY = Path(__file__).parents[2]
MIB = 1 << 20

SKIPS = {
    "GroupControllerService not supported": "several volumes at one moment: no back end can",
    "ControllerPublishVolume not supported": "nothing is attached: a volume lies on its node",
    "Controller Publish, UnpublishVolume not supported": "nothing is attached",
    "ControllerUnpublishVolume not supported": "nothing is attached",
    "NodeStageVolume not supported": "each pod has a mount of its own, there is nothing to share",
    "NodeUnstageVolume not supported": "each pod has a mount of its own, there is nothing to share",
    "ControllerGetVolumeHealth not supported": "the node reports health, where the mount is",
    "ControllerListVolumeHealth not supported": "the node reports health, where the mount is",
    "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported": "a snapshot lies where its volume does",
    "pending": "csi-sanity's authors have switched the test off",
}
"""What csi-sanity may skip, by its words, and why we do not offer it."""


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    # A short path: sockets are below it, and theirs end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="k3-") as folder:
        async with running(Path(folder)) as driver:
            yield driver


def programs() -> Path:
    """The folder of the test programs, which are compiled the first time."""
    argv = [sys.executable, "-m", "tests.cluster", "build"]
    built = subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return Path(built.stdout.strip().splitlines()[-1], "bin")


@pytest.mark.timeout(1800)
async def test_csi_sanity(driver: Driver) -> None:
    """Every suite passes; what is skipped is optional in the CSI spec, and listed above."""
    report, parameters = driver.folder / "report.xml", driver.folder / "parameters.yaml"
    parameters.write_text(f"csi.kube3fs.io/cluster: {CLUSTER}\n")
    (driver.kubelet / "pods/sanity").mkdir()
    process = await asyncio.create_subprocess_exec(
        programs() / "csi-sanity",
        f"--csi.endpoint=unix://{driver.node_socket}",
        f"--csi.controllerendpoint=unix://{driver.controller_socket}",
        f"--csi.mountdir={driver.kubelet}/pods/sanity/mount",
        f"--csi.stagingdir={driver.kubelet}/pods/sanity/staging",
        f"--csi.testvolumeparameters={parameters}",
        f"--csi.testvolumesize={8 * MIB}",
        f"--csi.testvolumeexpandsize={16 * MIB}",
        f"--csi.junitfile={report}",
        "--ginkgo.no-color",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [case.attrib["name"] for case in cases if case.find("failure") is not None]
    skipped = [found.attrib["message"] for case in cases if (found := case.find("skipped")) is not None]
    passed = len(cases) - len(failed) - len(skipped)
    print(f"csi-sanity: {passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    assert not failed, output.decode()
    assert process.returncode == 0, output.decode()
    assert {words.removeprefix("skipped - ") for words in skipped} <= SKIPS.keys()
    assert driver.mounted() == []
    assert [key for key in driver.api.objects if key[0] in ("storagevolumes", "storagesnapshots")] == []
