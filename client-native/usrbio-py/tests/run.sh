#!/usr/bin/env bash
# Tests the wheels in DIRECTORY: for each Python, a clean environment with the wheel for it, then the tests; mypy once.
#
# usage: run.sh DIRECTORY ENVIRONMENTS
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
wheels=$1 environments=$2
mkdir -p "$environments"

# test_with VERSION PYTHON
test_with() {
    environment=$environments/$1
    rm -rf "$environment"
    "$2" -m venv "$environment"
    pip=("$environment/bin/pip" install --quiet --disable-pip-version-check)
    "${pip[@]}" --require-hashes -r "$here/test-requirements.txt"
    # Only from here: whatever else is called usrbio on a package index is not ours.
    "${pip[@]}" --no-index --find-links "$wheels" usrbio
    cd "$here"
    # Tests look at what is left in /dev/shm: each environment has its own.
    unshare --mount sh -c 'mount -t tmpfs tmpfs /dev/shm && exec "$@"' sh \
        "$environment/bin/python" -m pytest -q -p no:cacheprovider tests
    if [ "$1" = 3.11 ]; then
        "$environment/bin/mypy" python/usrbio python/hf3fs_fuse python/hf3fs_py_usrbio
        "$environment/bin/mypy" examples
    fi
}

# Side by side: much of the time is waiting.
missing=() failed=()
declare -A tests
for version in 3.10 3.11 3.13; do
    if python=$("$here/find-python.sh" $version); then
        (test_with $version "$python") >"$environments/$version.log" 2>&1 &
        tests[$version]=$!
    else
        missing+=("$version")
    fi
done
for version in "${!tests[@]}"; do
    wait "${tests[$version]}" || failed+=("$version")
    echo "Python $version:"
    cat "$environments/$version.log"
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED with Python ${failed[*]}: see above" >&2
    exit 1
fi
if [ ${#missing[@]} -gt 0 ]; then
    echo "NOT TESTED with Python ${missing[*]}: not found here, neither on the PATH nor from pyenv" >&2
    # Debian 12 has this one itself: without it nothing was tested as it should be.
    [[ " ${missing[*]} " != *" 3.11 "* ]]
fi
