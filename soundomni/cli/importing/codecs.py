"""What those kinds of `soundomni import` share that make codecs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from soundomni.cli.folders import expanded
from soundomni.cli.parsing import reads_no_spec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from soundomni.core.interfaces import Codec


class ImportedCodec(Protocol):
    """A codec that was read completely: what `weights` takes, and the report on it."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The codec's tensors."""

    def report(self) -> dict[str, Any]:
        """Return the contents of import-report.json."""


def add_options(parser: argparse.ArgumentParser, *, source: str, decodes: bool = True) -> None:
    """Add the options; `source` says what is imported, `decodes` whether the codec also decodes."""
    reads_no_spec(parser)
    parser.add_argument("source", metavar="SRC", help=source)
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    done = "encode and decode" if decodes else "encode"
    parser.add_argument("--check", type=expanded, metavar="FILE", help=f"audio file to {done} with the result, as a check")
    parser.add_argument("--license", metavar="NAME", help="license of the weights, for the card (default: unknown)")


def write(args: argparse.Namespace, make: Callable[[], ImportedCodec]) -> int:
    """Write what `make` imports, whole or not at all, and print what was used and what was not."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import new_directory
    from soundomni.core.files.names import REPORT_FILE
    from soundomni.core.pretrained.directory import replacing
    from soundomni.data.audio import read_audio
    from soundomni.vae.checkpoints.codec_directory import WEIGHTS_FILE, write_codec

    out = new_directory(args.out)
    clip = read_audio(args.check) if args.check else None
    imported = make()
    checked = None
    with replacing(out) as folder:
        report = write_codec(imported.report(), imported.state, folder, final=out, license=args.license)
        if clip is not None:  # with what was written, not with what was read
            checked = _check(_built(report, folder / WEIGHTS_FILE), *clip)
    keys = report["keys"]
    counts = {name: len(keys[name]) for name in ("used", "unused")}
    result = {name: report[name] for name in ("kind", "layout", "parameters", "codec", "notes")} | {"out": str(args.out), "keys": counts}
    if checked is not None:
        result["check"] = {"file": str(args.check), **checked[0]}
    lines = [f"{args.out}: {report['parameters']:,} parameters from the layout {report['layout']}", *report["notes"]]
    lines.append(f"used {counts['used']} tensors; {Path(args.out) / REPORT_FILE} explains the {counts['unused']} unused entries")
    if checked is not None:
        lines.append(f"{args.check}  {checked[1]}")
    emit(args, result, text="\n".join(lines))
    return 0


def _built(report: Mapping[str, Any], weights: Path) -> Codec:
    """Build the codec of a report with a file of its weights."""
    from typing import cast

    from soundomni.core.interfaces import Codec
    from soundomni.core.spec.registry import build
    from soundomni.core.spec.schema import Slot
    from soundomni.vae.weight_norm import fold_weight_norm

    given = report["codec"]
    codec = cast(Codec, build("codec", Slot(given["class_path"], {**given["init_args"], "weights": str(weights)})))
    fold_weight_norm(codec)
    return codec


def _check(codec: Codec, waveform: np.ndarray, sample_rate: int) -> tuple[dict[str, Any], str]:
    """Send `[C, S]` through a codec and back; return how close it comes, at the codec's rate and at the file's own, as
    data and as text. If the codec only encodes, count the codes."""
    from soundomni.core.inference.round_trip import encoded, round_trip
    from soundomni.core.waveform import Audio
    from soundomni.evaluation import compare, comparison_text

    clip = Audio(waveform, sample_rate)
    if not codec.decodes:
        codes = encoded(codec, clip).values
        counts = {"frames": codes.shape[-1], "different_codes": len(set(codes.flatten().tolist()))}
        return counts, f"{counts['frames']:,} frames, {counts['different_codes']:,} different codes"
    found = compare(clip, round_trip(codec, clip), keeps_waveform=codec.keeps_waveform)
    return found.to_json(), comparison_text(found)
