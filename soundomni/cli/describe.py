"""`soundomni describe`: what a model hears in files."""

from __future__ import annotations

import argparse

from soundomni.cli.model_options import add_adapter, add_model, load_model

HELP = "say what is heard in audio files, or answer a question about them"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio files: WAV, FLAC, OGG or MP3")
    add_model(parser)
    add_adapter(parser)
    parser.add_argument("--question", metavar="TEXT", help="ask this instead of asking for a description")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer (default: 64)")
    parser.add_argument("--batch", type=int, default=8, help="files heard at once (default: 8)")
    parser.add_argument("--device", default="cpu", help="where to run, such as cpu or cuda:0 (default: cpu)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Prints one line per file."""
    from soundomni.cli.output import emit
    from soundomni.core.errors import SpecError
    from soundomni.core.limits import MOST_NEW_TOKENS, check_count, check_device
    from soundomni.core.waveform import Audio
    from soundomni.data.audio import read_audio

    check_count("--max-tokens", args.max_tokens, most=MOST_NEW_TOKENS)
    check_count("--batch", args.batch)
    check_device(args.device)
    if args.question is not None and not args.question.strip():
        raise SpecError("an empty question was given; ask something, or leave --question out for a description")
    clips = [Audio(*read_audio(file)) for file in args.files]
    model = load_model(args, overrides)
    texts = model.describe(clips, question=args.question, max_new_tokens=args.max_tokens, batch_size=args.batch)
    heard = [{"file": str(file), "text": text} for file, text in zip(args.files, texts, strict=True)]
    lines = texts if len(texts) == 1 else [f"{one['file']}: {one['text']}" for one in heard]
    emit(args, {"question": args.question, "heard": heard}, text="\n".join(lines))
    return 0
