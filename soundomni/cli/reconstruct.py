"""`soundomni reconstruct`: files through a codec and back, and how close they come."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from soundomni.cli.model_options import add_model

if TYPE_CHECKING:
    from soundomni.core.waveform import Audio

HELP = "send audio files through the codec and back, and measure the difference"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files: WAV, FLAC, OGG or MP3")
    add_model(parser, note=": its codec is used")
    parser.add_argument(
        "--chunk",
        type=float,
        metavar="SECONDS",
        help="how much of a file goes through the codec at once: less takes less memory and gives the same (default: 30, "
        "or the whole file with a codec that cannot be cut)",
    )
    parser.add_argument("--device", default="cpu", help="where to run, such as cpu or cuda:0 (default: cpu)")
    parser.add_argument("--out", default="reconstructed", metavar="DIR", help="where files go (default: reconstructed)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Writes each reconstruction and prints SI-SDR and spectral distances against the file at the codec's rate."""
    from soundomni.cli.files import make_directory, next_number
    from soundomni.cli.output import emit
    from soundomni.cli.reconstruction import measure, rounded, told
    from soundomni.core.hub import SoundOmni
    from soundomni.core.limits import check_device, check_seconds
    from soundomni.core.waveform import Audio, convert
    from soundomni.data.audio import read_audio, write_wav

    check_device(args.device)
    if args.chunk is not None:
        check_seconds(args.chunk)
    clips = [Audio(*read_audio(file)) for file in args.files]
    model = SoundOmni.from_pretrained(args.model, overrides=dict(overrides), device=args.device)
    out = make_directory(args.out)
    rows, lines = [], []
    for index, (file, clip) in enumerate(zip(args.files, clips, strict=True), next_number(out)):
        made = model.reconstruct(clip, chunk_seconds=args.chunk)
        reference = convert(clip, channels=made.waveform.shape[0], sample_rate=made.sample_rate)
        path = _path(out, index, Path(file), made)
        write_wav(path, made.waveform, made.sample_rate)
        measures = rounded(measure(reference, made.waveform, made.sample_rate))
        rows.append({"file": str(file), "out": str(path), **measures})
        lines.append(f"{path}  {told(measures)}")
    emit(args, {"files": rows}, text="\n".join(lines))
    return 0


def _path(out: Path, index: int, file: Path, clip: Audio) -> Path:
    return out / f"{index:03d}-{file.stem}.wav"
