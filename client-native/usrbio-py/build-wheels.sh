#!/usr/bin/env bash
# Builds the wheels of the Python package into DIRECTORY: one for Python 3.11 and later, one for 3.10, both for glibc 2.28
# and later, both with the daemon in them. Needs maturin, cargo-zigbuild and ziglang from PyPI on the PATH, and a Python
# 3.10 for its wheel: without one that wheel is left out, and the script says so.
#
# usage: build-wheels.sh DIRECTORY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dist=$(cd "$1" && pwd)
triple=$(rustc -vV | sed -n 's/^host: //p')
cd "$here/.."
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

cargo zigbuild --release --locked -p usrbiod --target "$triple.2.28"
install -d "$target/usrbio.data/scripts"
install -m 755 "$target/$triple/release/usrbiod" "$target/usrbio.data/scripts/"
strip "$target/usrbio.data/scripts/usrbiod"

rm -f "$dist"/usrbio-*.whl
wheel() {
    maturin build --quiet --release --zig --target "$triple" --compatibility manylinux_2_28 --manifest-path usrbio-py/Cargo.toml \
        --out "$dist" "$@"
}
# Built against the limited API of 3.11, by that or any later Python: it serves all of them.
wheel --interpreter "$("$here/find-python.sh" 3.11 || command -v python3)" --features abi3
if python=$("$here/find-python.sh" 3.10); then
    wheel --interpreter "$python"
else
    echo 'build-wheels: no Python 3.10 here, neither on the PATH nor from pyenv: its wheel is not built' >&2
fi
ls -1 "$dist"/usrbio-*.whl
