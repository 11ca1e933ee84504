#!/usr/bin/env bash
# Makes the recordings, trains, exports, and measures on what was held out. Arguments are spec overrides, such as --train.steps=500.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="${WORK:-$here/work}"
python="${PYTHON:-$here/../../.venv/bin/python}"
mkdir -p "$work"
cd "$work"
test -e speech || "$python" "$here/make_speech.py" speech
"$python" -m soundomni train --config "$here/digits.yaml" "$@"
"$python" -m soundomni export run --out model
"$python" -m soundomni generate --model model --prompt three --prompt seven --seconds 0.6 --out said
"$python" "$here/measure.py" --speech speech --model model
