#!/usr/bin/env bash
# Packs what benches/gpu.sh needs on a machine with a GPU into one archive of less than 40 MB: the stripped binary, the script, the
# demo model and, if asked for, a wheel of CTranslate2.
#
#   benches/gpu_pack.sh OUTPUT.tar.xz [WHEEL...]
#
# There: tar xf OUTPUT.tar.xz && beamfuse-gpu/gpu.sh 0
#
# Variables: BINARY (built here if it is not named: cargo build --release, with nvcc, for BEAMFUSE_CUDA_ARCH, by default 90).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/.." && pwd)
[ $# -ge 1 ] || { sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//'; exit 2; }
output=$(realpath -m "$1")
shift
if [ -z "${BINARY:-}" ]; then
    (cd "$top" && BEAMFUSE_CUDA_ARCH=${BEAMFUSE_CUDA_ARCH:-90} cargo build --release --locked)
    BINARY=$top/target/release/beamfuse
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
folder=$work/beamfuse-gpu
mkdir -p "$folder/peers"
strip -o "$folder/beamfuse" "$BINARY"
cp "$here/gpu.sh" "$here/gpu_model.py" "$top/src/cli/bench/sentences.txt" "$folder/"
cp "$here/peers/gpu.py" "$folder/peers/"
cp -r "$top/models/m30k-en-de" "$folder/"
for wheel in "$@"; do cp "$wheel" "$folder/"; done
tar -C "$work" -cJf "$output" beamfuse-gpu
size=$(stat -c %s "$output")
echo "$output: $((size / 1000000)) MB, the binary $(($(stat -c %s "$folder/beamfuse") / 1000000)) MB unpacked"
[ "$size" -lt 40000000 ] || { echo "gpu_pack.sh: expected less than 40 MB" >&2; exit 1; }
