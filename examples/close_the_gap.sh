#!/usr/bin/env bash
# Fine-tunes one model by each objective, for the same number of updates from the same weights, and scores every result on a test
# set: what closes the gap between gold prefixes and the model's own, and what the further training alone does (the mle control).
#
#   examples/close_the_gap.sh TRAIN.en TRAIN.de TEST.en TEST.de [OUTPUT]
#
# UPDATES (default 200), BATCH (tokens, default 1024) and MODEL (default the demo model) can be set in the environment.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
source=$1 target=$2 test_source=$3 test_target=$4 output=${5:-close-the-gap}
root=$(cd "$(dirname "$0")/.." && pwd)
beamfuse=${BEAMFUSE:-$root/target/release/beamfuse}
model=${MODEL:-$root/models/m30k-en-de}
updates=${UPDATES:-200} batch=${BATCH:-1024}
mkdir -p "$output"

run() { # NAME OBJECTIVE [OPTIONS]: trains unless that is done already.
    local name=$1 objective=$2
    shift 2
    [ -e "$output/$name/model.safetensors" ] || "$beamfuse" train --model "$model" --source "$source" --target "$target" \
        --output "$output/$name" --objective "$objective" --updates "$updates" --batch-tokens "$batch" --keep last "$@"
}

score() { # NAME DIRECTORY: scores, for a beam of 4 and for greedy search, and whether there is a gap.
    for beam in 4 1; do
        echo "== $1, beam $beam"
        "$beamfuse" eval --model "$2" --input "$test_source" --reference "$test_target" --beam-size "$beam" \
            --output "$output/$1.beam$beam.txt"
    done
    "$beamfuse" diagnose --model "$2" --source "$test_source" --reference "$test_target" --skip-bad \
        --html "$output/$1.html" --json "$output/$1.json"
}

score before "$model"
run mle mle --learning-rate 3e-5
score mle "$output/mle"
run scheduled-sampling scheduled-sampling --learning-rate 3e-5
score scheduled-sampling "$output/scheduled-sampling"
run mrt mrt --learning-rate 1e-5 --batch-tokens $((batch / 4))
score mrt "$output/mrt"
run mrt-control mrt --learning-rate 1e-5 --batch-tokens $((batch / 4)) --mrt-reward constant
score mrt-control "$output/mrt-control"
run distill distill --learning-rate 3e-5
score distill "$output/distill"
