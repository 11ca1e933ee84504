"""`soundomni reconstruct`: send files through a codec and back, and measure how close they come."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from soundomni.cli.audio_files import Failures, add_format, say_gain, usable
from soundomni.cli.audio_inputs import AudioInput
from soundomni.cli.folders import expanded
from soundomni.cli.model_options import add_device, add_modality, add_model_or_codec, choose_device

if TYPE_CHECKING:
    from soundomni.cli.parsing import Overrides
    from soundomni.core.interfaces import Codec
    from soundomni.core.waveform import Audio
    from soundomni.evaluation import CodecRow, Comparison
    from soundomni.train.parallel import World

HELP = "send audio files through the codec and back, and measure the difference"

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=7)

Planned = tuple[int, Path, AudioInput]
"""A file that can be used: its place among all that were given, its path, and what was given."""

_TITLES = {"si_sdr": "SI-SDR", "stft_distance": "STFT", "mel_distance": "mel"}
_TITLES |= {f"{name}_file": f"{title} (file)" for name, title in _TITLES.items()}
"""Score → its column in the table."""


@dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """A file that was written.

    Args:
        place: place of the input among all.
        file, out: paths of the input and the output.
        gain: gain of the output, see `write_audio`.
        compared: how the clip came back from each number of levels; the last one was written.
    """

    place: int
    file: Path
    out: Path
    gain: float
    compared: Sequence[Comparison]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    help_ = "audio files (WAV, FLAC, OGG, MP3 and others), and folders, which are searched with their subfolders"
    parser.add_argument("files", type=expanded, nargs="+", metavar="FILE", help=help_)
    add_model_or_codec(parser)
    parser.add_argument(
        "--levels",
        type=int,
        metavar="N",
        help="measure a codec of codes with the first 1, 2, … N levels, and write what N levels give (default: only with all)",
    )
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
    parser.add_argument(
        "--rate",
        choices=("codec", "file"),
        default="codec",
        help="sample rate of the written files: the codec's, or each file's own, with exactly as many samples (default: codec)",
    )
    parser.add_argument("--out", type=expanded, default="reconstructed", metavar="DIR", help="output folder (default: reconstructed)")
    parser.epilog = "With torchrun, several processes share the files: `torchrun --nproc-per-node 4 -m soundomni reconstruct …`."


def run(args: argparse.Namespace, overrides: Overrides) -> int:
    """Write each reconstruction and print how close it comes, and a table of the means.

    Files that cannot be used are named on stderr; the others are still reconstructed.
    """
    from soundomni.cli.codec_source import check_codec_options
    from soundomni.core.limits import check_count, check_seconds
    from soundomni.data.audio_formats import find_format

    find_format(args.format)
    if args.chunk is not None:
        check_seconds(args.chunk, name="--chunk")
    if args.levels is not None:
        check_count("--levels", args.levels)
    check_codec_options(args, overrides)
    if _is_launched():
        from soundomni.core.spec.schema import ParallelSpec
        from soundomni.train.parallel import open_world

        with open_world(ParallelSpec()) as world:
            return _share(args, overrides, world, *world.share(lambda: _planned(args)))
    inputs, failures = _planned(args)
    if not inputs:  # before torch is imported
        _report(args, failures, [], [])
        return failures.status
    import torch

    from soundomni.train.parallel import World

    return _share(args, overrides, World(rank=0, size=1, device=torch.device("cpu")), inputs, failures)


def _is_launched() -> bool:
    """Return whether torchrun started several processes."""
    import os

    return os.environ.get("WORLD_SIZE", "1") != "1"


def _share(args: argparse.Namespace, overrides: Overrides, world: World, inputs: Sequence[Planned], failures: Failures) -> int:
    """Reconstruct the share of this process; the first process reports on all files, also by its exit status."""
    from soundomni.evaluation import codec_table

    every: list[Reconstructed] = []
    table: list[CodecRow] = []
    if inputs:
        device = choose_device(args)
        codec, levels = world.on_every(lambda: _loaded(args, overrides, device))
        mine = inputs[world.rank :: world.size]
        parts = world.gather(world.on_every(lambda: _met(world, lambda: _reconstruct_all(codec, mine, levels, args, show=world.is_main))))
        places = {str(file): place for place, file, _ in inputs}
        failures.found += sorted((one for _, failed in parts for one in failed), key=lambda one: places[one["file"]])
        every = sorted((one for done, _ in parts for one in done), key=lambda one: one.place)
        table = codec_table(codec.spec, levels, [one.compared for one in every]) if every else []
    if not world.is_main:
        return 0  # torchrun ends all processes when one fails, also the one that is about to report
    _report(args, failures, every, table)
    return failures.status


def _met(world: World, work: Callable[[], T]) -> T:
    """Return what this process does, once all have done theirs: collectives do not wait for as long as shares may differ."""
    from soundomni.core.errors import SoundOmniError

    def meet() -> None:
        if world.meeting is not None:
            world.meeting.wait(_LONGEST_WAIT)

    try:
        done = work()
    except SoundOmniError:  # every process is to hear of it
        meet()
        raise
    meet()
    return done


def _planned(args: argparse.Namespace) -> tuple[list[Planned], Failures]:
    """Return the files that can be used, each with a name of its own for the output, and the others."""
    from soundomni.cli.audio_inputs import check_names, find_inputs
    from soundomni.cli.folders import user_path
    from soundomni.core.errors import DataError
    from soundomni.data.audio_formats import find_format

    found, skipped = find_inputs(args.files)
    failures = Failures(len(found) + len(skipped))
    for path, reason in skipped:
        failures.add(path, DataError(reason))
    inputs = [(place, file, found[place]) for place, file in usable([one.path for one in found], failures).items()]
    check_names([one for _, _, one in inputs], user_path(args.out), find_format(args.format).suffix)
    return inputs, failures


def _loaded(args: argparse.Namespace, overrides: Overrides, device: str) -> tuple[Codec, list[int | None]]:
    """Return the codec, which fits the options, and the numbers of levels to decode. Make the output folder."""
    from soundomni.cli.codec_source import load_codec
    from soundomni.cli.folders import make_directory
    from soundomni.data.audio_formats import check_format
    from soundomni.evaluation.codec_rows import levels_to_measure

    codec = load_codec(args, overrides, device=device)
    if args.rate == "codec":
        check_format(args.format, sample_rate=codec.spec.sample_rate, channels=codec.spec.channels)
    levels = levels_to_measure(codec.spec, args.levels, name="--levels")
    make_directory(args.out)
    return codec, levels


def _reconstruct_all(
    codec: Codec,
    inputs: Sequence[Planned],
    levels: Sequence[int | None],
    args: argparse.Namespace,
    *,
    show: bool,
) -> tuple[list[Reconstructed], list[dict[str, str]]]:
    """Return what was written for the inputs, and the failures. Progress is shown if `show`."""
    from soundomni.cli.progress import tracked
    from soundomni.core.errors import DataError
    from soundomni.evaluation.tasks.reconstruction import at_rate_of

    failures, done = Failures(len(inputs)), []
    for place, file, given in tracked(inputs, "reconstructing files", total=len(inputs)) if show else inputs:
        try:
            clip, made, compared = _compared(codec, file, levels, args)
            out, gain = _write(made if args.rate == "codec" else at_rate_of(clip, made), file, given.name, args)
        except (DataError, OSError) as error:
            failures.add(file, error)
        else:
            done.append(Reconstructed(place=place, file=file, out=out, gain=gain, compared=compared))
    return done, failures.found


def _compared(codec: Codec, file: Path, levels: Sequence[int | None], args: argparse.Namespace) -> tuple[Audio, Audio, list[Comparison]]:
    """Send a file through the codec; return it, what the last number of levels gives, and the comparison for each number."""
    from soundomni.core.inference.round_trip import round_trips
    from soundomni.core.waveform import Audio
    from soundomni.data.audio import read_audio
    from soundomni.evaluation import compare

    clip = Audio(*read_audio(file))
    compared = []
    for made in round_trips(codec, clip, levels, chunk_seconds=args.chunk):
        compared.append(compare(clip, made, keeps_waveform=codec.keeps_waveform))
    return clip, made, compared


def _write(made: Audio, file: Path, name: str | None, args: argparse.Namespace) -> tuple[Path, float]:
    """Write what came back; return the path and the gain. Without a name, the file is numbered."""
    from soundomni.cli.folders import claimed_number, make_directory, user_path
    from soundomni.data.audio_formats import find_format
    from soundomni.data.audio_writing import write_audio

    out, suffix = user_path(args.out), find_format(args.format).suffix
    if name is not None:
        path = out / f"{name}{suffix}"
        make_directory(path.parent)
        gain = write_audio(path, made.waveform, made.sample_rate, format=args.format)
    else:
        with claimed_number(out) as number:
            path = out / f"{number:03d}-{file.stem}{suffix}"
            gain = write_audio(path, made.waveform, made.sample_rate, format=args.format)
    say_gain(path, gain)
    return path, gain


def _report(args: argparse.Namespace, failures: Failures, done: Sequence[Reconstructed], table: Sequence[CodecRow]) -> None:
    """Print a line for each file, and the table."""
    from soundomni.cli.console import emit
    from soundomni.evaluation import comparison_text

    rows = []
    for one in done:
        levels = {"levels": [found.to_json() for found in one.compared]} if args.levels is not None else {}
        rows.append({"file": str(one.file), "out": str(one.out), "gain": one.gain, **one.compared[-1].to_json(), **levels})
    lines = [f"{one.out}  {comparison_text(one.compared[-1])}" for one in done]
    result = failures.reported({"files": rows, "table": [row.to_json() for row in table]})
    emit(args, result, text="\n".join([*lines, "", _table_text(table)]) if done else None)


def _table_text(rows: Sequence[CodecRow]) -> str:
    """Return the means over clips, a line for each number of levels."""
    from soundomni.cli.console import table
    from soundomni.evaluation import score_text

    shown = [name for name in _TITLES if any(name in row.scores for row in rows)]
    columns = ["levels", "kbit/s", *(_TITLES[name] for name in shown), "bandwidth", "clips"]
    cells = []
    for row in rows:
        kbits = "n/a" if row.bits_per_second is None else f"{row.bits_per_second / 1000:.4g}"
        scores = [score_text(name, row.scores[name].value) if name in row.scores else "n/a" for name in shown]
        cells.append([row.levels or "n/a", kbits, *scores, _bandwidth_text(row), row.clips])
    return table(columns, cells)


def _bandwidth_text(row: CodecRow) -> str:
    made, file = (f"{row.scores[name].value:.0f}" if name in row.scores else "n/a" for name in ("bandwidth", "bandwidth_file"))
    return f"{made} of {file} Hz"
