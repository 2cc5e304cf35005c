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

features=$(sed -n '/^\[features\]/,/^\[dependencies\]/s/^\([a-z-]*\) = .*/\1/p' Cargo.toml | grep -vx default)
for feature in "" $features; do
    echo "features: ${feature:-none}"
    # Device code is compiled elsewhere.
    said=$(NVCC=none cargo check --locked --lib --bins --no-default-features --features "$feature" 2>&1) || { echo "$said" >&2; exit 1; }
    if grep -E -A6 '^warning: (unused|.* never )' <<<"$said" >&2; then
        exit 1
    fi
done
