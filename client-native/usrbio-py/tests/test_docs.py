"""What the documentation shows runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import usrbio

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = Path(__file__).parents[1] / "examples"


def snippets(text: str) -> str:
    """All Python of a page, at the lines where it stands, so that an error names its line."""
    parts, line = [], 0
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        start = text.count("\n", 0, match.start(1))
        parts.append("\n" * (start - line) + match[1])
        line = start + match[1].count("\n")
    assert parts
    return "".join(parts)


@pytest.mark.parametrize("page", ["docs/from-pread-to-rings.md", "docs/hf3fs-fuse.md", "README.md"])
def test_the_snippets_of_a_page_run(page, mount_point):
    """One after another, with the test's mount for /mnt/data."""
    (mount_point / "train.bin").write_bytes(bytes(4096 * 1000))
    code = snippets((REPOSITORY / page).read_text()).replace("/mnt/data", str(mount_point))
    exec(compile(code, page, "exec"), {"__name__": page})


def test_the_example_in_the_packages_docstring_runs(mount_point):
    """As above."""
    (mount_point / "train.bin").write_bytes(bytes(4096 * 1000))
    assert usrbio.__doc__
    example = usrbio.__doc__[usrbio.__doc__.index("    import numpy") : usrbio.__doc__.index("Errors.")]
    lines = [line.removeprefix("    ") for line in example.splitlines()]
    exec("\n".join(lines).replace("/mnt/data", str(mount_point)), {})


def test_the_examples_run(path, content):
    """As a user would run them."""

    def run(name):
        command = [sys.executable, EXAMPLES / name, path]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    assert run("torch_dataset.py").startswith(f"256 records, their bytes add up to {sum(content)}, read by ")
    assert run("typed.py") == f"{content[:16] + content[16:32] + content[32:48]}\n"


def test_the_readmes_commands_work_as_typed_in_a_fresh_shell():
    """Install, serve and benchmark; in a mount namespace, so that /opt, /srv and /mnt are the test's own."""
    text = (REPOSITORY / "README.md").read_text()
    commands = re.search(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert commands
    assert len(commands[1].splitlines()) == 3
    script = f"""
        for place in /opt /srv /mnt; do mount -t tmpfs tmpfs $place; done
        {commands[1]}
        head -c 4096000 /dev/urandom > /mnt/data/train.bin
        /opt/usrbio/bin/usrbio check /mnt/data/train.bin
        umount /mnt/data
    """
    shell = ["unshare", "--mount", "bash", "-euc", script]
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        shell, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ring.read" in done.stdout
    assert "fail" not in done.stdout
