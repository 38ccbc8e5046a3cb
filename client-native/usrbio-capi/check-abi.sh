#!/bin/sh
# Checks a built library: its 21 symbols and no others, its SONAME, and the newest glibc that it needs.
#
# usage: check-abi.sh LIBRARY [NEWEST-GLIBC, such as 2.28]
set -eu
lib=$1
newest=${2:-}

expected='hf3fs_dereg_fd hf3fs_extract_mount_point hf3fs_hardlink hf3fs_io_entries hf3fs_ior_size hf3fs_iorcreate
hf3fs_iorcreate2 hf3fs_iorcreate3 hf3fs_iorcreate4 hf3fs_iordestroy hf3fs_iovcreate hf3fs_iovdestroy hf3fs_iovopen
hf3fs_iovunlink hf3fs_iovwrap hf3fs_is_hf3fs hf3fs_prep_io hf3fs_punchhole hf3fs_reg_fd hf3fs_submit_ios
hf3fs_wait_for_ios'
expected=$(echo $expected | tr ' ' '\n' | LC_ALL=C sort)
exported=$(nm -D --defined-only "$lib" | awk '{ print $3 }' | LC_ALL=C sort)
if [ "$exported" != "$expected" ]; then
    echo "$lib exports other symbols than the 21 of the C interface:" >&2
    printf '%s\n' "$exported" >&2
    exit 1
fi

soname=$(readelf -dW "$lib" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
if [ "$soname" != libusrbio.so ]; then
    echo "$lib: its SONAME is '$soname', not libusrbio.so" >&2
    exit 1
fi

needed=$(objdump -T "$lib" | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -uV | tail -n 1)
if [ -n "$newest" ] && [ "$(printf '%s\n' "$needed" "$newest" | sort -V | tail -n 1)" != "$newest" ]; then
    echo "$lib needs glibc $needed, newer than $newest:" >&2
    objdump -T "$lib" | grep "GLIBC_$needed" >&2
    exit 1
fi
echo "$lib: 21 symbols, SONAME $soname, glibc $needed, $(wc -c <"$lib") bytes"
