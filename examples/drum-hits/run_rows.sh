#!/usr/bin/env bash
# The table of the tutorial: trains each row for half as long as the recipe, one after the other, measures it, and writes rows.md. It takes
# about an hour on two cores. Arguments are spec overrides of every model, such as --train.threads=1.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="${WORK:-$here/work}"
python="${PYTHON:-$here/../../.venv/bin/python}"
mkdir -p "$work/runs" "$work/models"
cd "$work"
TIMEFORMAT='%U'  # seconds of processor time
train() {
    local name="$1"
    shift
    test -e "runs/$name.seconds" || {
        { time "$python" -m soundomni train "$@" --train.run_dir="runs/$name" 2>&1; } 2> "runs/$name.unfinished"
        mv "runs/$name.unfinished" "runs/$name.seconds"
    }
}
test -e my-sounds || "$python" "$here/collect.py" my-sounds
for codec in soundstream oobleck; do
    train "$codec" --config "$codec-toy" --config "$here/rows/$codec-codec.yaml"
done
for row in \
    as-they-are prepared x-prediction recipe unbalanced oobleck soundstream-masked soundstream-tokens
do
    layer=()
    test "$row" = recipe || layer=(--config "$here/rows/$row.yaml")
    train "$row-model" --config recordings --config "$here/drum-hits.yaml" "${layer[@]}" --train.steps=850 --train.save_every=0 "$@"
    test -e "models/$row" || "$python" -m soundomni export "runs/$row-model" --out "models/$row"
    test -e "measured/$row/report.json" || "$python" "$here/measure.py" --sounds my-sounds --model "models/$row" --out "measured/$row"
done
"$python" "$here/table.py" --work . --out rows.md
