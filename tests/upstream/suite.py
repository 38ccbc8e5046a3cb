"""Runs the compiled suite in the test cluster and says what became of every test: `suite FOLDER FOCUS`."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from kubernetes import config

from tests.e2e.kube import Cluster
from tests.e2e.kube3fs import installed

DRIVER = Path(__file__).with_name("driver.yaml")
# Most of a test's time is waiting for the kubelet.
PROCESSES = 6
# What kills kubelets over ssh, what waits until a node has all the volumes that it may have, and what needs a
# populator of volumes from a registry.
LEFT_OUT = r"\[Disruptive\]|\[Feature:VolumeLimits\]|any volume data source"


def main(folder: Path, focus: str) -> int:
    """The exit status of the suite."""
    report = folder / "report.xml"
    argv = [str(folder / "ginkgo"), f"--procs={PROCESSES}", "--timeout=2h", "--no-color", "--succinct"]
    argv += [f"--junit-report={report}", f"--focus=External.Storage.*{focus}", f"--skip={LEFT_OUT}"]
    argv += [str(folder / "suite.test"), "--"]
    argv += [f"--kubeconfig={os.environ['KUBECONFIG']}", f"--storage.testdriver={DRIVER}"]
    with config.new_client_from_config(os.environ["KUBECONFIG"]) as api, installed(Cluster(api)):
        status = subprocess.run(argv, cwd=folder, check=False).returncode
    print("\n".join(_summary(report)))
    return status


def _summary(report: Path) -> list[str]:
    """A line for each test that ran, and how many there were of each kind."""
    cases = ET.parse(report).getroot().iter("testcase")
    seen = [(_name(case), case.get("status", "?"), float(case.get("time", 0))) for case in cases]
    lines = [
        f"{status:8} {seconds:6.1f} s  {name}"
        for name, status, seconds in sorted(seen)
        if status != "skipped" and name
    ]
    counts = Counter(status for name, status, _ in seen if name)
    return [*lines, ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))]


def _name(case: ET.Element) -> str:
    """The test's name, without the driver's; empty for the suite's own set-up."""
    found = re.search(r"\[Testpattern: (.*)", case.get("name", ""))
    return found[1].replace("]", ":", 1) if found else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
