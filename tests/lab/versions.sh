#!/usr/bin/env bash
# Does everything run with the oldest and with the newest versions that requirements.txt allows?
#
#   bash tests/lab/versions.sh                          oldest for python3.10, newest for python3.13
#   bash tests/lab/versions.sh newest python3.12 ...    pairs of your own
#
# Each pair gets an environment in a temporary folder (6 GB with CUDA's libraries), in which the three programs and
# the tests run; then it is removed. Prints the rows of the table in tests/README.md and the tests that failed. The
# tests that compare with other libraries are skipped. It takes 40 minutes on two cores.
set -u
project=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONDONTWRITEBYTECODE=1
[ $# -gt 0 ] || set -- lowest python3.10 newest python3.13

# A made-up text and a made-up task: a sentence is good where it has a certain word.
made_up() {
    python3 - "$work" <<'PYTHON'
import itertools, pathlib, random, sys

folder = pathlib.Path(sys.argv[1])
random.seed(0)
words = ["".join(letters) for letters in itertools.product("abcd", repeat=3)]
sentences = [" ".join(random.choices(words, k=12)) for _ in range(3000)]
(folder / "text.txt").write_text("\n\n".join(sentences))
(folder / "glue" / "SST-2").mkdir(parents=True)
for name, part in (("train", sentences[:200]), ("dev", sentences[200:300])):
    rows = [f"{sentence}\t{int('aba' in sentence)}" for sentence in part]
    (folder / "glue" / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
PYTHON
}

# A program, and what it said last where it fails.
try() {
    if ! "$env/bin/python" "$@" >"$work/said" 2>&1; then
        programs="$(basename "$1") failed: $(tail -n 1 "$work/said")"
    fi
}

made_up
cd "$project"
echo "| Python | torch, numpy, tokenizers, tqdm, pytest | programs | tests |"
echo "|---|---|---|---|"
while [ $# -gt 1 ]; do
    env="$work/env"
    "$2" -m venv "$env"
    if [ "$1" = lowest ]; then
        sed 's/>=\([0-9.]*\),.*/==\1/' requirements.txt >"$work/requirements.txt"
    else
        cp requirements.txt "$work/requirements.txt"
    fi
    "$env/bin/pip" install --quiet --disable-pip-version-check -r "$work/requirements.txt"

    programs="all run"
    options=(--corpus "$work/text.txt" --cache "$work/cache-$1" --seq-len 32 --steps 40 --eval-every 20)
    try train.py "${options[@]}" --vocab-size 300 --out "$work/model"
    try distill.py "${options[@]}" --teacher "$work/model" --masking teacher --out "$work/student"
    try glue_eval.py --model "$work/model" --data-dir "$work/glue" --tasks SST-2 --seeds 0 --epochs 1 --out "$work/glued"

    timeout 7200 "$env/bin/python" -m pytest -q -rf -p no:cacheprovider >"$work/tests" 2>&1
    versions=$("$env/bin/python" -c "
import importlib.metadata
print(*(importlib.metadata.version(name) for name in ('torch', 'numpy', 'tokenizers', 'tqdm', 'pytest')), sep=', ')")
    echo "| $("$env/bin/python" -V | cut -d ' ' -f 2) | $versions | $programs | $(tail -n 1 "$work/tests" | tr -d =) |"
    grep ^FAILED "$work/tests"
    rm -rf "$env" "$work/model" "$work/student" "$work/glued"
    shift 2
done
