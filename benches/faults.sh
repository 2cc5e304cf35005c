#!/usr/bin/env bash
# Faults at random, for so many minutes, held to what the same commands give when nothing happens to them: kills, requests to
# terminate, full disks, damaged models, little memory, input that is none. Nothing may be lost, nothing may crash, nothing may hang.
#
#   benches/faults.sh [MINUTES [BINARY [SEED]]]
#
# MINUTES defaults to 30, BINARY to target/release/beamfuse, SEED to 1. Prints how often each fault was tried and what came of it; ends
# with 1 at the first loss, and says where. Linux only.
set -uo pipefail

minutes=${1:-30}
binary=$(realpath "${2:-target/release/beamfuse}")
RANDOM=${3:-1}
here=$(realpath "$(dirname "$0")/..")
model=$here/models/m30k-en-de
work=$(mktemp -d)
declare -A count
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

lost() {
    echo "faults: LOST: $*; last words: $(tail -c 400 errors 2>/dev/null)" >&2
    trap - EXIT
    echo "faults: left in $work" >&2
    exit 1
}
tell() { count[$1]=$((${count[$1]:-0} + 1)); }
# A crash, as opposed to an error: ended by a signal, or a panic.
crashed() { [ "$1" -gt 128 ] && [ "$1" -ne 130 ] || grep -q panicked errors; }
below() { echo $((RANDOM * 32768 + RANDOM)) | awk -v limit="$1" '{ print $1 % limit }'; }
seconds() { awk -v millis="$(below "$1")" 'BEGIN { print millis / 1000 }'; }

for i in 1 2 3; do cat "$here/src/cli/bench/sentences.txt"; done > input
awk '{ gsub(/["\\]/, "\\\\&"); printf "{\"source\": \"%s\", \"id\": %d}\n", $0, NR }' input > input.jsonl
awk 'NR <= 60 { print $0 "\tEin Hund läuft." }' input > pairs.tsv
head -20 pairs.tsv > valid.tsv
search=(--beam-size 2 --threads 1 --batch-size 8 --model "$model")
training=(train --model "$model" --data pairs.tsv --validation valid.tsv --objective mle --updates 12 --batch-tokens 128
    --validate-every 5 --checkpoint-every 4 --validation-beam 1)
declare -A input=([text]=input [jsonl]=input.jsonl [nbest]=input)
formats=(text jsonl nbest)
for format in "${formats[@]}"; do
    "$binary" translate "${search[@]}" --format "$format" --input "${input[$format]}" --output "$format.whole" 2> errors ||
        lost "translate $format without any fault"
done
"$binary" "${training[@]}" --output trained 2> errors || lost "train without any fault"

# Translates until it is complete, with a fault each time but the last; then compares.
translate_with() {
    local fault=$1 format=${formats[$(below 3)]} code resume=() tries=0
    rm -f out out.partial
    while :; do
        local command=("$binary" translate "${search[@]}" --format "$format" --input "${input[$format]}" --output out "${resume[@]}")
        tries=$((tries + 1))
        if [ $tries -gt 4 ]; then
            "${command[@]}" 2> errors; code=$?
        else
            case $fault in
                full)
                    (ulimit -f $((1 + $(below 60))); exec "${command[@]}") 2> errors; code=$? ;;
                *)
                    "${command[@]}" 2> errors &
                    local pid=$!
                    sleep "$(seconds 1500)"
                    kill "-$fault" $pid 2> /dev/null
                    wait $pid; code=$? ;;
            esac
        fi
        [ -e out ] && [ -e out.partial ] && lost "$fault: two files"
        [ "$code" -eq 0 ] && break
        if [ "$fault" != KILL ] || [ $tries -gt 4 ]; then
            # Before it listens, a request to terminate ends it as any other process.
            if crashed "$code" && [ "$code" -ne 143 ]; then lost "$fault: translate ended with $code"; fi
        fi
        # Killed between the renaming and its end.
        [ -e out ] && cmp -s out "$format.whole" && break
        [ -e out ] && lost "$fault: a file that is not complete has its name"
        resume=(--resume)
    done
    cmp -s out "$format.whole" || lost "$fault: $format differs from a run without faults"
    tell "translate, $fault"
}

train_with_kills() {
    local code resume=()
    rm -rf killed
    while :; do
        [ -e killed/training/state.safetensors ] && resume=(--resume)
        timeout -s KILL "$(awk -v millis="$(below 6000)" 'BEGIN { print 0.4 + millis / 1000 }')" \
            "$binary" "${training[@]}" --output killed "${resume[@]}" 2> errors
        code=$?
        [ $code -eq 0 ] && break
        [ $code -eq 137 ] || lost "train ended with $code"
    done
    cmp -s killed/training/log.jsonl trained/training/log.jsonl || lost "train: another log than without kills"
    cmp -s killed/model.safetensors trained/model.safetensors || lost "train: other weights than without kills"
    tell "train, KILL"
}

damaged_model() {
    rm -rf bad && cp -r "$model" bad
    local files=(bad/*) file code
    file=${files[$(below ${#files[@]})]}
    case $(below 3) in
        0) truncate -s "$(below "$(stat -c %s "$file")")" "$file" ;;
        1) for _ in 1 2 3 4; do
               printf "\\x$(printf %x "$(below 256)")" |
                   dd of="$file" bs=1 seek="$(below "$(stat -c %s "$file")")" conv=notrunc status=none
           done ;;
        2) (sleep "$(seconds 150)"; truncate -s 1000 bad/model.safetensors) & ;;
    esac
    timeout 60 "$binary" translate --model bad --threads 1 --beam-size 2 "A dog runs." > out 2> errors
    code=$?
    wait
    { crashed $code || [ $code -eq 124 ]; } && lost "damaged $file: ended with $code"
    tell "damaged model, exit $code"
}

# The lowest limit on address space that the program starts within at all.
least=16
until (ulimit -v $((least * 1024)); exec "$binary" --version > /dev/null 2>&1); do least=$((least + 4)); done 2> /dev/null

little_memory() {
    local mebibytes=$((least + $(below 300))) code
    (ulimit -v $((mebibytes * 1024)); exec "$binary" translate "${search[@]}" --input input > out 2> errors)
    code=$?
    case $code in
        0) cmp -s out text.whole || lost "$mebibytes MiB: exit 0 with another output" ;;
        2) ;;
        # An allocation of a few bytes, or what a new thread takes before it runs, may end the process.
        134) grep -qE 'memory allocation of [0-9]{1,5} bytes|alternative stack|thread-local' errors ||
            lost "$mebibytes MiB: ended with $code" ;;
        *) lost "$mebibytes MiB: ended with $code" ;;
    esac
    tell "little memory, exit $code"
}

strange_input() {
    head -c "$(below 200000)" /dev/urandom > strange
    local code lines
    timeout 120 "$binary" translate "${search[@]}" --beam-size 1 --max-length 8 --input strange > out 2> errors
    code=$?
    { crashed $code || [ $code -eq 124 ]; } && lost "strange input: ended with $code"
    tell "strange input, exit $code"
}

end=$((SECONDS + minutes * 60))
while [ $SECONDS -lt $end ]; do
    case $(below 7) in
        0) translate_with KILL ;;
        1) translate_with TERM ;;
        2) translate_with full ;;
        3) train_with_kills ;;
        4) damaged_model ;;
        5) little_memory ;;
        6) strange_input ;;
    esac
done
for name in "${!count[@]}"; do echo "$name: ${count[$name]}"; done | sort
echo "faults: $minutes minutes, nothing lost; it starts within $least MiB"
