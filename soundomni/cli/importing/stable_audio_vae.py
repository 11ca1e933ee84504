"""`soundomni import stable-audio-vae`: a Stable Audio autoencoder as a codec."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from soundomni.cli.folders import expanded
from soundomni.cli.parsing import reads_no_spec

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.interfaces import Codec
    from soundomni.evaluation import Comparison

HELP = "import Stable Audio's autoencoder, from stable-audio-tools or diffusers, as the codec oobleck"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    reads_no_spec(parser)
    parser.add_argument("source", metavar="SRC", help="checkpoint (safetensors, ckpt, pt, pth, bin), index of shards, or directory")
    parser.add_argument(
        "--config", metavar="JSON", help="config of the checkpoint (default: the one next to it, or the sizes of the tensors)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--check", type=expanded, metavar="FILE", help="audio file to encode and decode with the result, as a check")
    parser.add_argument("--license", metavar="NAME", help="license of the weights, for the card (default: unknown)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Write the directory, whole or not at all, and print what was used and what was not."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import new_directory
    from soundomni.core.files.names import REPORT_FILE
    from soundomni.core.pretrained.directory import replacing
    from soundomni.data.audio import read_audio
    from soundomni.evaluation import comparison_text
    from soundomni.vae.checkpoints.stable_audio import WEIGHTS_FILE, import_stable_audio_vae, write_codec
    from soundomni.vae.oobleck import OobleckCodec

    out = new_directory(args.out)
    clip = read_audio(args.check) if args.check else None
    imported = import_stable_audio_vae(args.source, config=args.config)
    measured = None
    with replacing(out) as folder:
        report = write_codec(imported, folder, final=out, license=args.license)
        if clip is not None:  # with what was written, not with what was read
            measured = _measure(OobleckCodec(**imported.config.init_args, weights=str(folder / WEIGHTS_FILE)), *clip)
    keys = report["keys"]
    counts = {name: len(keys[name]) for name in ("used", "unused")}
    result = {name: report[name] for name in ("kind", "layout", "parameters", "codec", "notes")} | {"out": str(args.out), "keys": counts}
    if measured is not None:
        result["check"] = {"file": str(args.check), **measured.to_json()}
    lines = [f"{args.out}: {report['parameters']:,} parameters from the layout {report['layout']}", *report["notes"]]
    lines.append(f"used {counts['used']} tensors; {Path(args.out) / REPORT_FILE} explains the {counts['unused']} unused entries")
    if measured is not None:
        lines.append(f"{args.check}  {comparison_text(measured)}")
    emit(args, result, text="\n".join(lines))
    return 0


def _measure(codec: Codec, waveform: np.ndarray, sample_rate: int) -> Comparison:
    """Send `[C, S]` through a codec and back; return how close it comes, at the codec's rate and at the file's own."""
    import torch

    from soundomni.core.assembly.chunked import chunk_frames_of, decode_in_chunks, encode_in_chunks
    from soundomni.core.waveform import Audio, fit_length, match_channels, resample
    from soundomni.evaluation import compare
    from soundomni.vae.weight_norm import fold_weight_norm

    fold_weight_norm(codec)
    reference = resample(match_channels(waveform, codec.spec.channels), sample_rate, codec.spec.sample_rate)
    frames = chunk_frames_of(codec.spec)
    with torch.no_grad():
        latents = encode_in_chunks(codec, torch.from_numpy(reference)[None], torch.tensor([reference.shape[1]]), chunk_frames=frames)
        estimate = fit_length(decode_in_chunks(codec, latents, chunk_frames=frames)[0].numpy(), reference.shape[1])
    return compare(Audio(waveform, sample_rate), Audio(estimate, codec.spec.sample_rate))
