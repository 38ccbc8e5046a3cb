#!/usr/bin/env bash
# Runs the Dataset example with Debian's torch, in an environment that has the wheel. Nothing is installed: the packages
# (150 MB) are unpacked in FOLDER.
#
# usage: torch.sh PYTHON USRBIOD FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=$1 usrbiod=$2 folder=$3

if ! [ -e "$folder/unpacked" ]; then
    rm -rf "$folder"
    mkdir -p "$folder/debs" "$folder/root"
    (
        cd "$folder/debs"
        mapfile -t packages < <(apt-get install -s --no-install-recommends python3-torch | awk '/^Inst/ {print $2}')
        apt-get download -qq "${packages[@]}"
        for package in *.deb; do dpkg -x "$package" ../root; done
    )
    rm -r "$folder/debs"
    touch "$folder/unpacked"
fi
libraries=$(find "$folder/root" -name '*.so*' -not -path '*-packages*' -printf '%h\n' | sort -u | paste -sd:)

work=$(mktemp -d)
mkdir "$work/data" "$work/mnt"
head -c 40960000 /dev/urandom >"$work/data/train.bin"
"$usrbiod" serve "$work/data" "$work/mnt" &
daemon=$!
trap 'kill $daemon || :; wait $daemon || :; rm -r --one-file-system "$work"' EXIT
for _ in {1..100}; do
    mountpoint -q "$work/mnt" && break
    sleep 0.1
done
mountpoint "$work/mnt"

sum=$("$python" -c 'import sys; print(sum(open(sys.argv[1], "rb").read()))' "$work/data/train.bin")
said=$(LD_LIBRARY_PATH=$libraries PYTHONPATH=$folder/root/usr/lib/python3/dist-packages \
    timeout 120 "$python" "$here/examples/torch_dataset.py" "$work/mnt/train.bin")
echo "$said"
[ "$said" = "10000 records, their bytes add up to $sum, read by a torch DataLoader" ]
