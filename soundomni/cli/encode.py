"""`soundomni encode`: run a codec over a dataset once, so that training need not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.folders import expanded
from soundomni.cli.model_options import add_device, add_modality, shipped_model

if TYPE_CHECKING:
    from soundomni.cli.parsing import Overrides
    from soundomni.core.interfaces import Codec, Dataset
    from soundomni.core.spec.schema import Slot, Spec
    from soundomni.data.encoded.folder_writer import FolderWriter
    from soundomni.data.mixture import Mixture
    from soundomni.train.parallel import World

HELP = "encode the clips of a dataset with a codec, for faster training"
OWN, STABLE_AUDIO = "soundomni", "stable-audio"
DTYPES = ("float32", "float16")
DEFAULT_BATCH, DEFAULT_SHARD_MB = 16, 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "With several processes, start it with torchrun; the files are the same."
    parser.add_argument("folder", nargs="?", type=expanded, metavar="FOLDER", help="folder of audio files to encode")
    parser.add_argument("--dataset", metavar="SLOT", help="dataset to encode: a name, or YAML with class_path and init_args")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="SPEC",
        help="spec whose datasets are encoded, each into its own folder, with its codec; YAML file or the name of a shipped spec; "
        "may be repeated, later ones override earlier ones",
    )
    codec = parser.add_mutually_exclusive_group()
    codec.add_argument(
        "--model",
        type=expanded,
        metavar="MODEL",
        help=f"codec of a model directory, a {shipped_model()} or a Hugging Face Hub repository OWNER/NAME[@REVISION]; or of "
        "a run, such as one that trained a codec, or of a codec directory",
    )
    codec.add_argument(
        "--codec",
        metavar="SLOT",
        help="codec: a name, or YAML with class_path and init_args; or the directory of a codec, or of a run that trained one",
    )
    add_modality(parser)
    parser.add_argument("--out", type=expanded, required=True, metavar="DIR", help="new folder for the encoded clips")
    parser.add_argument(
        "--format",
        choices=(OWN, STABLE_AUDIO),
        default=OWN,
        help="soundomni: a few large files (default); stable-audio: the pre-encoded layout of stable-audio-tools, two files per clip",
    )
    parser.add_argument("--resume", action="store_true", help="resume an interrupted encoding in --out")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="how latents are stored; float16 takes half the space, but then training is not exactly the same (default: float32)",
    )
    parser.add_argument("--max-seconds", type=float, metavar="SECONDS", help="encode only the beginning of longer clips")
    parser.add_argument("--batch", type=int, default=DEFAULT_BATCH, help=f"number of clips to read ahead (default: {DEFAULT_BATCH})")
    parser.add_argument(
        "--shard-mb",
        type=int,
        default=DEFAULT_SHARD_MB,
        metavar="MB",
        help=f"largest file in megabytes, which is also what an interruption loses at most (default: {DEFAULT_SHARD_MB})",
    )
    add_device(parser)


def run(args: argparse.Namespace, overrides: Overrides) -> int:
    """Encode each dataset. Clips that cannot be read are named on stderr and left out."""
    from soundomni.cli.console import emit
    from soundomni.core.spec.schema import ParallelSpec
    from soundomni.train.parallel import open_world

    _check(args, overrides)
    with open_world(ParallelSpec()) as world:
        job = world.on_every(lambda: _prepare(args, overrides, world))
        _check_same(world.gather(job.fingerprint))
        found = {name: _encode(writer, out, world, resume=args.resume) for name, (out, writer) in job.writers.items()}
        if not world.is_main:
            return 0
    result = {"out": args.out, "format": args.format, "codec": job.codec, "fingerprint": job.fingerprint, "datasets": found}
    emit(args, result, text="\n".join(_lines(found, job.codec)))
    return 1 if any(one["failures"] for one in found.values()) else 0


def _check(args: argparse.Namespace, overrides: Overrides) -> None:
    """Raise an error for options that are missing, out of range, or do not go together."""
    from soundomni.cli.parsing import UsageError
    from soundomni.core.limits import check_count, check_seconds

    check_count("--batch", args.batch)
    check_count("--shard-mb", args.shard_mb)
    if args.max_seconds is not None:
        check_seconds(args.max_seconds, name="--max-seconds")
    if args.folder is not None and args.dataset is not None:
        raise UsageError("FOLDER and --dataset both name clips. Leave out one of them")
    if not args.config and args.folder is None and args.dataset is None:
        raise UsageError("there is nothing to encode. Give a FOLDER of audio, --dataset SLOT or --config SPEC")
    if not args.config and args.model is None and args.codec is None:
        raise UsageError("there is no codec. Give --model MODEL, --codec SLOT or --config SPEC")
    if overrides and not args.config:
        raise UsageError(f"--{overrides[0][0]} only applies to the spec of --config. Leave it out, or give --config SPEC")


def _check_same(fingerprints: Sequence[str]) -> None:
    """Raise SpecError if processes have different codecs: a fit may end in other codebooks on another kind of machine."""
    from soundomni.core.errors import SpecError

    if len(set(fingerprints)) > 1:
        raise SpecError("the processes have different codecs, such as codebooks that each measured. Encode with one process")


@dataclass(frozen=True)
class _Job:
    """What is encoded: the name of the codec, its fingerprint, and a folder with its writer for each dataset."""

    codec: str
    fingerprint: str
    writers: Mapping[str, tuple[Path, FolderWriter]]


def _prepare(args: argparse.Namespace, overrides: Overrides, world: World) -> _Job:
    """Open the datasets and the codec. Nothing is written."""
    from soundomni.cli.model_options import choose_device
    from soundomni.core.pretrained.fingerprint import codec_fingerprint, complete_slot
    from soundomni.train.codec_of_spec import encodable

    spec = _spec(args, overrides)
    mixture = _mixture(args, spec)
    slot, codec = _codec(args, spec, mixture)
    device = str(world.device) if world.size > 1 and args.device != "cpu" else choose_device(args)
    fingerprint = codec_fingerprint(slot, codec, trust_class_paths=args.trust_class_paths)
    slot = complete_slot(slot, trust_class_paths=args.trust_class_paths)
    codec.eval().to(device)
    datasets = {"": _dataset(args)} if mixture is None or spec is None else encodable(spec, mixture, of=args.of)
    writers = {}
    for name, dataset in datasets.items():
        out = Path(args.out) / name if name else Path(args.out)
        writers[name] = (out, _writer(args, dataset, out, slot=slot, codec=codec, fingerprint=fingerprint, device=device))
    return _Job(slot.class_path, fingerprint, writers)


def _writer(
    args: argparse.Namespace, dataset: Dataset, out: Path, *, slot: Slot, codec: Codec, fingerprint: str, device: str
) -> FolderWriter:
    """Return what writes the clips of a dataset in the chosen format."""
    from soundomni.data.encoded.encoder import ClipEncoder
    from soundomni.data.encoded.folder_writer import measured_by
    from soundomni.data.encoded.pair_writer import PairWriter
    from soundomni.data.encoded.shard_writer import ShardWriter

    encoder = ClipEncoder(
        dataset=dataset, codec=codec, device=device, dtype=args.dtype, max_seconds=args.max_seconds, batch_size=args.batch
    )
    common: dict[str, Any] = {"folder": out, "encoder": encoder, "num_items": len(dataset), "codec": slot, "fingerprint": fingerprint}
    if args.format == STABLE_AUDIO:
        return PairWriter(**common)
    return ShardWriter(**common, measured=measured_by(codec), shard_bytes=args.shard_mb * 1_000_000)


def _encode(writer: FolderWriter, out: Path, world: World, *, resume: bool) -> dict[str, Any]:
    """Write this process's share of a folder; return the report once all processes are done."""
    from soundomni.cli.console import note
    from soundomni.cli.folders import make_directory
    from soundomni.cli.progress import Progress
    from soundomni.core.interfaces import Skip
    from soundomni.data.encoded.dataset import EncodedClips

    def begin() -> list[int]:
        make_directory(out)
        writer.begin(resume=resume)
        return writer.missing()

    def told(clip: object) -> None:
        progress.advance()
        if isinstance(clip, Skip) and clip.kind != "unreadable":
            note(f"left out: {clip.key}: {clip.reason}")
            rejected[clip.key] = clip.reason
        elif isinstance(clip, Skip):
            skipped[clip.key] = clip.reason
            note(f"soundomni: error: {'' if clip.key in clip.reason else f'{clip.key}: '}{clip.reason}")

    def write() -> None:
        try:
            for number in mine:
                writer.write(number, told)
        except OSError as error:
            error.add_note("After fixing this, run the same command with --resume")
            raise

    missing = world.share(begin)
    mine = missing[world.rank :: world.size]
    skipped: dict[str, str] = {}
    rejected: dict[str, str] = {}
    with Progress(f"encoding {out}", total=sum(map(writer.num_clips, mine))) as progress:
        world.on_every(write)
    failures = {key: reason for found in world.gather(skipped) for key, reason in found.items()}
    left_out = {key for found in world.gather(rejected) for key in found}

    def report() -> dict[str, Any]:
        writer.finish()
        clips = EncodedClips(path=str(out))
        failures.update({skip.key: skip.reason for skip in clips.skipped if skip.kind == "unreadable"})
        left_out.update(skip.key for skip in clips.skipped if skip.kind != "unreadable")
        items = [clips.item(index) for index in range(len(clips))]
        return {
            "out": str(out),
            "clips": len(items),
            "seconds": sum(item.num_samples / item.sample_rate for item in items),
            "frames": sum(clips.num_frames(index) for index in range(len(items))),
            "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
            "rejected": len(left_out),
            "failures": [{"file": key, "error": reason} for key, reason in failures.items()],
        }

    return world.share(report)


def _lines(found: Mapping[str, dict[str, Any]], codec: str) -> Iterator[str]:
    """Yield a line about each dataset, and one for a spec that uses it."""
    from soundomni.cli.console import to_json

    for name, one in found.items():
        left_out = f"; {len(one['failures'])} could not be read" if one["failures"] else ""
        left_out += f"; filters left out {one['rejected']}" if one["rejected"] else ""
        size = f"{one['bytes'] / 1e6:,.1f} MB"
        yield f"{one['out']}: {one['clips']:,} clips ({one['seconds']:,.1f} s), {one['frames']:,} frames of {codec}, {size}{left_out}"
        yield f"  data.datasets.{name or 'NAME'}.source: {{class_path: encoded, init_args: {{path: {to_json(one['out'])}}}}}"


def _spec(args: argparse.Namespace, overrides: Overrides) -> Spec | None:
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.spec_with_start import load_spec_with_start

    if not args.config:
        return None
    spec = load_spec_with_start(args.config, overrides, trust_class_paths=args.trust_class_paths, start="directory")
    if spec.data is None and args.folder is None and args.dataset is None:
        raise SpecError("the spec has no data section. Add one, or give a FOLDER of audio or --dataset SLOT")
    return spec


def _mixture(args: argparse.Namespace, spec: Spec | None) -> Mixture | None:
    """Return the datasets of the spec, unless an option names the clips."""
    from soundomni.core.spec.registry import build
    from soundomni.data.mixture import Mixture

    if spec is None or spec.data is None or args.folder is not None or args.dataset is not None:
        return None
    return Mixture.open(spec.data, partial(build, trust_class_paths=args.trust_class_paths))


def _dataset(args: argparse.Namespace) -> Dataset:
    """Return the clips that FOLDER or --dataset names."""
    from typing import cast

    from soundomni.core.spec.load import parse_slot
    from soundomni.core.spec.registry import build
    from soundomni.core.spec.schema import Slot

    folder = Slot("audio-folder", {"path": args.folder, "captions": False})
    slot = folder if args.dataset is None else parse_slot("dataset", args.dataset)
    return cast("Dataset", build("dataset", slot, trust_class_paths=args.trust_class_paths))


def _codec(args: argparse.Namespace, spec: Spec | None, mixture: Mixture | None) -> tuple[Slot, Codec]:
    """Return the slot of the codec, and the codec. Raise SpecError unless it is fitted."""
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.directory import is_run
    from soundomni.core.spec.load import parse_slot
    from soundomni.train.codec_of_spec import built_codec, codec_of_spec

    trust = args.trust_class_paths
    folder = _folder_of(args.codec)
    found = None if folder is None else _codec_of_folder(folder, trust)
    if found is not None:
        slot, codec = found
    elif folder is not None and is_run(folder):
        raise SpecError(f"--codec is '{folder}', a run that trained a model. Give it as --model")
    elif args.codec is not None:
        slot = parse_slot("codec", args.codec)
        codec = built_codec(slot, trust_class_paths=trust)
    elif args.model is not None:
        slot, codec = _codec_of_model(args)
    else:
        assert spec is not None, "checked before"
        slot, codec = codec_of_spec(spec, mixture, of=args.of, trust_class_paths=trust)
    if not codec.is_fitted:
        raise SpecError(
            f"codec '{slot.class_path}' has not measured its data. Take the codec of a trained model with --model, or give --config "
            "SPEC, on whose data it is measured as in a run"
        )
    return slot, codec


def _folder_of(codec: str | None) -> Path | None:
    """Return what `--codec` may be as a directory: nothing that is YAML with keys, nor the name of a plugin, which `./name` is not."""
    from soundomni.cli.folders import expanded
    from soundomni.core.spec import registry

    if codec is None or any(letter in codec for letter in "{\n") or registry.is_registered("codec", codec):
        return None
    return Path(expanded(codec))


def _codec_of_model(args: argparse.Namespace) -> tuple[Slot, Codec]:
    """Return the codec of a model, a run or a codec directory."""
    from soundomni.cli.model_options import check_modality
    from soundomni.core.pretrained.directory import is_run
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.train.export import load_run

    folder, trust = Path(args.model), args.trust_class_paths
    found = _codec_of_folder(folder, trust)
    if found is not None:
        return found
    model = load_run(folder, trust_class_paths=trust)[0] if is_run(folder) else SoundOmni.from_pretrained(args.model)
    check_modality(model, args.of)
    modality = model.model.made(args.of)
    slot_of = model.spec.of_model.used[modality.name].codec
    assert slot_of is not None, "what is made has a codec"
    return slot_of, modality.codec


def _codec_of_folder(folder: Path, trust_class_paths: bool) -> tuple[Slot, Codec] | None:
    """Return the codec of a codec directory, or of a run that trained one; None for anything else."""
    from typing import cast

    from soundomni.core.pretrained.directory import is_run
    from soundomni.core.spec.registry import build
    from soundomni.train.export import load_run_codec
    from soundomni.vae.checkpoints.codec_directory import LAYER_FILE, read_layer

    if (folder / LAYER_FILE).is_file():
        slot = read_layer(folder)
        return slot, cast("Codec", build("codec", slot, trust_class_paths=trust_class_paths))
    return load_run_codec(folder, trust_class_paths=trust_class_paths) if is_run(folder) else None
