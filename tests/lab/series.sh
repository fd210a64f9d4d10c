#!/usr/bin/env bash
# Every run of the lab report (README.md in this folder). Start it in the project's folder:
#
#     bash tests/lab/series.sh                    everything; or the parts that you name:
#     bash tests/lab/series.sh main               the nine arms of the main table, BLiMP, GLUE (about 5 hours)
#     bash tests/lab/series.sh more               other rules, 40% masks, focal loss (about 10 hours)
#     bash tests/lab/series.sh frequency          the frequency control, a new seed, what gets masked
#     bash tests/lab/series.sh language           a made-up language: when entropy helps (about 6 hours of one core)
#     bash tests/lab/series.sh border             more such languages, easier and harder (about 15 hours of one core)
#     bash tests/lab/series.sh code               Python source, a text with more easy tokens than English
#     bash tests/lab/series.sh quality            the same seconds for train.py and transformers: leave it alone
#     bash tests/lab/series.sh collapse           masks that collapse, up to step 2,000
#     bash tests/lab/series.sh few                variants of --reading memory
#     bash tests/lab/series.sh plateau            starts and learning rates that leave the unigram plateau, or not
#     bash tests/lab/series.sh distillation       distillation at equal steps and at equal operations
#     bash tests/lab/series.sh glue               all GLUE tasks, with a tiny model of 65 million tokens
#     bash tests/lab/series.sh picture            README's sentence, read by the model of its first run (4 minutes)
#     SHORT=20 bash tests/lab/series.sh           20 steps per run, into runs-short: does the series itself work?
#
# Was it interrupted? Start it again: finished runs are left alone, and the others continue from their last
# checkpoint. What a run prints stands in RUNS/NAME.txt. Two runs at a time, with one thread each: two runs that
# use all cores wait for each other. Tables and figures at the end come from all runs that are in RUNS.
#
# Results belong together only where the text was cut in the same way. Those of the report in main, more, code,
# language and border were made before [SEP] stood between documents: main, more and code with commit ef9cc23, to
# add to them work there (git worktree add ../lab ef9cc23) with focal.py of 088367d; border with commit f7945c7.
set -euo pipefail
cd "$(dirname "$0")/../.."

export PYTHON=${PYTHON:-python}
export CORPUS=${CORPUS:-data/corpus} # enwiki-00.txt.xz and more such files
export GLUE=${GLUE:-data/glue}
export BLIMP=${BLIMP:-data/blimp}
export SHORT=${SHORT:-}
export RUNS=${RUNS:-runs${SHORT:+-short}}
export OMP_NUM_THREADS=1
RESULTS=tests/lab/results
if [ -n "$SHORT" ]; then RESULTS=$RUNS/results; fi
AT_ONCE=${AT_ONCE:-2}

ONE="--corpus $CORPUS/enwiki-00.txt.xz"
ALL="--corpus $(echo "$CORPUS"/enwiki-0*.txt.xz)"
SETTING="--max-tokens 1600000 --batch-size 32 --lr 2e-3 --steps 4000 --dtype float32"
MAIN="$ONE $SETTING"
FEW="$ONE --max-tokens 500000 --steps 3000"
TEACHER="pretrain teacher train.py $ONE --masking random --size mini --batch-size 32 --steps 4000 --eval-every 500 --dtype float32"
FIVE="--tasks SST-2 MRPC STS-B QNLI RTE --max-train 10000 --dtype float32"

# pretrain NAME PROGRAM OPTIONS: a training run in RUNS/NAME.
# With STOP_AT=n it is stopped after the evaluation at step n, its learning rate still on the way down.
pretrain() {
    local out=$RUNS/$1 more="" process
    shift
    if [ -e "$out/finished" ]; then return; fi
    if compgen -G "$out/checkpoint*.pt" > /dev/null; then more="--resume"; fi
    if [ -n "$SHORT" ]; then more="$more --steps $SHORT"; fi

    echo "$(date +%H:%M:%S) $out"
    $PYTHON "$@" $more --out "$out" >> "$out.txt" 2>&1 &
    process=$!
    trap "kill $process; exit 1" INT TERM # Ctrl-C does not reach what runs in the background

    while [ -n "${STOP_AT:-}" ] && kill -0 $process 2> /dev/null; do
        if grep -qs "^$STOP_AT," "$out/log.csv"; then kill $process; fi
        sleep 0.5
    done
    if wait $process 2> /dev/null || grep -qs "^${STOP_AT:-never}," "$out/log.csv"; then
        touch "$out/finished"
    else
        echo "$out failed; the reason is at the end of $out.txt" >&2
        return 1
    fi
}

# once NAME COMMAND: what is no training run, into RUNS/NAME.txt.
once() {
    local out=$RUNS/$1
    shift
    if [ -e "$out.finished" ]; then return; fi
    echo "$(date +%H:%M:%S) $out"
    if "$@" >> "$out.txt" 2>&1; then
        touch "$out.finished"
    else
        echo "$out failed; the reason is at the end of $out.txt" >&2
        return 1
    fi
}

# judge NAME MODEL SEEDS OPTIONS: fine-tune RUNS/MODEL on GLUE. What is finished of it is kept in glue.json.
judge() {
    local name=$1 model=$2 seeds=$3
    shift 3
    if [ -n "$SHORT" ]; then set -- "$@" --max-train 64 --epochs 1; fi
    once "$name" $PYTHON glue_eval.py --model "$RUNS/$model" --data-dir "$GLUE" --seeds $seeds "$@" --out "$RUNS/$name"
}

# pairs MODEL: BLiMP's pairs of sentences.
pairs() {
    once "$1-blimp" $PYTHON tests/lab/blimp.py --model "$RUNS/$1" --data "$BLIMP" ${SHORT:+--pairs 2}
}

# Carry out the lines of the standard input, two at a time. If one fails, the others of the block still run.
export -f pretrain once judge pairs
two_at_once() {
    tr '\n' '\0' | xargs -0 -n 1 -P "$AT_ONCE" bash -c 'eval "$0"'
}

# The arms of the main series, in the order of the report. `more` has others; GLUE and BLiMP judge both.
main() {
    {
        echo "$TEACHER"
        for seed in 0 1 2; do
            echo "pretrain random-$seed train.py $MAIN --masking random --seed $seed"
            echo "pretrain blank-high-$seed tests/lab/frequency.py count $MAIN --select high --seed $seed"
            echo "pretrain blank-sample-$seed train.py $MAIN --seed $seed"
            echo "pretrain memory-$seed tests/lab/memory_variants.py $MAIN --seed $seed"
        done
    } | two_at_once
    for seed in 0 1 2; do
        taught="distill.py --teacher $RUNS/teacher $MAIN --seed $seed"
        echo "pretrain kd-random-$seed $taught --masking random"
        echo "pretrain kd-teacher-$seed $taught --masking teacher"
        echo "pretrain kd-reducible-$seed $taught --masking reducible"
        echo "pretrain by-teacher-$seed $taught --masking teacher --kd-alpha 0"
        echo "pretrain by-reducible-$seed $taught --masking reducible --kd-alpha 0"
    done | two_at_once
    judge_arms random blank-high blank-sample memory kd-random kd-teacher kd-reducible by-teacher by-reducible
    pairs teacher
    $PYTHON tests/lab/easy_tokens.py share --runs "$RUNS"/random-? "$RUNS"/by-*-?
}

more() {
    for seed in 0 1 2; do
        echo "pretrain blank-low-$seed train.py $MAIN --select low --seed $seed"
        echo "pretrain blank-mid-$seed train.py $MAIN --select mid --seed $seed"
        echo "pretrain blank-both-$seed train.py $MAIN --select both --seed $seed"
        echo "pretrain random-40-$seed train.py $MAIN --masking random --mask-ratio 0.4 --seed $seed"
        echo "pretrain blank-sample-40-$seed train.py $MAIN --mask-ratio 0.4 --seed $seed"
        echo "pretrain focal-1-$seed tests/lab/focal.py $MAIN --masking random --gamma 1 --seed $seed"
        echo "pretrain focal-2-$seed tests/lab/focal.py $MAIN --masking random --gamma 2 --seed $seed"
    done | two_at_once
    echo "$TEACHER" | two_at_once # after `main` it is there, and kd-random too
    for seed in 0 1 2; do
        echo "pretrain kd-random-$seed distill.py --teacher $RUNS/teacher $MAIN --seed $seed --masking random"
        echo "pretrain kd-self-$seed distill.py --teacher $RUNS/teacher $MAIN --seed $seed"
    done | two_at_once
    judge_arms blank-low blank-mid blank-both random-40 blank-sample-40 focal-1 focal-2 kd-random kd-self
    $PYTHON tests/lab/easy_tokens.py share --runs "$RUNS"/focal-?-?
}

# The control "uncertain, or only rare?", and what else only an earlier series has: it needs runs of `main`.
frequency() {
    {
        echo "pretrain again-random-3 train.py $MAIN --masking random --seed 3"
        echo "pretrain again-memory-3 tests/lab/memory_variants.py $MAIN --seed 3"
        echo "pretrain early train.py $MAIN --steps 500 --masking random"
    } | two_at_once
    for seed in 0 1 2; do
        echo "pretrain frequency-$seed tests/lab/frequency.py imitate --like $RUNS/blank-high-$seed $MAIN --seed $seed"
    done | two_at_once
    judge_arms frequency
    models="$RUNS/early $RUNS/random-0 $RUNS/blank-high-0"
    $PYTHON tests/lab/what_is_masked.py --models $models --corpus "$CORPUS/enwiki-03.txt.xz" ${SHORT:+--rows 50}
}

# judge_arms ARM...: BLiMP and five tasks of GLUE, for three seeds of each.
judge_arms() {
    for seed in 0 1 2; do
        for arm in "$@"; do
            scratch=""
            if [ "$arm" = random ]; then scratch="--from-scratch"; fi
            echo "pairs $arm-$seed"
            echo "judge $arm-$seed-glue $arm-$seed $seed $FIVE $scratch"
        done
    done | two_at_once
}

code() {
    once python-text $PYTHON tests/lab/easy_tokens.py text --out "$RUNS/python.txt"
    for seed in 0 1 2; do
        echo "pretrain code-random-$seed train.py --corpus $RUNS/python.txt $SETTING --masking random --seed $seed"
        echo "pretrain code-high-$seed train.py --corpus $RUNS/python.txt $SETTING --select high --seed $seed"
        echo "pretrain code-sample-$seed train.py --corpus $RUNS/python.txt $SETTING --seed $seed"
        echo "pretrain code-memory-$seed tests/lab/memory_variants.py --corpus $RUNS/python.txt $SETTING --seed $seed"
    done | two_at_once
    $PYTHON tests/lab/easy_tokens.py share --runs "$RUNS"/code-random-?
}

language() {
    for seed in 0 1 2 3 4 5 6 7; do
        program="$PYTHON tests/lab/language.py --results $RESULTS --seeds $seed"
        echo "once language-0-$seed $program --noise 0 --steps ${SHORT:-1500}"
        echo "once language-4-$seed $program --noise 4 --steps ${SHORT:-2000}"
    done | two_at_once
    for seed in 10 11 12 13 14 15 16 17; do # does memory learn sooner on new seeds too?
        program="$PYTHON tests/lab/language.py --results $RESULTS/new-seeds --seeds $seed"
        echo "once language-new-$seed $program --steps ${SHORT:-1500} --arms random 'sample, memory'"
    done | two_at_once
}

# learn EASY NOISE STEPS ARM...: eight seeds of these arms in a made-up language, one run after the other.
learn() {
    local easy=$1 noise=$2 steps=$3
    shift 3
    $PYTHON tests/lab/language.py --results "$RESULTS/border" --easy $easy --noise $noise \
        --steps ${SHORT:-$steps} --seeds 0 1 2 3 4 5 6 7 --arms "$@" >> "$RUNS/border.txt" 2>&1
}

# The five comparisons that were written down beforehand come first. Steps were fixed with seed 100, which is not used:
# 3,000 with 17 easy words, 1,750 elsewhere, and half as many again where random masks needed more than 85% of these.
# The points with 8 easy words and no noise, or 4, have their other arms from `language`.
border() {
    learn 17 0 3000 random 'sample, memory'
    learn 2 0 1750 random 'sample, memory'
    learn 5 0 1750 random 'sample, memory'
    learn 8 1 1750 random 'sample, memory'
    learn 8 2 1750 random 'sample, memory'
    learn 8 0 1500 'focal, 1' 'focal, 2'
    learn 8 4 2000 'focal, 1' 'focal, 2'
    for more in "sample:random, longer" "focal, 1:focal, 2"; do
        learn 17 0 3000 "${more%:*}" "${more#*:}"
        learn 2 0 1750 "${more%:*}" "${more#*:}"
        learn 5 0 1750 "${more%:*}" "${more#*:}"
        learn 8 1 1750 "${more%:*}" "${more#*:}"
        learn 8 2 1750 "${more%:*}" "${more#*:}"
    done
}

quality() {
    OMP_NUM_THREADS=$(nproc) once time-to-quality $PYTHON tests/lab/time_to_quality.py --keep-freed-ram \
        --seeds 0 1 2 --seconds "${SHORT:-120}" --results "$RESULTS"
}

collapse() {
    {
        echo "STOP_AT=2000 pretrain visible-high-0 train.py $MAIN --reading visible --select high"
        echo "STOP_AT=2000 pretrain visible-high-all-mask-0 train.py $MAIN --reading visible --select high --corruption 100-0-0"
    } | two_at_once
}

few() {
    for seed in 0 1 2; do
        echo "pretrain few-random-$seed train.py $FEW --masking random --seed $seed"
        echo "pretrain few-random-long-$seed train.py $FEW --steps 4100 --masking random --seed $seed"
        echo "pretrain few-blank-$seed train.py $FEW --seed $seed"
        memory="tests/lab/memory_variants.py $FEW --seed $seed"
        echo "pretrain few-memory-$seed $memory"
        echo "pretrain few-mixed-$seed $memory --random-share 0.5"
        echo "pretrain few-refresh-$seed $memory --entropy-every 4"
        echo "pretrain few-forget-$seed $memory --forget 0.5"
        echo "pretrain few-smooth-$seed $memory --smooth 0.5"
        echo "pretrain few-seen-$seed $memory --read-seen"
        echo "pretrain few-high-$seed $memory --select high"
        echo "pretrain few-high-mixed-$seed $memory --select high --random-share 0.5"
        echo "pretrain few-high-forget-$seed $memory --select high --forget 0.5"
    done | two_at_once
}

plateau() {
    random="train.py $ONE --masking random --steps 3000 --eval-every 125"
    {
        echo "pretrain init-offset-heads $random --init offset-heads"
        echo "pretrain init-normal $random --init normal"
        echo "STOP_AT=375 pretrain plateau-small-1e-3 $random --size small --lr 1e-3"
        echo "STOP_AT=250 pretrain plateau-small-5e-4 $random --size small --lr 5e-4"
        echo "STOP_AT=500 pretrain plateau-medium-1e-3 $random --size medium --lr 1e-3"
        echo "STOP_AT=250 pretrain plateau-medium-5e-4 $random --size medium --lr 5e-4"
        echo "STOP_AT=375 pretrain plateau-base-5e-4 $random --size base --lr 5e-4"
        echo "STOP_AT=250 pretrain plateau-base-2.5e-4 $random --size base --lr 2.5e-4"
        echo "STOP_AT=500 pretrain plateau-base-1e-4 $random --size base --lr 1e-4"
    } | two_at_once
}

distillation() {
    echo "pretrain teacher-3000 train.py $ONE --masking random --size mini --batch-size 32 --steps 3000" | two_at_once
    student="distill.py --teacher $RUNS/teacher-3000 $ONE --masking random"
    {
        for seed in 0 1 2; do
            echo "pretrain kd-$seed $student --steps 3000 --seed $seed"
            echo "pretrain no-kd-$seed $student --steps 3000 --seed $seed --kd-alpha 0"
        done
        echo "pretrain no-kd-long $student --steps 7500 --eval-every 500 --kd-alpha 0"
    } | two_at_once
}

glue() {
    echo "pretrain enwiki-tiny train.py $ALL --masking random --batch-size 32 --steps 16000 --eval-every 500" | two_at_once
    echo "judge enwiki-tiny-glue enwiki-tiny '0 1 2' --from-scratch" | two_at_once
}

picture() {
    mkdir -p "$RUNS/picture" # not beside the others, so that no table lists it
    pretrain picture/first-run train.py --dtype float32
    $PYTHON tests/lab/sentence.py --model "$RUNS/picture/first-run" --seed 3 --svg "$RESULTS/sentence.svg" \
        --text "The length of this list must be the number of outputs."
}

PARTS="main more frequency language border code quality collapse few plateau distillation glue picture"
mkdir -p "$RUNS"
for part in ${*:-$PARTS}; do
    if ! declare -F "$part" > /dev/null; then
        echo "$part is not a part of the series: $PARTS" >&2
        exit 1
    fi
    echo "== $part"
    $part
done

$PYTHON tests/lab/experiment.py --collect "$RUNS" --results "$RESULTS"
