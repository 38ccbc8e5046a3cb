#!/usr/bin/env bash
# Brings the tree of an earlier commit, from which one upgrades, below client-native/target/upgrade, and builds its usrbiod.
set -euo pipefail
commit=38167ef
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
upgrade=$root/client-native/target/upgrade
mkdir -p "$upgrade/$commit"
git -C "$root" archive "$commit" | tar -x -C "$upgrade/$commit"
cd "$upgrade/$commit/client-native"
CARGO_TARGET_DIR=$upgrade/target cargo --locked build -q -p usrbiod
