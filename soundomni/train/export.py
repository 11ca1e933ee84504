"""From a run directory to a model ready for use."""

from __future__ import annotations

from pathlib import Path

from soundomni.core.assembly import build_model
from soundomni.core.errors import CheckpointError
from soundomni.core.hub import SPEC_FILE, SoundOmni
from soundomni.core.spec import load_spec
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.uninitialised import uninitialised
from soundomni.train.checkpoint import find_latest, step_of
from soundomni.train.state import load_trained_weights

CHECKPOINTS = "checkpoints"


def load_run(run_dir: str | Path, *, average: bool = True, trust_class_paths: bool = False) -> tuple[SoundOmni, int]:
    """Loads the newest intact checkpoint of a run.

    Args:
        run_dir: what `train.run_dir` was.
        average: take the averaged weights where the run kept them, else the last ones.
        trust_class_paths: let the run's spec name classes by import path.

    Returns:
        The model and the step of its weights.

    Raises:
        CheckpointError: it is no run directory of a model, or has no intact checkpoint.
    """
    path = Path(run_dir)
    for name in (SPEC_FILE, TOKENIZER_FILE):
        if not (path / name).is_file():
            raise CheckpointError(f"'{path}' is not a run directory: it has no {name}; `soundomni train` makes one")
    checkpoint = find_latest(path / CHECKPOINTS)
    if checkpoint is None:
        raise CheckpointError(f"the run '{path}' has no checkpoint yet; it saves every train.save_every steps and at its end")
    spec = load_spec([path / SPEC_FILE], [], trust_class_paths=trust_class_paths)
    if spec.train is not None and spec.train.target == "codec":
        raise CheckpointError(f"the run '{path}' trained a codec alone; give its weights to model.codec.weights of another spec")
    tokenizer = TextTokenizer.load(path)
    with uninitialised():
        model = build_model(spec.model, vocab_size=tokenizer.vocab_size, trust_class_paths=trust_class_paths)
    load_trained_weights(model, checkpoint, average=average)
    return SoundOmni(model, spec, tokenizer, trust_class_paths=trust_class_paths), step_of(checkpoint)
