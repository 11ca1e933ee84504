"""Use a trained model from its directory: make sounds from prompts, save and draw them, and describe what the model
hears in them.

`make demo` leaves a model in demo/model: python examples/use_a_model.py demo/model sounds "a rising chirp" "two clicks"
"""

import argparse
from pathlib import Path

from soundomni import SoundOmni
from soundomni.data import write_wav
from soundomni.data.spectrogram import save_spectrogram

parser = argparse.ArgumentParser(description="make sounds from prompts and describe them")
parser.add_argument("model", help="model directory, as written by `soundomni export`")
parser.add_argument("out", type=Path, help="folder for the WAV files and pictures")
parser.add_argument("prompts", nargs="+", help="what to make")
arguments = parser.parse_args()

model = SoundOmni.from_pretrained(arguments.model)
clips = model.generate(arguments.prompts, seconds=0.5, seeds=0)  # clip i has seed i: the same call makes the same clips
heard = model.describe(clips, max_new_tokens=32)
counts = model.describe(clips, question="how many events are there?", max_new_tokens=8)

arguments.out.mkdir(parents=True, exist_ok=True)
for number, (prompt, clip, description, count) in enumerate(zip(arguments.prompts, clips, heard, counts, strict=True)):
    wav, picture = (arguments.out / f"{number}.{ending}" for ending in ("wav", "png"))
    write_wav(wav, clip.waveform, clip.sample_rate)
    save_spectrogram(picture, clip.waveform, clip.sample_rate, title=prompt)
    print(f"{wav} and {picture}: asked for {prompt!r}, heard {description!r}, events {count!r}")
