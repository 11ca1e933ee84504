"""`soundomni describe`: describe audio files, or answer questions about them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from soundomni.cli.audio_files import Failures, usable
from soundomni.cli.folders import expanded
from soundomni.cli.model_options import add_adapter, add_device, add_dtype, add_model, choose_device, load_model, say_clips

if TYPE_CHECKING:
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio

HELP = "describe audio files, or answer a question about them"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("files", type=expanded, nargs="+", metavar="FILE", help="audio files: WAV, FLAC, OGG or MP3")
    add_model(parser)
    add_adapter(parser)
    parser.add_argument("--question", metavar="TEXT", help="question to answer instead of describing the file")
    parser.add_argument("--max-tokens", type=int, default=64, help="maximum number of tokens to write (default: 64)")
    parser.add_argument("--batch", type=int, default=8, help="number of files to process at once (default: 8)")
    parser.add_argument(
        "--temperature",
        type=float,
        help="sample each token: 1 samples as the model predicts, lower values give likelier texts (default: always the likeliest token)",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample only from the K likeliest tokens")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample only from the likeliest tokens with a total probability of P",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of the first file; later files use seed+1, seed+2, … (default: 0)",
    )
    add_device(parser)
    add_dtype(parser)


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Print one line per file. Files that cannot be used are named on stderr; the others are still described."""
    from soundomni.cli.console import emit
    from soundomni.core.errors import SpecError
    from soundomni.core.limits import MOST_NEW_TOKENS, check_count, check_seed, check_text_sampling

    check_count("--max-tokens", args.max_tokens, most=MOST_NEW_TOKENS)
    check_count("--batch", args.batch)
    check_text_sampling(args.temperature, args.top_k, args.top_p, options=True)
    if args.seed is not None:
        check_seed(args.seed, count=len(args.files))
        if args.temperature is None:
            raise SpecError(f"--seed is {args.seed}, but without a temperature no token is sampled. Set --temperature too, such as 1")
    if args.question is not None and not args.question.strip():
        raise SpecError("--question is empty. Ask something, or leave --question out for a description")
    device = choose_device(args)
    failures = Failures(len(args.files))
    files = usable(args.files, failures)
    heard = []
    if files:
        model = load_model(args, overrides, device=device)
        say_clips(model)
        heard = [{"file": str(file), "text": text} for file, text in _hear(model, files, failures, args)]
    lines = [one["text"] if len(args.files) == 1 else f"{' '.join(one['file'].splitlines())}: {one['text']}" for one in heard]
    emit(args, failures.reported({"question": args.question, "heard": heard}), text="\n".join(lines) if lines else None)
    return failures.status


def _hear(model: SoundOmni, files: Mapping[int, Path], failures: Failures, args: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Yield the text for each file that can be used, by its place on the command line. Memory holds the clips of one batch."""
    from soundomni.cli.progress import Progress
    from soundomni.core.batches import batches

    first = args.seed or 0
    with Progress("describing files", total=len(files)) as progress:
        for places in batches(list(files), args.batch):
            clips = dict(_read(model, {place: files[place] for place in places}, failures, args.question))
            texts = model.describe(
                list(clips.values()),
                question=args.question,
                max_new_tokens=args.max_tokens,
                batch_size=args.batch,
                temperature=args.temperature,
                top_k=args.top_k,
                top_p=args.top_p,
                seeds=[first + place for place in clips],
            )
            yield from zip((files[place] for place in clips), texts, strict=True)
            progress.advance(len(places))


def _read(model: SoundOmni, batch: Mapping[int, Path], failures: Failures, question: str | None) -> Iterator[tuple[int, Audio]]:
    """Yield the clips of a batch that the model can use, with their places; the others are failures."""
    from soundomni.core.errors import DataError
    from soundomni.core.waveform import Audio
    from soundomni.data.audio import read_audio

    for place, file in batch.items():
        try:
            clip = Audio(*read_audio(file))
            model.contexts.clip(clip, question)  # made again with the batch, at little cost next to the encoder
        except (DataError, OSError) as error:
            failures.add(file, error)
        else:
            yield place, clip
