#!/usr/bin/env bash
# From Debian's packages to numbers and a page. Arguments are spec overrides, such as --train.seed=1.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="${WORK:-$here/work}"
python="${PYTHON:-$here/../../.venv/bin/python}"
mkdir -p "$work"
cd "$work"
test -e my-sounds || "$python" "$here/collect.py" my-sounds
"$python" -m soundomni train --config recordings --config "$here/drum-hits.yaml" "$@"
"$python" -m soundomni export runs/drum-hits --out model
"$python" "$here/measure.py" --sounds my-sounds --model model --out measured
"$python" "$here/page.py" --sounds my-sounds --measured measured --out index.html
