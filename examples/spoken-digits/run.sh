#!/usr/bin/env bash
# Makes the recordings, trains, exports, and measures on what was held out. Arguments are spec overrides, such as --train.steps=500.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="${WORK:-$here/work}"
mkdir -p "$work"
cd "$work"
test -d speech/voices || python "$here/make_speech.py" speech
soundomni train --config "$here/digits.yaml" "$@"
soundomni export run --out model
soundomni generate --model model --prompt three --prompt seven --seconds 0.6 --out said
python "$here/measure.py" --speech speech --model model
