"""`soundomni doctor`: the GPU memory that training a spec needs, before anything is bought, downloaded or started."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from soundomni.cli.parsing import Overrides

if TYPE_CHECKING:
    from soundomni.core.spec.schema import Spec
    from soundomni.train.memory.diagnosis import Diagnosis, Footprint, Setting

HELP = "estimate the GPU memory that training a spec needs, and what would fit"
GIB = 1 << 30
ROWS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "ema": "EMA",
    "activations": "activations kept for the backward pass",
    "working": "working memory of a step",
    "gathered": "gathered by FSDP",
    "reserve": "reserve for CUDA and libraries",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="SPEC",
        help="YAML file or the name of a shipped spec; may be repeated, later ones override earlier ones",
    )
    parser.add_argument("--gpus", type=_count, default=1, metavar="N", help="number of GPUs, one process each (default: 1)")
    parser.add_argument("--gpu-memory", type=_amount, default=80.0, metavar="GIB", help="memory of each GPU in GiB (default: 80)")
    parser.add_argument(
        "--seconds", type=_seconds, metavar="S", help="length of the clips in a batch (default: max_seconds of the dataset, or 10)"
    )
    parser.add_argument("--text-tokens", type=_count, default=16, metavar="N", help="tokens per caption, question or answer (default: 16)")


def run(args: argparse.Namespace, overrides: Overrides) -> int:
    """Print the report; exit status 0 whether the spec fits or not."""
    import warnings

    from soundomni.cli.console import emit
    from soundomni.core.pretrained.spec_with_start import load_spec_with_start
    from soundomni.core.spec.load import resolve

    trust = args.trust_class_paths
    spec = resolve(load_spec_with_start(args.config, overrides, trust_class_paths=trust, start="if-here"), trust_class_paths=trust)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kernels warn when they run on tensors without memory
        found = _diagnose(args, spec)
    emit(args, _as_data(found), text=_as_text(found))
    return 0


def _diagnose(args: argparse.Namespace, spec: Spec) -> Diagnosis:
    from soundomni.train.memory.codec_diagnosis import diagnose_codec
    from soundomni.train.memory.diagnosis import diagnose

    sizes = {"gpus": args.gpus, "gpu_memory": int(args.gpu_memory * GIB)}
    trust, seconds = args.trust_class_paths, args.seconds
    if spec.codec is not None and spec.data is not None and spec.train is not None:
        return diagnose_codec(spec, spec.codec, **sizes, seconds=seconds, trust_class_paths=trust)
    return diagnose(spec, **sizes, seconds=seconds, text_tokens=args.text_tokens, trust_class_paths=trust)


def _as_data(found: Diagnosis) -> dict[str, Any]:
    parameters = {part.name: {"all": part.parameters, "trained": part.trained} for part in found.parts}
    change = None
    if found.change is not None and found.changed is not None:
        change = {**_setting(found.change), "bytes_per_gpu": _sizes(found.changed)}
    return {
        **_setting(found.setting),
        "gpu_memory": found.gpu_memory,
        "parameters": parameters,
        "bytes_per_gpu": _sizes(found.footprint),
        "complete": found.complete,
        "fits": found.fits,
        "free": found.gpu_memory - found.footprint.total,
        "change": change,
        "notes": list(found.notes),
    }


def _setting(setting: Setting) -> dict[str, Any]:
    return {"gpus": setting.gpus, "activation_checkpointing": setting.recompute, "tokens_per_batch": setting.tokens}


def _sizes(footprint: Footprint) -> dict[str, int | None]:
    return {name: getattr(footprint, name) for name in ROWS} | {"total": footprint.total}


def _as_text(found: Diagnosis) -> str:
    from soundomni.cli.console import table

    count, trained = sum(part.parameters for part in found.parts), sum(part.trained for part in found.parts)
    parts = [[part.name, f"{part.parameters:,}", _share(part.trained, part.parameters)] for part in found.parts]
    parts.append(["all", f"{count:,}", _share(trained, count)])
    sizes = [[label, _gib(getattr(found.footprint, name))] for name, label in ROWS.items()]
    sizes.append(["all", _gib(found.footprint.total)])
    notes = "\n".join(f"- {note}" for note in found.notes)
    return "\n\n".join(
        [
            table(["parameters", "count", "trained"], parts),
            table([f"on each of {_gpus(found.setting.gpus)}", "GiB"], sizes),
            _verdict(found),
            f"assumed:\n{notes}",
        ]
    )


def _verdict(found: Diagnosis) -> str:
    free, gib = found.gpu_memory - found.footprint.total, _gib(found.gpu_memory)
    if found.fits:
        known = "fits" if found.complete else "the known part fits"
        return f"{known}: {_gib(free)} of {gib} GiB remain free"
    lines = [f"does not fit: needs {_gib(-free)} GiB more than the {gib} GiB of a GPU"]
    if found.change is None or found.changed is None:
        gpus = "more GPUs that share train.batches_per_step evenly"
        return f"{lines[0]}; {gpus}, activation checkpointing and smaller batches are not enough"
    changes = []
    if found.change.recompute != found.setting.recompute:
        changes.append("train.activation_checkpointing=true")
    if found.change.gpus != found.setting.gpus:
        changes.append(_gpus(found.change.gpus))
    if found.change.tokens != found.setting.tokens:
        changes.append(f"data.tokens_per_batch={found.change.tokens}")
    return f"{lines[0]}\nit fits with {' and '.join(changes)}: {_gib(found.changed.total)} GiB per GPU"


def _share(part: int, whole: int) -> str:
    return "-" if part == 0 else f"{100 * part / whole:.1f} %"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.2f}"


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"'{text}'; expected a whole number from 1 to 1,000,000")
    return int(text)


def _seconds(text: str) -> float:
    from soundomni.core.limits import LONGEST_SECONDS

    return _amount(text, most=LONGEST_SECONDS)


def _amount(text: str, *, most: float = 1e9) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"'{text}'; expected a number above 0 and at most {most:,.0f}")
    return value
