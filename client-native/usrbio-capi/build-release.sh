#!/bin/sh
# Builds libusrbio.so for every glibc from 2.28 on and installs it, its second name and the headers below DIRECTORY
# (default $DESTDIR/usr/local). Needs cargo-zigbuild and ziglang from PyPI on the PATH; with GLIBC=native the plain
# linker is used, and the library needs the glibc of this machine.
#
# usage: build-release.sh [DIRECTORY]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=${1:-${DESTDIR:-}/usr/local}
mkdir -p "$root"
root=$(cd "$root" && pwd)
glibc=${GLIBC:-2.28}
triple=$(rustc -vV | sed -n 's/^host: //p')

cd "$here/.."
# Cargo's own word for where it builds, also with CARGO_TARGET_DIR or a config file.
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
if [ "$glibc" = native ]; then
    cargo build --release --locked -p usrbio-capi
    built=$target/release
    glibc=
else
    cargo zigbuild --release --locked -p usrbio-capi --target "$triple.$glibc"
    built=$target/$triple/release
fi

install -d "$root/lib" "$root/include"
install -m 755 "$built/libusrbio_capi.so" "$root/lib/libusrbio.so"
strip --strip-unneeded "$root/lib/libusrbio.so"
# A link, not a copy: a copy would be a second library with a second table of registered files.
ln -sfn libusrbio.so "$root/lib/libhf3fs_api_shared.so"
install -m 644 "$here/include/usrbio.h" "$here/include/hf3fs_usrbio.h" "$root/include/"
sh "$here/check-abi.sh" "$root/lib/libusrbio.so" "$glibc"
