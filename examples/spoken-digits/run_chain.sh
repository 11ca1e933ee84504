#!/usr/bin/env bash
# Speech in two stages, as in AudioLM and SoundStorm: makes phrases, trains both stages, and measures on voices that were held out.
# Arguments are spec overrides of both stages, such as --train.steps=500.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="${WORK:-$here/work}"
python="${PYTHON:-$here/../../.venv/bin/python}"
mkdir -p "$work"
cd "$work"
test -e speech || "$python" "$here/make_speech.py" speech
test -e phrases || "$python" "$here/make_phrases.py" phrases
for stage in semantic acoustic; do
    "$python" -m soundomni train --config "$here/chain/$stage.yaml" "$@"
    "$python" -m soundomni export "runs/$stage" --out "models/$stage"
done
cp "$here/chain/speech.yaml" speech.yaml
"$python" "$here/measure_chain.py" --speech speech --phrases phrases --chain speech.yaml --out spoken
