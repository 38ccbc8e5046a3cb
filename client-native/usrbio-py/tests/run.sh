#!/usr/bin/env bash
# Tests the wheels in DIRECTORY: for each Python, a clean environment with the wheel for it, then the tests; mypy once.
#
# usage: run.sh DIRECTORY ENVIRONMENTS
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
wheels=$1 environments=$2
missing=()
for version in 3.10 3.11 3.13; do
    if ! python=$("$here/find-python.sh" $version); then
        missing+=("$version")
        continue
    fi
    environment=$environments/$version
    rm -rf "$environment"
    "$python" -m venv "$environment"
    pip=("$environment/bin/pip" install --quiet --disable-pip-version-check)
    "${pip[@]}" --require-hashes -r "$here/test-requirements.txt"
    # Only from here: whatever else is called usrbio on a package index is not ours.
    "${pip[@]}" --no-index --find-links "$wheels" usrbio
    echo "Python $version:"
    (cd "$here" && "$environment/bin/python" -m pytest -q tests)
    if [ $version = 3.11 ]; then
        (cd "$here" && "$environment/bin/mypy" python/usrbio python/hf3fs_fuse python/hf3fs_py_usrbio && "$environment/bin/mypy" examples)
    fi
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "NOT TESTED with Python ${missing[*]}: not found here, neither on the PATH nor from pyenv" >&2
    # Debian 12 has this one itself: without it nothing was tested as it should be.
    [[ " ${missing[*]} " != *" 3.11 "* ]]
fi
