#!/usr/bin/env bash
# Everything that is to be learned on a borrowed machine with a GPU, in phases of less than nine minutes each.
#
#   benches/gpu.sh PHASE...
#
#   0  the machine; one translation in f32, f16 and bf16; the algorithms of the matrix products
#   1  validate kernel by kernel, several at a time; row bits on the shapes of OPUS-MT base
#   2  validate --full in shards
#   3  compute-sanitizer over the kernels: memcheck, racecheck, synccheck, initcheck
#   4  bench --kernels; bench at batch sizes 1 to 1024 in three types; the longest kernels under ncu
#   5  CTranslate2 and transformers on the same weights, and lines or lengths, alternated
#
# A phase that was cut off, by its time or by anybody, goes on where it was when it is started again: what is done is marked, and its
# results are kept. A tool that is missing is named, and its step marked as skipped. Exits with 1 if a step failed.
#
# Variables: BINARY (target/release/beamfuse, or beamfuse beside this script), MODEL (models/m30k-en-de), OUT (benches/results/gpu/HOST),
# DEVICE (cuda:0), SECONDS_PER_PHASE (520), JOBS (processes at a time; as many as cores, 16 at most), TINY=1 (a rehearsal: sizes that
# the fake driver can bear; no time that it gives means anything).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/.." && pwd)
first_of() { for path in "$@"; do [ -e "$path" ] && { echo "$path"; return; }; done; echo "$1"; }
BINARY=${BINARY:-$(first_of "$here/beamfuse" "$top/target/release/beamfuse")}
MODEL=${MODEL:-$(first_of "$here/m30k-en-de" "$top/models/m30k-en-de")}
OUT=${OUT:-$here/results/gpu/$(hostname)}
DEVICE=${DEVICE:-cuda:0}
limit=${SECONDS_PER_PHASE:-520}
cores=$(nproc)
JOBS=${JOBS:-$((cores < 16 ? cores : 16))}
tiny=${TINY:-}
[ $# -gt 0 ] || { sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//'; exit 2; }
mkdir -p "$OUT"
export BINARY MODEL OUT DEVICE
failed=0

# step NAME COMMAND...: once, its output in OUT/NAME.log; what it came to in OUT/NAME.{ok,failed}.
step() {
    local name=$1 left status
    shift
    [ -e "$OUT/$name.ok" ] && return 0
    left=$((begun + limit - SECONDS))
    if [ "$left" -le 0 ]; then
        echo "$name: no time left; start the phase again"
        cut_off=1
        return 0
    fi
    rm -f "$OUT/$name.failed"
    echo "$name: ${*}" | cut -c1-150
    timeout --signal=INT --kill-after=20 "$left" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    case $status in
        0) touch "$OUT/$name.ok" ;;
        124 | 130 | 137) echo "$name: cut off after $left s; start the phase again"; cut_off=1 ;;
        *) echo "$status" > "$OUT/$name.failed"; echo "$name: FAILED ($status), see $OUT/$name.log"; tail -3 "$OUT/$name.log" ;;
    esac
    return 0
}
export -f step

# needs TOOL NAME: whether a tool is there; names it if not.
needs() {
    command -v "$1" > /dev/null && return 0
    echo "$2: skipped, no $1"
    echo "no $1" > "$OUT/$2.skipped"
    return 1
}

# Runs steps "NAME COMMAND" read from stdin, several at a time.
side_by_side() {
    local running=0
    while IFS=$'\t' read -r name command; do
        step "$name" bash -c "$command" &
        running=$((running + 1))
        if [ "$running" -ge "$JOBS" ]; then wait -n; running=$((running - 1)); fi
    done
    wait
}

ops() {
    # A rehearsal takes the quick ones.
    if [ -n "$tiny" ]; then printf '%s\n' layer_norm gather embedding; return; fi
    "$BINARY" validate --device "$DEVICE" --kernel '?' 2>&1 | sed -n 's/.*expected one of \(.*\), got.*/\1/p' | tr -d ' ' | tr ',' '\n'
}

# The model of OPUS-MT base's size, made where it is needed.
big_model() {
    local dir=$OUT/model sizes=()
    [ -n "$tiny" ] && sizes=(64 96 2 4 503)
    [ -e "$dir/model.safetensors" ] || python3 "$here/gpu_model.py" "$MODEL" "$dir" ${sizes[@]+"${sizes[@]}"} > "$OUT/model.log" 2>&1
    echo "$dir"
}

phase_0() {
    step 0-machine bash -c 'nvidia-smi; nvidia-smi -q | head -200; nproc; free -g; uname -a; "$BINARY" --version; "$BINARY" info --model "$MODEL" || true'
    for dtype in f32 f16 bf16; do
        step "0-translate-$dtype" bash -o pipefail -c "\"\$BINARY\" translate --device \"\$DEVICE\" --dtype $dtype --model \"\$MODEL\" --format jsonl 'A dog runs on the beach.' | tee \"\$OUT/0-translate-$dtype.jsonl\""
    done
    # A rehearsal takes the model with the small vocabulary.
    local model=$MODEL
    [ -n "$tiny" ] && model=$(big_model)
    step 0-algorithms "$BINARY" validate --device "$DEVICE" --model-only --shard 1/7 --model "$model" --json "$OUT/0-algorithms.json"
}

phase_1() {
    for op in $(ops); do
        printf '1-%s\t%s\n' "$op" "\"\$BINARY\" validate --device \"\$DEVICE\" --kernel $op --json \"\$OUT/1-$op.json\""
    done | side_by_side
    # The first three checks are those of row bits; random weights end no sentence, so decodes are the demo model's.
    local model shard
    for shard in 1 2 3 4 5 6 7; do
        model=$MODEL
        [ "$shard" -le 3 ] && model=$(big_model)
        printf '1-model-%s\t%s\n' "$shard" "\"\$BINARY\" validate --device \"\$DEVICE\" --model-only --shard $shard/7 --model \"$model\" --json \"\$OUT/1-model-$shard.json\""
    done | side_by_side
}

phase_2() {
    local shards=$JOBS full=--full
    [ -n "$tiny" ] && shards=2 full=
    for shard in $(seq "$shards"); do
        printf '2-full-%s\t%s\n' "$shard" "\"\$BINARY\" validate --device \"\$DEVICE\" $full --shard $shard/$shards --model \"\$MODEL\" --json \"\$OUT/2-full-$shard-of-$shards.json\""
    done | side_by_side
}

phase_3() {
    needs compute-sanitizer 3-sanitizer || return 0
    for tool in memcheck racecheck synccheck initcheck; do
        for op in $(ops); do
            printf '3-%s-%s\t%s\n' "$tool" "$op" "compute-sanitizer --tool $tool --report-api-errors no --error-exitcode 9 \"\$BINARY\" validate --device \"\$DEVICE\" --kernel $op --timeout 100000"
        done
    done | side_by_side
}

phase_4() {
    local model batches="1 32 256 1024" lengths=30 repeat=3 sentences=() dtype batch
    model=$(big_model)
    if [ -n "$tiny" ]; then
        batches="1 2" lengths=3 repeat=1 sentences=(--sentences 2)
    fi
    # Single kernels take sizes that only a GPU can bear.
    [ -n "$tiny" ] || step 4-kernels "$BINARY" bench --kernels --device "$DEVICE" --json "$OUT/4-kernels.json"
    for dtype in f32 f16 bf16; do
        for batch in $batches; do
            step "4-fixed-$dtype-$batch" "$BINARY" bench --device "$DEVICE" --dtype "$dtype" --batch-size "$batch" --beam-size 4 --lengths "$lengths" \
                ${sentences[@]+"${sentences[@]}"} --repeat "$repeat" --no-latency --model "$model" --json "$OUT/4-fixed-$dtype-$batch.json"
            step "4-natural-$dtype-$batch" "$BINARY" bench --device "$DEVICE" --dtype "$dtype" --batch-size "$batch" --beam-size 4 \
                ${sentences[@]+"${sentences[@]}"} --repeat "$repeat" --no-latency --model "$MODEL" --json "$OUT/4-natural-$dtype-$batch.json"
        done
    done
    needs ncu 4-ncu || return 0
    # How long each kernel of some steps takes, behind those of the encoder.
    for batch in $batches; do
        step "4-ncu-$batch" ncu --metrics gpu__time_duration.sum --clock-control none --cache-control none --launch-skip $((400 + 2 * batch)) --launch-count 300 --csv --log-file "$OUT/4-ncu-$batch.csv" \
            "$BINARY" bench --device "$DEVICE" --dtype bf16 --batch-size "$batch" --beam-size 4 --lengths "$lengths" \
            --sentences "$batch" --repeat 1 --warmup 0 --no-latency --model "$model"
    done
}

# What both programs are given: a name and the options of benches/peers/gpu.py, then those of bench.
against() {
    local name=$1 model=$2 theirs=$3 own=$4 batch=$5 round=$6 peer device=cuda
    [ -n "$tiny" ] && device=cpu
    for peer in $peers; do
        # shellcheck disable=SC2086
        step "5-$name-$peer-$round" python3 "$here/peers/gpu.py" "$peer" "$model" "$OUT/5-$name-$peer-$round.json" $theirs --batch "$batch" --device "$device"
    done
    # shellcheck disable=SC2086
    step "5-$name-own-$round" "$BINARY" bench --device "$DEVICE" --dtype f16 --batch-size "$batch" --beam-size 4 $own --no-latency \
        --model "$model" --json "$OUT/5-$name-own-$round.json"
}

phase_5() {
    local lines=$OUT/lines.txt model round batch length=30 peer peers=
    for peer in ctranslate2 hf; do
        if python3 -c "import transformers, torch, sentencepiece$([ $peer = hf ] || echo ", ctranslate2")" 2> /dev/null; then
            peers="$peers $peer"
        else
            echo "5-$peer: skipped, not installed"
            echo "not installed" > "$OUT/5-$peer.skipped"
        fi
    done
    local batches="1 32 256" rounds="1 2 3"
    [ -n "$tiny" ] && batches=2 length=4 rounds=1
    model=$(big_model)
    head -n "$([ -n "$tiny" ] && echo 2 || echo 100)" "$(first_of "$here/sentences.txt" "$top/src/cli/bench/sentences.txt")" > "$lines"
    # CTranslate2 is built for cuBLAS 12; what it calls is in 13 as well.
    if [ -z "$tiny" ] && ! ldconfig -p | grep -q 'libcublas\.so\.12'; then
        mkdir -p "$OUT/lib"
        ln -sf "$(ldconfig -p | sed -n 's/.*libcublas\.so\.13 .*=> //p' | head -1)" "$OUT/lib/libcublas.so.12"
        export LD_LIBRARY_PATH=$OUT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    fi
    for round in $rounds; do
        against lines "$MODEL" "--lines $lines" "--input $lines" 32 "$round"
        for batch in $batches; do
            local count=$((batch * 4 > 8 ? batch * 4 : 8))
            [ -n "$tiny" ] && count=2
            against "fixed-$batch" "$model" "--length $length --sentences $count" "--lengths $length --sentences $count" "$batch" "$round"
        done
    done
}

for phase in "$@"; do
    begun=$SECONDS cut_off=0
    export begun limit SECONDS cut_off
    case $phase in
        [0-5]) "phase_$phase" ;;
        *) echo "gpu.sh: expected a phase from 0 to 5, got $phase" >&2; exit 2 ;;
    esac
    ls "$OUT/$phase"-*.failed > /dev/null 2>&1 && failed=1
    echo "phase $phase: $(ls "$OUT/$phase"-*.ok 2> /dev/null | wc -l) done, $(ls "$OUT/$phase"-*.failed 2> /dev/null | wc -l) failed, $((SECONDS - begun)) s"
done
exit "$failed"
