#!/usr/bin/env bash
# Checks that the crate compiles with each of its features alone and with none, and that the core (no features) needs few crates.
set -euo pipefail
cd "$(dirname "$0")/.."

most=50
core=$(cargo tree --locked --no-default-features --edges normal --prefix none | awk '{print $1}' | sort -u | grep -vx beamfuse)
count=$(wc -l <<<"$core")
if [ "$count" -gt "$most" ]; then
    echo "the core needs $count crates, expected at most $most:" $core >&2
    exit 1
fi
for crate in clap candle-core cudarc ureq zip axum tokio; do
    if grep -qx "$crate" <<<"$core"; then
        echo "the core needs $crate" >&2
        exit 1
    fi
done
echo "the core needs $count crates"

# One feature's crate is checked on one core: several at a time, each lane with its own files.
check() {
    local lane=$1 said feature
    shift
    for feature in "$@"; do
        # Device code is compiled elsewhere.
        said=$(NVCC=none CARGO_TARGET_DIR=target/features/$lane cargo check --locked --lib --bins --no-default-features --features "$feature" 2>&1) \
            || { echo "features: ${feature:-none}: $said" >&2; return 1; }
        if grep -E -A6 '^warning: (unused|.* never )' <<<"$said" >&2; then
            echo "features: ${feature:-none}" >&2
            return 1
        fi
        echo "features: ${feature:-none}"
    done
}

mapfile -t features < <(sed -n '/^\[features\]/,/^\[dependencies\]/s/^\([a-z-]*\) = .*/\1/p' Cargo.toml | grep -vx default)
features+=("")
lanes=2 running=()
for ((lane = 0; lane < lanes; lane++)); do
    mine=()
    for ((at = lane; at < ${#features[@]}; at += lanes)); do
        mine+=("${features[at]}")
    done
    check "$lane" "${mine[@]}" &
    running+=($!)
done
for lane in "${running[@]}"; do
    wait "$lane"
done
