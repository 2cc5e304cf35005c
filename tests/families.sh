#!/usr/bin/env bash
# Holds models of all families in a directory to what transformers computed from them, on the CPU and on the emulated device, and any batch and number of threads to
# the same bits: tests/families.sh DIR, each model a directory of DIR as tests/data/families/README.md says. Needs cargo and a C++ compiler alone.
set -euo pipefail
BEAMFUSE_FAMILIES=$(realpath "${1:?usage: tests/families.sh DIR}")
export BEAMFUSE_FAMILIES
cd "$(dirname "$0")/.."
cargo test --lib -- model::tests::every_family model::tests::a_sentence
