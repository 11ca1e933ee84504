"""`soundomni reconstruct`: send files through a codec and back, and measure how close they come."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.audio_files import Failures, add_format, check_model_format, say_gain, usable
from soundomni.cli.folders import expanded
from soundomni.cli.model_options import add_device, add_modality, add_model, check_modality, choose_device, load_model

if TYPE_CHECKING:
    from soundomni.core.pretrained.omni import SoundOmni

HELP = "send audio files through the codec and back, and measure the difference"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("files", type=expanded, nargs="+", metavar="FILE", help="audio files: WAV, FLAC, OGG or MP3")
    add_model(parser, note="; only its codec is used")
    parser.add_argument(
        "--chunk",
        type=float,
        metavar="SECONDS",
        help="seconds of a file to process at once; smaller values use less memory and give the same result (default: 30, "
        "or the whole file if the codec does not support chunks)",
    )
    add_modality(parser)
    add_device(parser)
    add_format(parser)
    parser.add_argument("--out", type=expanded, default="reconstructed", metavar="DIR", help="output folder (default: reconstructed)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write each reconstruction and print how close it comes, at the codec's rate and at the file's own.

    Files that cannot be used are named on stderr; the others are still reconstructed.
    """
    from soundomni.cli.console import emit
    from soundomni.cli.folders import make_directory
    from soundomni.cli.progress import tracked
    from soundomni.core.errors import DataError
    from soundomni.core.limits import check_seconds
    from soundomni.data.audio_formats import find_format

    find_format(args.format)
    if args.chunk is not None:
        check_seconds(args.chunk, name="--chunk")
    device = choose_device(args)
    failures = Failures(len(args.files))
    files = list(usable(args.files, failures).values())
    rows: list[dict[str, Any]] = []
    lines = []
    if files:
        model = load_model(args, overrides, device=device)
        check_modality(model, args.of)
        check_model_format(args.format, model, of=args.of)
        out = make_directory(args.out)
        for file in tracked(files, "reconstructing files", total=len(files)):
            try:
                row, line = _reconstruct(model, file, out, args)
            except (DataError, OSError) as error:
                failures.add(file, error)
            else:
                rows.append(row)
                lines.append(line)
    emit(args, failures.reported({"files": rows}), text="\n".join(lines) if lines else None)
    return failures.status


def _reconstruct(model: SoundOmni, file: Path, out: Path, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Send one file through the codec and write it; return the report on it, as data and as a line."""
    from soundomni.cli.folders import claimed_number
    from soundomni.core.waveform import Audio
    from soundomni.data.audio import read_audio
    from soundomni.data.audio_formats import find_format
    from soundomni.data.audio_writing import write_audio
    from soundomni.evaluation import compare, comparison_text

    clip = Audio(*read_audio(file))
    made = model.reconstruct(clip, chunk_seconds=args.chunk, of=args.of)
    with claimed_number(out) as number:
        path = out / f"{number:03d}-{file.stem}{find_format(args.format).suffix}"
        gain = write_audio(path, made.waveform, made.sample_rate, format=args.format)
    say_gain(path, gain)
    found = compare(clip, made)
    return {"file": str(file), "out": str(path), "gain": gain, **found.to_json()}, f"{path}  {comparison_text(found)}"
