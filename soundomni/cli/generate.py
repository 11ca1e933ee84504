"""`soundomni generate`: turn prompts into audio files and pictures."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.audio_files import add_format, check_model_format, say_gain
from soundomni.cli.folders import expanded
from soundomni.cli.model_options import (
    add_adapter,
    add_device,
    add_dtype,
    add_modality,
    add_model,
    check_modality,
    check_steps,
    choose_device,
    load_draft,
    load_model_or_chain,
    say_clips,
)
from soundomni.cli.parsing import Parser
from soundomni.core.limits import DEFAULT_STRENGTH

if TYPE_CHECKING:
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio

HELP = "make audio from prompts"


PROMPTS = "prompts.jsonl"
"""File with a line for each clip."""
PATIENCE = timedelta(days=1)
"""How long a process waits for another that has more or longer clips to make."""
MOST_CLIPS = 100_000
"""Largest number of clips in one grid."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One requested clip; None leaves the choice to the model's spec. If `seconds` is None, `_with_lengths` decides.

    `spans`, in seconds, of the file `keep` are kept; the file `vary` is varied with `strength`. `given` holds pairs of a modality
    and a file, a clip that the model takes besides the prompt.
    """

    prompt: str
    seconds: float | None
    seed: int
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    keep: str | None = None
    spans: tuple[tuple[float, float], ...] = ()
    vary: str | None = None
    strength: float = DEFAULT_STRENGTH
    of: str | None = None
    given: tuple[tuple[str, str], ...] = ()


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_model(parser, may_be_chain=True)
    add_adapter(parser, takes_interval=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", metavar="TEXT", help="what to make; may be repeated")
    what.add_argument(
        "--grid",
        type=expanded,
        metavar="FILE",
        help="YAML file with lists of prompt, seconds, steps, guidance, seed, negative: every combination is made, and anything it "
        "omits falls back to the command-line options",
    )
    parser.add_argument("--negative", metavar="TEXT", help="what to steer away from")
    parser.add_argument(
        "--seconds",
        type=float,
        help="length of each clip in seconds, or the longest length if the model decides when clips end "
        "(default: that of the training clips if they all had the same length, otherwise that of the --vary or --given file, or 1)",
    )
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    add_modality(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first clip; later clips use seed+1, seed+2, … (default: 0)")
    parser.add_argument(
        "--keep", type=expanded, metavar="FILE", help="audio file to keep in part: the rest is generated, to continue it or fill a gap"
    )
    parser.add_argument(
        "--span",
        type=_span,
        action="append",
        metavar="FROM:TO",
        help="seconds of the --keep file to keep; may be repeated (default: the whole file)",
    )
    parser.add_argument(
        "--vary", type=expanded, metavar="FILE", help="audio file to vary: noise is added to it, then it is regenerated from the prompt"
    )
    parser.add_argument(
        "--strength", type=float, help=f"how much --vary changes: 0.2 slightly, 0.8 strongly, 1 completely (default: {DEFAULT_STRENGTH:g})"
    )
    parser.add_argument(
        "--given",
        type=_named_file,
        action="append",
        metavar="MODALITY=FILE",
        help="audio file for a modality that the model takes besides the text, such as semantic=speech.wav: a condition, a clip aligned "
        "with the one to make or placed before it, or the source of code levels that the model does not make itself; may be repeated. "
        "Unless another option has the modality's name, --semantic speech.wav does the same",
    )
    parser.add_argument(
        "--draft",
        type=expanded,
        metavar="DIR",
        help="smaller model of the same codes that guesses ahead for the sampler speculative: other clips of the same kind, made faster",
    )
    parser.add_argument("--batch", type=int, default=8, help="number of clips to make at once (default: 8)")
    add_device(parser)
    add_dtype(parser)
    add_format(parser)
    parser.add_argument("--out", type=expanded, default="generated", metavar="DIR", help="output folder (default: generated)")
    parser.add_argument("--no-pictures", action="store_true", help="write audio files only")


def names_of_clips(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the modalities for which the model of `--model` takes a clip; each is an option of its own, `--NAME FILE`.

    Raise UsageError if --model has no value, CheckpointError if there is no such model, SpecError if its spec is wrong.
    """
    finder = Parser(prog="soundomni generate", add_help=False)
    finder.add_argument("--model", type=expanded)
    model = finder.parse_known_args(list(arguments))[0].model
    return () if model is None else _clips_of(model)


def _clips_of(model: str) -> tuple[str, ...]:
    from soundomni.core.files.names import SPEC_FILE
    from soundomni.core.pretrained.directory import find_model
    from soundomni.core.pretrained.stage_paths import is_chain
    from soundomni.core.spec.load import load_spec

    with naming_rank():  # another process may have another disk
        if is_chain(model):
            return ()
        return load_spec([find_model(model, weights=False) / SPEC_FILE], base={}, validate_plugins=False).of_model.takes_clips


@dataclass(frozen=True)
class Written:
    """A clip that was made and written.

    Args:
        request: what was asked for.
        files: the audio file, then the picture if there is one.
        gain: factor that was applied to the audio; 1 if none was.
        no_picture: why the requested picture is missing, or None.
    """

    request: Request
    files: list[Path]
    gain: float
    no_picture: str | None = None


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Make every requested clip and write it, with a picture and a line in prompts.jsonl."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import input_file, make_directory
    from soundomni.core.errors import one_line
    from soundomni.core.limits import check_negative
    from soundomni.core.pretrained.stage_paths import is_chain
    from soundomni.data.audio_formats import find_format

    find_format(args.format)
    for option in ("keep", "vary"):
        if getattr(args, option) is not None:
            setattr(args, option, str(input_file(getattr(args, option))))
    args.given = [(name, str(input_file(file))) for name, file in _named_once(args.given or ())]
    requests = read_grid(Path(args.grid), _from_options(args, ""), model=args.model) if args.grid else _all_from_options(args)
    chained = is_chain(args.model)
    _check(requests, args.batch, option="--" if args.grid is None else "")
    requests = _varying(_keeping(requests, args), args)
    if chained:
        _check_chain(args)
    with naming_rank():  # another process may have another disk, or no GPU
        device = own_device(choose_device(args))
        model = load_model_or_chain(args, overrides, device=device)
    requests = _with_lengths(requests, args, model)
    if args.keep is not None or args.vary is not None or args.given:
        say_clips(model)
    check_modality(model, args.of)
    check_model_format(args.format, model, of=args.of)
    _check_prompts(requests, model)
    draft = None if args.draft is None else load_draft(args.draft, device=device)
    scale = model.made_spec(args.of).guidance.scale
    for request in requests:
        check_steps(model, args.of, request.steps, option="--steps" if args.grid is None else "steps")
        if not chained:  # whose stages have guidance of their own
            check_negative(request.negative, scale if request.guidance is None else request.guidance)
    out = make_directory(args.out)
    settings: dict[str, Any] = {"batch": args.batch, "pictures": not args.no_pictures, "format": args.format, "draft": draft}
    if is_one_of_several():
        written = generate_together(model, requests, out, **settings)
        if written is None:  # the first process reports for all
            return 0
    else:
        written = list(generate_files(model, requests, out, **settings))
    made, lines, failures = [], [], []
    for clip in written:
        made.append({**asdict(clip.request), "files": [str(file) for file in clip.files], "gain": clip.gain})
        lines.append(f"{clip.files[0]}  {one_line(' '.join(clip.request.prompt.split()))}")
        if clip.no_picture is not None:
            failures.append({"file": str(clip.files[0].with_suffix(".png")), "error": clip.no_picture})
    emit(args, {"model": str(args.model), "clips": made, "failures": failures}, text="\n".join(lines))
    return 1 if failures else 0


def is_one_of_several() -> bool:
    """Return whether torchrun started this process together with others. Raise SpecError if its variables are
    inconsistent."""
    if "RANK" not in os.environ:  # a leftover variable does not start other processes
        return False
    from soundomni.train.launch import read_launch

    launch = read_launch(os.environ)
    return launch is not None and launch.size > 1


@contextlib.contextmanager
def naming_rank() -> Iterator[None]:
    """If this process is one of several, name it in its errors, so that they are printed even if the first process has
    none."""
    from soundomni.core.errors import SoundOmniError

    try:
        yield
    except SoundOmniError as error:
        if is_one_of_several():
            error.add_note(f"RANK {os.environ['RANK']}")
        raise


def own_device(device: str) -> str:
    """Return the device of this process; each of several uses the GPU of its own number. Raise SpecError if there is
    none."""
    if device != "cuda" or not is_one_of_several():
        return device
    from soundomni.core.limits import check_device
    from soundomni.train.launch import local_rank

    own = f"cuda:{local_rank(os.environ)}"
    check_device(own)
    return own


def generate_together(model: SoundOmni | Chain, requests: list[Request], out: Path, **settings: Any) -> list[Written] | None:
    """Make clips in n processes, every n-th batch in each; return all clips in the first process, None in the others.

    Names and contents of the files are those of a single process, because its batches are divided and not their clips.
    The other arguments are those of `generate_files`. prompts.jsonl is written at the end, in the order of the clips.
    If a process fails or is stopped, it still has the lines of the clips that are there, except those of a process that
    was killed.
    """
    import torch

    from soundomni.cli.folders import append_line, claimed_numbers
    from soundomni.core.errors import DataError, SoundOmniError, message_of
    from soundomni.core.spec.schema import ParallelSpec
    from soundomni.train.parallel import open_world

    cpu = torch.device("cpu")  # only plain objects are exchanged
    with stopping_like_ctrl_c(), open_world(ParallelSpec(), device=cpu, timeout=PATIENCE) as world, contextlib.ExitStack() as claims:
        first = world.share(lambda: claims.enter_context(claimed_numbers(out, len(requests))))
        mine: list[tuple[int, Written]] = []
        begun = 0
        failure: Exception | None = None
        for index, group in enumerate(_groups(requests, settings["batch"])):
            if index % world.size == world.rank and failure is None:
                try:
                    for i, clip in enumerate(generate_files(model, list(group), out, **settings, first_number=first + begun)):
                        mine.append((begun + i, clip))
                except BaseException as error:  # of any kind: clips that are there get their lines first
                    if not isinstance(error, Exception):
                        for _, clip in mine:
                            append_line(out / PROMPTS, _line(clip))
                        raise
                    failure = error
            begun += len(group)
        told: Exception | None = failure
        if failure is not None and not isinstance(failure, SoundOmniError | OSError):
            told = DataError(f"the process with RANK {world.rank} has failed: {message_of(failure)}")
        found, writes = [mine], True  # each process writes its own lines, unless they meet
        try:
            failures, found = [one for one in world.gather(told) if one is not None], world.gather(mine)
            writes = world.is_main
        except RuntimeError as error:
            stopped = "another process has stopped. The clips of this process are written; run the command again for the others"
            failures = [DataError(f"{stopped} ({message_of(error)})")]
        finally:
            written = [clip for _, clip in sorted((pair for part in found for pair in part), key=lambda pair: pair[0])]
            for clip in written if writes else ():
                append_line(out / PROMPTS, _line(clip))
        if failure is not None and failure is not told:
            raise failure
        if failures:
            raise failures[0]
        return written if world.is_main else None


@contextlib.contextmanager
def stopping_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which torchrun sends if another process has died, end this process as Ctrl-C does, so that nothing
    is left behind."""
    import signal

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def generate_files(
    model: SoundOmni | Chain,
    requests: list[Request],
    out: Path,
    *,
    batch: int,
    pictures: bool,
    format: str = "wav",
    draft: SoundOmni | None = None,
    first_number: int | None = None,
) -> Iterator[Written]:
    """Make clips in batches and yield each as soon as it is written.

    Requests that differ in length or settings are made separately.

    Files from earlier calls stay in the folder: numbers go on after the highest one there, and prompts.jsonl grows. With a `first_number`,
    numbers start there, and prompts.jsonl is not written. A picture that cannot be drawn is reported on stderr, and its clip is still
    written.
    """
    from soundomni.cli.progress import Progress
    from soundomni.core.inference.editing import Kept
    from soundomni.core.waveform import Audio
    from soundomni.data.audio import read_audio

    done = 0
    with Progress("making clips", total=len(requests)) as progress:
        for group in _groups(requests, batch):
            first = group[0]
            assert first.seconds is not None, "decided once the model is there"
            kept = Kept(Audio(*read_audio(first.keep)), first.spans) if first.keep else None
            varied = Audio(*read_audio(first.vary)) if first.vary else None
            given = {name: Audio(*read_audio(file)) for name, file in first.given}
            besides: dict[str, Any] = {} if varied is None else {"vary": [varied] * len(group), "strength": first.strength}
            besides |= ({"given": given} if given else {}) | ({} if draft is None else {"draft": draft})
            clips = model.generate(
                [request.prompt for request in group],
                seconds=first.seconds,
                num_steps=first.steps,
                guidance_scale=first.guidance,
                negative_prompt=first.negative,
                known=[kept] * len(group),
                seeds=[request.seed for request in group],
                of=first.of,
                batch_size=batch,
                on_step=lambda index, _: progress.detail(f"step {index + 1}"),
                **besides,
            )
            for request, clip in zip(group, clips, strict=True):
                number = None if first_number is None else first_number + done
                yield _write(request, clip, out, pictures=pictures, format=format, number=number)
                done += 1
                progress.advance()


def _line(clip: Written) -> str:
    """Return the line of prompts.jsonl about a clip."""
    return json.dumps({**asdict(clip.request), "file": clip.files[0].name, "gain": clip.gain})


def _write(request: Request, clip: Audio, out: Path, *, pictures: bool, format: str, number: int | None) -> Written:
    """Write a clip, its line in prompts.jsonl and then its picture, so that no later failure loses what comes first.

    With a `number`, the file has this one, and the line is left to the caller.
    """
    from soundomni.cli.console import note
    from soundomni.cli.folders import append_line, claimed_number
    from soundomni.core.errors import message_of
    from soundomni.core.files.paths import slug
    from soundomni.data.audio_formats import find_format
    from soundomni.data.audio_writing import write_audio
    from soundomni.data.spectrogram import save_spectrogram

    with claimed_number(out) if number is None else contextlib.nullcontext(number) as own:
        stem = out / f"{own:03d}-{slug(request.prompt)}"
        file = stem.with_suffix(find_format(format).suffix)
        gain = write_audio(file, clip.waveform, clip.sample_rate, format=format)
    if number is None:
        append_line(out / PROMPTS, _line(Written(request, [file], gain)))
    say_gain(file, gain, kept=request.keep is not None)
    if not pictures:
        return Written(request, [file], gain)
    picture = stem.with_suffix(".png")
    try:
        save_spectrogram(picture, clip.waveform, clip.sample_rate, title=request.prompt)
    except Exception as error:  # of any kind: the clip is already written, and the next ones still have to be made
        reason = message_of(error)
        note(f"soundomni: error: cannot draw the picture of '{file}': {reason}")
        return Written(request, [file], gain, reason)
    return Written(request, [file, picture], gain)


def _groups(requests: list[Request], batch: int) -> Iterator[Sequence[Request]]:
    from soundomni.core.batches import batches

    for _, same in itertools.groupby(requests, key=lambda request: replace(request, prompt="", seed=0)):
        yield from batches(list(same), batch)


def _from_options(args: argparse.Namespace, prompt: str) -> Request:
    return Request(
        prompt=prompt,
        seconds=None if args.seconds is None else float(args.seconds),
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        negative=args.negative,
        of=args.of,
        given=tuple(args.given),
    )


def _all_from_options(args: argparse.Namespace) -> list[Request]:
    """Return one request per prompt, with consecutive seeds."""
    from soundomni.core.limits import check_seed

    check_seed(args.seed, count=len(args.prompt))
    return [replace(_from_options(args, prompt), seed=args.seed + i) for i, prompt in enumerate(args.prompt)]


def _span(text: str) -> tuple[float, float]:
    start, colon, end = text.partition(":")
    try:
        if colon:
            return float(start), float(end)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}; expected FROM:TO in seconds, such as 0:1.5")


def _named_file(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r}; expected MODALITY=FILE, such as semantic=speech.wav")
    return name, expanded(file)


def _named_once(given: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """Return what --given names. Raise UsageError if it names a modality twice."""
    from soundomni.cli.parsing import UsageError

    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--given names '{name}' twice. Give one file for each modality")
    return given


def _keeping(requests: list[Request], args: argparse.Namespace) -> list[Request]:
    """Add what --keep and --span say to every request."""
    from soundomni.core.errors import SpecError
    from soundomni.data.audio import audio_info

    if args.keep is None:
        if args.span:
            raise SpecError("--span says which part of a file to keep; give the file with --keep FILE")
        return requests
    samples, rate, _ = audio_info(args.keep)
    spans = tuple(args.span or [(0.0, samples / rate)])
    _check_kept_whole(requests, args, samples / rate)
    return [replace(request, keep=args.keep, spans=spans) for request in requests]


def _check_kept_whole(requests: list[Request], args: argparse.Namespace, seconds: float) -> None:
    """Raise SpecError if a file of this length is kept whole, and a clip whose length is decided is shorter."""
    from soundomni.core.errors import SpecError

    shortest = min((request.seconds for request in requests if request.seconds is not None), default=seconds)
    if not args.span and seconds > shortest:
        raise SpecError(
            f"'{args.keep}' lasts {seconds:g} s and would be kept whole, but the clip to make lasts {shortest:g} s. "
            "Give more --seconds, or --span FROM:TO for the part to keep"
        )


def _varying(requests: list[Request], args: argparse.Namespace) -> list[Request]:
    """Add what --vary and --strength say to every request."""
    from soundomni.core.errors import SpecError
    from soundomni.core.limits import check_strength

    if args.vary is None:
        if args.strength is not None:
            raise SpecError("--strength says how much to vary a file. Give the file with --vary FILE")
        return requests
    strength = DEFAULT_STRENGTH if args.strength is None else args.strength
    check_strength(strength, name="--strength")
    return [replace(request, vary=args.vary, strength=strength) for request in requests]


def _with_lengths(requests: list[Request], args: argparse.Namespace, model: SoundOmni | Chain) -> list[Request]:
    """Return the requests with a length for those that do not have one: that of the clips that the model was trained on
    if they all had the same, otherwise that of the file to vary or of the shortest given file, otherwise 1 s.

    Given files come first, because they must not be shorter than the clip. Raise SpecError if a file that is kept whole
    is longer than its clip.
    """
    from soundomni.core.limits import check_seconds
    from soundomni.data.audio import audio_info

    if all(request.seconds is not None for request in requests):
        return requests
    trained = None if model.clips is None or args.given else model.clips.seconds
    files = [args.vary] if args.vary is not None else [file for _, file in args.given]
    seconds = min((samples / rate for samples, rate, _ in map(audio_info, files)), default=1.0) if trained is None else trained
    check_seconds(seconds, name="--seconds")
    requests = [request if request.seconds is not None else replace(request, seconds=seconds) for request in requests]
    if args.keep is not None:
        samples, rate, _ = audio_info(args.keep)
        _check_kept_whole(requests, args, samples / rate)
    return requests


def _grid_tree(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML grid. Raise DataError if it cannot be read, SpecError if it is not a mapping."""
    from soundomni.cli.folders import looked_for
    from soundomni.core.errors import DataError, SpecError, message_of
    from soundomni.core.spec import yaml_text

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or message_of(error)) + ("" if path.exists() else looked_for(path))
        raise DataError(f"cannot read the grid '{path}': {reason}") from error
    tree = yaml_text.parse(text, f"the grid {path}")
    if not isinstance(tree, dict):
        given = "empty" if tree is None else "a list" if isinstance(tree, list) else "a single value"
        raise SpecError(f"the grid '{path}' is {given}; expected a mapping with the key prompt. See `soundomni generate --help`")
    return tree


def read_grid(path: Path, defaults: Request, *, model: str) -> list[Request]:
    """Read a YAML grid: each key holds a value or a list, and every combination is one clip.

    Args:
        path: path of the file.
        defaults: values for keys that the grid omits; its prompt is not used.
        model: name or directory of the model. The modalities for which it takes a clip are keys too; their values are
            files, or null for none.

    Raises:
        DataError: the file cannot be read, or a file that it names is missing.
        SpecError: it is not a grid, or has an unknown key, an empty list or a value of a wrong type.
        CheckpointError: it has a key that depends on the model, and there is no such model.
    """
    from soundomni.core.errors import SpecError, did_you_mean, shown

    tree = _grid_tree(path)
    text_, number, whole = ("text", str), ("a number", (int, float)), ("a whole number", int)
    types: dict[str, Any] = {"prompt": text_, "seconds": number, "seed": whole, "steps": whole, "guidance": number, "negative": text_}
    order, optional = ["seconds", "steps", "guidance", "negative", "prompt", "seed"], {"seconds", "steps", "guidance", "negative"}
    named = () if tree.keys() <= types.keys() else _clips_of(model)
    clips = [name for name in named if name in tree and name not in types]
    types |= dict.fromkeys((name for name in named if name not in types), ("a file", str))
    for key in tree:
        if key not in types:
            raise SpecError(f"the grid '{path}' has an unknown key '{key}'.{did_you_mean(str(key), types)} Keys: {', '.join(types)}")
    if "prompt" not in tree:
        raise SpecError(f"the grid '{path}' does not have the key prompt. Add it, with one prompt or a list of prompts")
    given = {key: getattr(defaults, key) for key in order} | tree
    columns = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    for key, values in columns.items():
        if not values:
            raise SpecError(f"the grid '{path}': {key} is an empty list. Give it a value, or leave it out")
        for value in values:
            expected, right = types[key]
            fits = isinstance(value, right) and not isinstance(value, bool)
            if not fits and not (value is None and (key not in tree or key in {*optional, *clips})):
                raise SpecError(f"the grid '{path}': {key} is {'null' if value is None else shown(value)}; expected {expected}")
    count = math.prod(map(len, columns.values()))
    if count > MOST_CLIPS:
        raise SpecError(f"the grid '{path}' asks for {count:,} clips; expected at most {MOST_CLIPS:,}")
    files = [_files_of(dict(zip(clips, one, strict=True)), defaults.given) for one in itertools.product(*(columns[k] for k in clips))]
    return [
        Request(of=defaults.of, given=pairs, **dict(zip(order, combination, strict=True)))
        for pairs in files  # clips with the same files are made together
        for combination in itertools.product(*(columns[k] for k in order))
    ]


def _files_of(named: dict[str, str | None], given: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the given files of one combination of a grid: its own ones, and those `given` for the whole grid.

    A name in the combination replaces the file of this name.

    Raise UnreadableAudioError for a missing file.
    """
    from soundomni.cli.folders import input_file

    own = ((name, str(input_file(file))) for name, file in named.items() if file is not None)
    return (*(pair for pair in given if pair[0] not in named), *own)


def _check_chain(args: argparse.Namespace) -> None:
    """Raise SpecError for options that change what one model does, if `--model` is a chain of several."""
    from soundomni.core.errors import SpecError

    for option, given in (("--vary", args.vary), ("--given", args.given), ("--draft", args.draft)):
        if given:
            raise SpecError(f"{option} only applies to a single model; '{args.model}' is a chain. Use one of its stages")


def _check_prompts(requests: list[Request], model: SoundOmni | Chain) -> None:
    """Raise SpecError for an empty prompt, or, if the model takes no text, for one that is not empty."""
    from soundomni.core.errors import SpecError

    model.check_prompts([request.prompt for request in requests])
    if model.takes_text and not all(request.prompt.strip() for request in requests):
        raise SpecError("the prompt is empty; say what to make, for example --prompt 'a rising sine tone'")


def _check(requests: list[Request], batch: int, *, option: str) -> None:
    """Raise SpecError for a number that is out of its range; `option` is the prefix of its name in the error."""
    from soundomni.core.limits import MOST_STEPS, check_count, check_scale, check_seconds, check_seed

    check_count("--batch", batch)
    for request in requests:
        if request.seconds is not None:
            check_seconds(request.seconds, name=f"{option}seconds")
        check_seed(request.seed)
        if request.steps is not None:
            check_count(f"{option}steps", request.steps, most=MOST_STEPS)
        if request.guidance is not None:
            check_scale(request.guidance)
