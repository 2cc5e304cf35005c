#!/bin/sh
# Translates many lines in one process and watches its memory: it must stay flat, and every line must come out.
#
#   benches/soak.sh [LINES [BINARY [OPTION...]]]
#
# LINES defaults to 200000, BINARY to target/release/beamfuse; OPTIONs go to `beamfuse translate`. Samples of VmRSS are printed as
# they are taken, once per SOAK_INTERVAL seconds (default 5). The first third of the run may grow: sessions and allocators reach
# their size there. After it the mean of the last third may exceed that of the second by 5% and 8 MiB at most. Linux only.
set -eu

lines=${1:-200000}
binary=${2:-target/release/beamfuse}
[ $# -le 2 ] && set -- || shift 2
interval=${SOAK_INTERVAL:-5}
sentences=$(dirname "$0")/../src/cli/bench/sentences.txt
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT

# Every line is its own: no two share the sentence and the number.
awk -v lines="$lines" '{ text[NR] = $0 } END { for (i = 0; i < lines; i++) print text[i % NR + 1] " " i }' \
    "$sentences" > "$work/input"

: > "$work/samples"
"$binary" translate --input "$work/input" --output "$work/output" "$@" 2> "$work/errors" &
pid=$!
while kill -0 "$pid" 2>/dev/null; do
    rss=$(awk '/^VmRSS:/ { print $2 }' "/proc/$pid/status" 2>/dev/null || true)
    if [ -n "$rss" ]; then
        done=$(wc -l < "$work/output.partial" 2>/dev/null || echo 0)
        echo "$rss" >> "$work/samples"
        echo "lines $done VmRSS $rss kB"
    fi
    sleep "$interval"
done
code=0
wait "$pid" || code=$?
pid=
if [ "$code" -ne 0 ]; then
    echo "soak: translate ended with $code: $(head -c 400 "$work/errors")" >&2
    exit 1
fi

got=$(wc -l < "$work/output")
if [ "$got" -ne "$lines" ]; then
    echo "soak: expected $lines lines, got $got" >&2
    exit 1
fi
empty=$(grep -c '^$' "$work/output" || true)
if [ "$empty" -ne 0 ]; then
    echo "soak: $empty lines are empty" >&2
    exit 1
fi
awk '
    { rss[NR] = $1 }
    END {
        if (NR < 9) { print "soak: only " NR " samples: too few to tell; use more lines or a shorter SOAK_INTERVAL"; exit 1 }
        third = int(NR / 3)
        for (i = third + 1; i <= 2 * third; i++) second += rss[i] / third
        for (i = NR - third + 1; i <= NR; i++) last += rss[i] / third
        printf "soak: mean VmRSS %.0f kB in the second third, %.0f kB in the last\n", second, last
        if (last > 1.05 * second + 8192) { print "soak: memory grows"; exit 1 }
    }' "$work/samples"
echo "soak: $lines lines"
