"""Load a run directory as a model that is ready for use, or write the adapters that the run trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.lora import add_adapters, merge_adapters
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.uninitialized import uninitialized
from soundomni.core.errors import CheckpointError, SpecError, amount
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.interfaces import Codec
from soundomni.core.pretrained.adapters import save_adapters
from soundomni.core.pretrained.declared_sizes import check_declared
from soundomni.core.pretrained.directory import Origin, without_codec_weights, without_weights
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.start import CHECKPOINTS, read_kept
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import convert
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.core.tokenizer import TextTokenizer
from soundomni.train.best import Best
from soundomni.train.checkpoint import find_latest, find_step, read_state, step_of
from soundomni.train.run_directory.files import read_run_id
from soundomni.train.run_directory.inventory import digest
from soundomni.train.state import load_trained_weights, trained_shapes


def load_run(
    run_dir: str | Path, *, average: bool = True, step: int | None = None, trust_class_paths: bool = False
) -> tuple[SoundOmni, int]:
    """Load a checkpoint of a run, with its adapters merged into the weights.

    Args:
        run_dir: the run directory, `train.run_dir`.
        average: take the averaged weights if the run kept them, otherwise the final ones.
        step: step of the checkpoint; None for the newest intact one.
        trust_class_paths: let the run's spec name classes by import path.

    Returns:
        The model and the step of its weights.

    Raises:
        CheckpointError: it is not a run directory of a model, or the checkpoint is missing or damaged.
    """
    omni, loaded = _load(Path(run_dir), average=average, step=step, trust_class_paths=trust_class_paths)
    merge_adapters(omni.model)
    return omni, loaded


def best_step(run_dir: str | Path) -> int:
    """Return the best step of a run so far by `train.validation.best`; its checkpoint is kept.

    Raises:
        CheckpointError: the run does not compare steps, or has not done so yet; or the checkpoint of the best one is missing or damaged.
    """
    path = Path(run_dir)
    latest = _find(path, None)
    try:
        best = convert(convert(read_state(latest).get("progress"), dict[str, Any], "progress").get("best", {}), Best, "progress.best")
    except SpecError as error:
        raise CheckpointError(f"the checkpoint '{latest}' does not say which step is the best: {error}. Export with --step N") from error
    if best.step is None:
        raise CheckpointError(
            f"the run '{path}' has no best checkpoint: it has not compared any steps up to step {step_of(latest)}. "
            "Set train.validation.best, or export without --best"
        )
    try:
        find_step(path / CHECKPOINTS, best.step, run=read_run_id(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"step {best.step} is the best of the run '{path}', but its checkpoint cannot be used: {error}. "
            "Export another step with --step N, or resume the run to compare steps again"
        ) from error
    return int(best.step)


def save_run_adapters(
    run_dir: str | Path, out: str | Path, *, average: bool = True, step: int | None = None, trust_class_paths: bool = False
) -> tuple[list[Path], int]:
    """Write the adapters of a run's checkpoint, one folder per stream (see `save_adapters`).

    Their base model is `model.start`.

    Args:
        run_dir, average, step, trust_class_paths: as for `load_run`.
        out: folder to write; it must be missing or empty.

    Returns:
        The folders and the step.

    Raises:
        CheckpointError: as for `load_run`; or the run did not train adapters, or trained other parameters too, or the
            adapters cannot be written.
    """
    omni, loaded = _load(Path(run_dir), average=average, step=step, trust_class_paths=trust_class_paths)
    if omni.spec.train is None or omni.spec.train.lora is None:
        raise CheckpointError(f"the run '{run_dir}' has no adapters: its spec has no train.lora. Export it as a model")
    others = [name for name, p in omni.model.named_parameters() if p.requires_grad and ".lora_" not in name]
    if others:
        raise CheckpointError(
            f"the run '{run_dir}' trained {amount(len(others), 'parameter')} besides its adapters, such as '{others[0]}'. "
            "Export it as a model, or name these parts in model.freeze before training"
        )
    return save_adapters(omni.model, out, base=omni.spec.of_model.start), loaded


def load_run_codec(
    run_dir: str | Path, *, step: int | None = None, average: bool = True, trust_class_paths: bool = False
) -> tuple[Slot, Codec] | None:
    """Return the codec that a run trains: its slot in the spec, and the codec with the weights of a checkpoint.

    Return None for a run that trains a model.

    Args:
        run_dir, step, average, trust_class_paths: as for `load_run`.

    Raises:
        CheckpointError: it is not a run directory, or the checkpoint is missing or damaged.
    """
    path = Path(run_dir)
    checkpoint = _find(path, step)
    spec = load_spec([path / SPEC_FILE], [], trust_class_paths=trust_class_paths, base={})
    if spec.codec is None:
        return None
    codec: Codec = build("codec", without_weights(spec.codec.codec), trust_class_paths=trust_class_paths)
    load_trained_weights(codec, checkpoint, average=average, prefix="codec.")
    return spec.codec.codec, codec


def _find(path: Path, step: int | None) -> Path:
    """Return the checkpoint of a step of a run; the newest intact one for None."""
    for name in (SPEC_FILE, TOKENIZER_FILE):
        if not (path / name).is_file():
            raise CheckpointError(f"'{path}' is not a run directory: it has no {name}. Make one with `soundomni train`")
    if step is not None:
        return find_step(path / CHECKPOINTS, step, run=read_run_id(path))
    checkpoint = find_latest(path / CHECKPOINTS, run=read_run_id(path))
    if checkpoint is None:
        raise CheckpointError(f"the run '{path}' has no checkpoint yet; it saves every train.save_every steps and at the end")
    return checkpoint


def _load(path: Path, *, average: bool, step: int | None, trust_class_paths: bool) -> tuple[SoundOmni, int]:
    checkpoint = _find(path, step)
    if read_state(checkpoint).get("tokenizer") != digest(path / TOKENIZER_FILE):
        raise CheckpointError(f"'{path / TOKENIZER_FILE}' is not the tokenizer that '{checkpoint}' was trained with")
    spec = load_spec([path / SPEC_FILE], [], trust_class_paths=trust_class_paths, base={})
    if spec.codec is not None:
        raise CheckpointError(f"the run '{path}' trained only a codec. Use its weights as model.codec.weights of another spec")
    tokenizer = TextTokenizer.load(path)
    own_codec = without_codec_weights(spec.of_model)  # the checkpoint holds its weights

    def build_whole() -> UnifiedModel:
        model = build_model(own_codec, vocab_size=tokenizer.vocab_size, trust_class_paths=trust_class_paths)
        if spec.train is not None and spec.train.lora is not None:
            add_adapters(model, spec.train.lora)
        return model

    check_declared(spec, build_whole, trained_shapes(checkpoint), checkpoint)
    with uninitialized():
        model = build_whole()
    load_trained_weights(model, checkpoint, average=average)
    kept = read_kept(path) if spec.of_model.start is not None else None
    origin = kept.origin if kept is not None else Origin()
    return SoundOmni(model, spec, tokenizer, origin=origin, trust_class_paths=trust_class_paths), step_of(checkpoint)
