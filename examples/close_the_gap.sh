#!/usr/bin/env bash
# Does a model have the gap between gold prefixes and its own, and which objective closes it? Diagnoses a model, fine-tunes it by
# each objective for the same number of updates from the same weights, and diagnoses every result on a test set.
#
#   examples/close_the_gap.sh TRAIN.en TRAIN.de VAL.en VAL.de TEST.en TEST.de [OUTPUT]
#
# Learning rates are chosen on the validation set: for the control (mle), whose rate scheduled sampling and distillation share, and
# for minimum risk, whose rate its control (a constant reward) shares. What is done already is not done again, so that an
# interrupted run continues. OUTPUT gets story.json, with every figure and its 95% interval, story.md, and a page for each model.
#
# From the environment: MODEL (the demo model), BEAMFUSE (the program), UPDATES (100), BATCH (512 tokens), RISK_BATCH (128), SAMPLES
# (8 translations of each source), RATES ("1e-4 3e-4"), RISK_RATES ("1e-5 5e-5"), LINES (300 of the test set that are diagnosed),
# PROBE_LINES (100), SWEEP_LINES (20), THREADS (all).
set -euo pipefail
[ $# -ge 6 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
train=(--source "$1" --target "$2")
val_source=$3 val_target=$4 test_source=$5 test_target=$6 output=${7:-close-the-gap}
root=$(cd "$(dirname "$0")/.." && pwd)
beamfuse=${BEAMFUSE:-$root/target/release/beamfuse} model=${MODEL:-$root/models/m30k-en-de}
updates=${UPDATES:-100} batch=${BATCH:-512} risk_batch=${RISK_BATCH:-128} samples=${SAMPLES:-8}
rates=${RATES:-1e-4 3e-4} risk_rates=${RISK_RATES:-1e-5 5e-5}
lines=${LINES:-300} probe=${PROBE_LINES:-100} sweep=${SWEEP_LINES:-20} threads=${THREADS:-$(nproc)}
export RAYON_NUM_THREADS=$threads
mkdir -p "$output"
head -n "$lines" "$test_source" > "$output/diagnosed.source"
head -n "$lines" "$test_target" > "$output/diagnosed.reference"

tune() { # NAME OPTIONS: trains, or goes on, unless that is done.
    local name=$1 resume=()
    shift
    [ -e "$output/$name/done" ] && return
    [ -e "$output/$name/training/state.safetensors" ] && resume=(--resume)
    echo "$name: train $*" | tee -a "$output/commands.txt"
    "$beamfuse" train --model "$model" "${train[@]}" --skip-bad --keep last --updates "$updates" --checkpoint-every 50 \
        --log-every 20 --output "$output/$name" "${resume[@]}" "$@"
    touch "$output/$name/done"
}

eval_on() { # NAME DIRECTORY SET SOURCE TARGET BEAM: scores; the translations stay.
    local file="$output/$1.$3.beam$6"
    [ -e "$file.json" ] && return
    "$beamfuse" eval --model "$2" --input "$4" --reference "$5" --beam-size "$6" --threads "$threads" --format json \
        --output "$file.txt" > "$file.part"
    mv "$file.part" "$file.json"
}

choose() { # NAME RATES OPTIONS: trains at each rate; says the one with the best chrF2 of greedy search on the validation set.
    local name=$1 choices=$2 rate
    shift 2
    for rate in $choices; do
        tune "$name-$rate" --learning-rate "$rate" "$@" >&2
        eval_on "$name-$rate" "$output/$name-$rate" val "$val_source" "$val_target" 1 >&2
    done
    for rate in $choices; do
        echo "$(jq .chrf2.score "$output/$name-$rate.val.beam1.json") $rate"
    done | sort -g | tail -n 1 | cut -d' ' -f2
}

look() { # NAME DIRECTORY: scores on the whole test set, for a beam of 4 and for greedy search, and the diagnosis.
    local beam
    for beam in 4 1; do
        eval_on "$1" "$2" test "$test_source" "$test_target" "$beam"
    done
    [ -e "$output/$1.diagnosis.json" ] && return
    "$beamfuse" diagnose --model "$2" --source "$output/diagnosed.source" --reference "$output/diagnosed.reference" --skip-bad \
        --probe-lines "$probe" --sweep-lines "$sweep" --threads "$threads" --html "$output/$1.html" \
        --json "$output/$1.part" > "$output/$1.diagnosis.txt"
    mv "$output/$1.part" "$output/$1.diagnosis.json"
}

compare() { # NAME CONTROL: the paired bootstrap of the two's translations.
    local beam
    for beam in 4 1; do
        "$beamfuse" eval --hypotheses "$output/$1.test.beam$beam.txt" --compare "$output/$2.test.beam$beam.txt" \
            --input "$test_source" --reference "$test_target" --format json > "$output/$1.paired.beam$beam.json"
    done
}

look before "$model"
likelihood=(--batch-tokens "$batch")
risk=(--objective mrt --batch-tokens "$risk_batch" --mrt-samples "$samples" --mrt-chunk-tokens 1024)
rate=$(choose mle "$rates" --objective mle "${likelihood[@]}")
echo "learning rate of mle, scheduled-sampling and distill: $rate"
ln -sfn "mle-$rate" "$output/mle"
look mle "$output/mle"
tune scheduled-sampling --objective scheduled-sampling --learning-rate "$rate" "${likelihood[@]}"
look scheduled-sampling "$output/scheduled-sampling"
tune distill --objective distill --learning-rate "$rate" "${likelihood[@]}"
look distill "$output/distill"
risk_rate=$(choose mrt "$risk_rates" "${risk[@]}")
echo "learning rate of mrt and mrt-constant: $risk_rate"
ln -sfn "mrt-$risk_rate" "$output/mrt"
look mrt "$output/mrt"
tune mrt-constant --learning-rate "$risk_rate" "${risk[@]}" --mrt-reward constant
look mrt-constant "$output/mrt-constant"
for name in mle mrt-constant; do compare "$name" before; done
for name in scheduled-sampling distill; do compare "$name" mle; done
compare mrt mrt-constant

# The record: what was run, where, and every figure.
one() { # NAME CONTROL RATE
    local paired=/dev/null
    [ -z "$2" ] || paired="$output/$1.paired.beam4.json $output/$1.paired.beam1.json"
    # shellcheck disable=SC2086
    jq -n --arg name "$1" --arg control "$2" --arg rate "$3" --slurpfile d "$output/$1.diagnosis.json" \
        --slurpfile beam "$output/$1.test.beam4.json" --slurpfile greedy "$output/$1.test.beam1.json" \
        --slurpfile paired <(cat $paired) '
        def three: {value: (.score // .value), low, high};
        {name: $name, learning_rate: (if $rate == "" then null else ($rate | tonumber) end),
         control: (if $control == "" then null else $control end),
         test: {bleu: ($beam[0].bleu | three), chrf2: ($beam[0].chrf2 | three),
                greedy_bleu: ($greedy[0].bleu | three), greedy_chrf2: ($greedy[0].chrf2 | three)},
         against_control: (if $control == "" then null else
                {beam: ($paired[0].comparison | {bleu, chrf2}), greedy: ($paired[1].comparison | {bleu, chrf2})} end),
         diagnosis: ($d[0].figures | map({key: .name, value: {value, low, high, null, difference}}) | from_entries),
         buckets: $d[0].buckets, flags: ($d[0].flags | length),
         holds: [$d[0].verdict.findings[] | select(.holds) | .says], warnings: $d[0].verdict.warnings}'
}
{
    one before "" ""
    one mle before "$rate"
    one scheduled-sampling mle "$rate"
    one distill mle "$rate"
    one mrt-constant before "$risk_rate"
    one mrt mrt-constant "$risk_rate"
} | jq -s . > "$output/models.json"
for name in $(for r in $rates; do echo "mle-$r"; done; for r in $risk_rates; do echo "mrt-$r"; done); do
    jq --arg name "$name" '{name: $name, chrf2: .chrf2.score, bleu: .bleu.score}' "$output/$name.val.beam1.json"
done | jq -s . > "$output/validation.json"
jq -n --arg date "$(date -u +%F)" --arg version "$("$beamfuse" --version)" --argjson cores "$(nproc)" --argjson threads "$threads" \
    --arg cpu "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" --argjson updates "$updates" \
    --argjson lines "$lines" --argjson probe "$probe" --argjson sweep "$sweep" --rawfile commands "$output/commands.txt" \
    --slurpfile validation "$output/validation.json" --slurpfile models "$output/models.json" \
    '{date: $date, version: $version, machine: {cpu: $cpu, cores: $cores, threads: $threads}, updates: $updates,
      diagnosed_lines: $lines, probe_lines: $probe, sweep_lines: $sweep,
      commands: ($commands | split("\n") | map(select(. != ""))), validation: $validation[0], models: $models[0]}' \
    > "$output/story.json"

jq -r '
    def two: if . == null then "n/a" else . * 100 | round / 100 end;
    def three: if . == null then "n/a" else . * 1000 | round / 1000 end;
    def span(f): "\(.value | f) [\(.low | f), \(.high | f)]";
    def signed: (if . > 0 then "+" else "" end) + (two | tostring);
    def change: "\(.difference | signed) [\(.low | signed), \(.high | signed)]";
    (["model", "BLEU, beam 4", "chrF2, beam 4", "BLEU, greedy", "chrF2, greedy"],
     ["---", "---", "---", "---", "---"],
     (.models[] | [.name, (.test.bleu, .test.chrf2, .test.greedy_bleu, .test.greedy_chrf2 | span(two))]),
     [], ["against its control", "BLEU, beam 4", "chrF2, beam 4", "BLEU, greedy", "chrF2, greedy"],
     ["---", "---", "---", "---", "---"],
     (.models[] | select(.control) | ["\(.name) against \(.control)",
        (.against_control | .beam.bleu, .beam.chrf2, .greedy.bleu, .greedy.chrf2 | change)]),
     [], ["diagnosis", "recovery area", "half-life", "prefix-switch ratio", "own minus gold accuracy", "flagged lines", "length ratio", "entropy"],
     ["---", "---", "---", "---", "---", "---", "---", "---"],
     (.models[] | [.name, (.diagnosis | .area, .["half-life"], .["prefix-switch ratio"], .["own minus gold accuracy"],
        .["flagged lines"], .["length ratio"], .entropy | span(three))]))
    | if . == [] then "" else "| " + join(" | ") + " |" end' "$output/story.json" | tee "$output/story.md"
