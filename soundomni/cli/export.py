"""`soundomni export`: write weights as a model directory, or in the layout of another project."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.parsing import reads_no_spec

if TYPE_CHECKING:
    from torch import nn

    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.spec.schema import Slot

HELP = "write a run or model as a model directory, or in the layout of another project"

DTYPES = ("float32", "float16", "bfloat16")
MODEL, ORIGINAL, ADAPTER = "model", "soundomni", "peft-adapter"
STABLE_AUDIO, THIRD, DIFFUSERS = "stable-audio-tools", "stable-audio-3", "diffusers"
SAME = ("same", "diffusers-same")
CODECS = ("stable-audio-vae", "diffusers-oobleck", *SAME)
FORMATS = (MODEL, ORIGINAL, STABLE_AUDIO, THIRD, DIFFUSERS, ADAPTER, *CODECS)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    reads_no_spec(parser)
    parser.add_argument(
        "source",
        metavar="RUN",
        help="run directory, model directory or model name; for a codec, also a codec directory",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new directory to write, or an existing model directory to replace",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=MODEL,
        help="model: a model directory (default); soundomni: the layout of the original research code; "
        "stable-audio-tools: its checkpoint and config, for a diffusion transformer; stable-audio-3: the same "
        "for Stable Audio 3; diffusers: a pipeline for Stable Audio Open or Stable Audio 3; peft-adapter: only the adapters of "
        "a run, one folder per expert stream; stable-audio-vae, diffusers-oobleck, same or diffusers-same: "
        "only the codec",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="data type of a model's weights (default: float32)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also push the model directory to this Hugging Face Hub repository")
    parser.add_argument("--private", action="store_true", help="with --push, make a new repository private")
    parser.add_argument("--last", action="store_true", help="export the final weights of a run instead of their average over steps")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="export the checkpoint of step N of a run instead of the newest one")
    which.add_argument("--best", action="store_true", help="export the best checkpoint of a run, by train.validation.best")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Export a checkpoint of a run, by default the newest intact one, or a model."""
    from soundomni.cli.console import emit

    _check_options(args)
    told = _codec(args) if args.format in CODECS else _adapters(args) if args.format == ADAPTER else _model(args)
    pushed = _push(args)
    text = "\n".join([_text(args, told), *pushed.values()])
    emit(args, {"run": str(args.source), "format": args.format, "out": str(args.out)} | told | pushed, text=text)
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not apply here."""
    from soundomni.cli.parsing import UsageError
    from soundomni.core.pretrained.hub import check_pushable

    if args.last and not _is_run(Path(args.source)):
        raise UsageError(f"--last only applies to run directories; '{args.source}' is not one. Leave it out")
    for name, given in (("--step", args.step is not None), ("--best", args.best)):
        if given and not _is_run(Path(args.source)):
            raise UsageError(f"{name} only applies to run directories; '{args.source}' is not one. Leave it out")
    if args.push is None:
        if args.private:
            raise UsageError("--private only applies to --push. Give --push OWNER/NAME")
        return
    if args.format != MODEL:
        raise UsageError(f"--push only applies to --format model, not to --format {args.format}. Leave out one of them")
    check_pushable(args.push)


def _push(args: argparse.Namespace) -> dict[str, str]:
    """Push what was written, if requested, and return the address of the commit."""
    from soundomni.core.pretrained.hub import push

    return {} if args.push is None else {"pushed": push(Path(args.out), args.push, private=args.private)}


def _text(args: argparse.Namespace, told: dict[str, Any]) -> str:
    what = "the codec" if args.format in CODECS else "the adapters" if args.format == ADAPTER else "the weights"
    step = f" of step {told['step']}" if "step" in told else f" of {args.source}"
    layout = "" if args.format == MODEL else f", in the layout {args.format}"
    return "\n".join([f"{args.out}: {what}{step}{layout}", *told.get("notes", ())])


def _model(args: argparse.Namespace) -> dict[str, Any]:
    """Write a model; return the step of its weights, if it comes from a run, and what the other project does
    differently."""
    import torch

    from soundomni.cli.folders import new_directory
    from soundomni.core.pretrained.directory import check_target, replacing

    dtype = getattr(torch, args.dtype)
    if args.format == MODEL:
        check_target(args.out)
        model, told = _load(args)
        model.save_pretrained(args.out, dtype=dtype)
        return told
    from soundomni.experts.checkpoints.original_export import export_soundomni

    out = new_directory(args.out)
    model, told = _load(args)
    with replacing(out) as folder:
        if args.format == ORIGINAL:
            export_soundomni(model, folder, dtype=dtype)
            return told
        return told | {"notes": list(_stable_audio(model, folder, args.format, dtype))}


def _stable_audio(model: SoundOmni, folder: Path, layout: str, dtype: Any) -> tuple[str, ...]:
    """Write a model in the layout of another project, and return a sentence for each thing that it does otherwise."""
    from soundomni.core.errors import SpecError
    from soundomni.core.spec.registry import validate_init_args
    from soundomni.experts.checkpoints.stable_audio_3_diffusers_export import export_third_pipeline
    from soundomni.experts.checkpoints.stable_audio_3_export import export_third
    from soundomni.experts.checkpoints.stable_audio_diffusers_export import export_pipeline
    from soundomni.experts.checkpoints.stable_audio_export import export_stable_audio
    from soundomni.vae.checkpoints.same_export import diffusers_same_codec, same_codec
    from soundomni.vae.checkpoints.stable_audio_export import diffusers_codec, stable_audio_codec
    from soundomni.vae.oobleck import OobleckCodec
    from soundomni.vae.same import SameCodec

    names: dict[type, str] = {OobleckCodec: "oobleck", SameCodec: "same"}
    ways: dict[str, dict[type, tuple[Any, Any]]] = {
        STABLE_AUDIO: {OobleckCodec: (stable_audio_codec, export_stable_audio)},
        DIFFUSERS: {OobleckCodec: (diffusers_codec, export_pipeline), SameCodec: (diffusers_same_codec, export_third_pipeline)},
        THIRD: {SameCodec: (same_codec, export_third)},
    }
    codec, known = model.model.made().codec, ways[layout]
    kind = next((kind for kind in known if isinstance(codec, kind)), None)
    if kind is None:
        told = f"the codec is {type(codec).__name__}, but {layout} only has {' and '.join(names[one] for one in known)}"
        raise SpecError(f"{told}, so this model cannot be exported to it")
    write_codec, export = known[kind]
    tensors, config = write_codec(codec, validate_init_args("codec", model.spec.of_model.codec))
    notes: tuple[str, ...] = export(model, folder, codec=tensors, codec_config=config, dtype=dtype)
    return notes


def _adapters(args: argparse.Namespace) -> dict[str, int]:
    """Write the adapters of a run and return their step."""
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.adapters import check_free
    from soundomni.train.export import save_run_adapters

    if args.dtype != DTYPES[0]:
        raise SpecError(f"--dtype {args.dtype} only applies to models; adapters are always written as {DTYPES[0]}. Leave it out")
    check_free(args.out)
    _, step = save_run_adapters(args.source, args.out, average=not args.last, step=_step(args), trust_class_paths=args.trust_class_paths)
    return {"step": step}


def _codec(args: argparse.Namespace) -> dict[str, int]:
    """Write a codec and return the step of its weights, if it comes from a run."""
    from soundomni.cli.folders import new_directory
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.directory import replacing
    from soundomni.core.spec.registry import validate_init_args
    from soundomni.vae.checkpoints.same_export import export_same
    from soundomni.vae.checkpoints.stable_audio_export import export_codec

    if args.dtype != DTYPES[0]:
        raise SpecError(f"--dtype {args.dtype} only applies to models; codecs are always written as {DTYPES[0]}. Leave it out")
    out = new_directory(args.out)
    slot, codec, told = _find_codec(args)
    export = export_same if args.format in SAME else export_codec
    with replacing(out) as folder:
        export(codec, validate_init_args("codec", slot, trust_class_paths=args.trust_class_paths), folder, args.format)
    return told


def _find_codec(args: argparse.Namespace) -> tuple[Slot, nn.Module, dict[str, int]]:
    """Return the slot of a codec, the codec, and the step of its weights if it comes from a run."""
    from soundomni.core.files.names import SPEC_FILE
    from soundomni.core.spec.load import load_spec
    from soundomni.train.export import load_run_codec
    from soundomni.train.run_directory.files import CODEC_FILE
    from soundomni.vae.checkpoints.codec_directory import LAYER_FILE, read_layer

    folder, trust = Path(args.source), args.trust_class_paths
    if (folder / LAYER_FILE).is_file():
        return *_built(read_layer(folder), {}, trust_class_paths=trust), {}
    step = _step(args)
    if step is not None and (found := load_run_codec(folder, step=step, average=not args.last, trust_class_paths=trust)) is not None:
        return *found, {"step": step}
    if (folder / CODEC_FILE).is_file():
        spec = load_spec([folder / SPEC_FILE], trust_class_paths=trust, base={})
        codec_slot = spec.codec.codec if spec.codec is not None else spec.of_model.codec
        return *_built(codec_slot, {"weights": str(folder / CODEC_FILE)}, trust_class_paths=trust), {}
    model, told = _load(args)
    return model.spec.of_model.codec, model.model.made().codec, told


def _built(slot: Slot, init_args: dict[str, str], *, trust_class_paths: bool) -> tuple[Slot, nn.Module]:
    """Build a codec with additional arguments."""
    from dataclasses import replace
    from typing import cast

    from soundomni.core.spec.registry import build

    slot = replace(slot, init_args={**slot.init_args, **init_args})
    return slot, cast("nn.Module", build("codec", slot, trust_class_paths=trust_class_paths))


def _is_run(folder: Path) -> bool:
    from soundomni.core.pretrained.directory import is_run

    return is_run(folder)


def _load(args: argparse.Namespace) -> tuple[SoundOmni, dict[str, int]]:
    """Load a model, or a checkpoint of a run."""
    from soundomni.core.files.names import SPEC_FILE
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.train.export import load_run

    folder = Path(args.source)
    if not folder.is_dir() or ((folder / SPEC_FILE).is_file() and not _is_run(folder)):
        return SoundOmni.from_pretrained(args.source), {}
    model, step = load_run(folder, average=not args.last, step=_step(args), trust_class_paths=args.trust_class_paths)
    return model, {"step": step}


def _step(args: argparse.Namespace) -> int | None:
    """Return the step of the requested checkpoint; None for the newest one."""
    from soundomni.train.export import best_step

    return best_step(args.source) if args.best else args.step
