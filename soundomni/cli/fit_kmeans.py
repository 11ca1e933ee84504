"""`soundomni fit-kmeans`: centroids of a layer of a speech network, on a dataset; with plain python or torchrun."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from soundomni.cli.folders import expanded
from soundomni.cli.importing.hubert_kmeans import SOURCE

if TYPE_CHECKING:
    from torch import Tensor

    from soundomni.cli.parsing import Overrides
    from soundomni.core.interfaces import Dataset
    from soundomni.train.parallel import World
    from soundomni.vae.checkpoints.hubert_import import SpeechSource
    from soundomni.vae.hubert_kmeans import HubertKmeansCodec

HELP = "fit the centroids of semantic tokens on a dataset"
DEFAULT_FRAMES, DEFAULT_SECONDS = 200_000, 30.0

Clips: TypeAlias = "Sequence[tuple[Dataset, int]]"
"""Dataset and index of each clip."""
Frames: TypeAlias = "dict[int, Tensor]"
"""Number of a clip → its frames `[N, D]`."""
Failure = dict[str, str]
"""Name of a clip that was left out, and why."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("source", type=expanded, metavar="SRC", help=f"network: {SOURCE}")
    parser.add_argument("--layer", type=int, required=True, metavar="N", help="layer of the network to cluster, from 1")
    parser.add_argument("--clusters", type=int, required=True, metavar="M", help="number of centroids, and so of codes")
    parser.add_argument("--out", type=expanded, required=True, metavar="FILE", help="file to write, NAME.safetensors")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=expanded, metavar="FOLDER", help="folder of audio files to fit on")
    what = "dataset to fit on: a name, or YAML with class_path and init_args"
    data.add_argument("--dataset", metavar="SLOT", help=what)
    data.add_argument(
        "--config",
        action="append",
        metavar="SPEC",
        help="spec whose data section to fit on, without what it holds out; may be repeated, later ones override earlier ones",
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=DEFAULT_FRAMES,
        metavar="N",
        help=f"take clips in random order until they have about N frames (default: {DEFAULT_FRAMES:,})",
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=DEFAULT_SECONDS,
        metavar="S",
        help=f"only use the first S seconds of a longer clip (default: {DEFAULT_SECONDS:g})",
    )
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="most iterations (default: 50)")
    what = "seed of the choice of clips, and of the first centroids (default: 0)"
    parser.add_argument("--seed", type=int, default=0, help=what)


def run(args: argparse.Namespace, overrides: Overrides) -> int:
    """Write the centroids and print how well they fit; exit status 1 if some clips could not be read."""
    from soundomni.cli.console import emit
    from soundomni.core.spec.schema import ParallelSpec
    from soundomni.train.parallel import open_world
    from soundomni.vae.checkpoints.hubert_import import read_speech_source

    out = _check(args, overrides)
    clips = _clips(args, overrides)
    source = read_speech_source(args.source, args.layer)
    with open_world(ParallelSpec()) as world:
        unlisted = _unlisted(clips, world)
        result = _fit(source, clips, out, args, world)
    result["failures"] = unlisted + result["failures"]
    if world.is_main:
        data = f"{result['frames']:,} frames of {result['clips']:,} clips"
        told = f"{args.clusters:,} centroids of layer {args.layer}, from {data}"
        ended = f"inertia {result['inertia'][-1]:.6g} after {len(result['inertia']) - 1} iterations"
        emit(args, result, text=f"{args.out}: {told}; {ended}")
    return 1 if result["failures"] else 0


def _check(args: argparse.Namespace, overrides: Overrides) -> Path:
    """Return the file to write. Raise SpecError for a number out of range, CheckpointError if it exists."""
    from soundomni.cli.folders import make_directory, user_path
    from soundomni.core.errors import CheckpointError, SpecError
    from soundomni.core.limits import MOST_VOCABULARY, check_count, check_seconds, check_seed

    check_count("--layer", args.layer)
    check_count("--clusters", args.clusters, most=MOST_VOCABULARY)
    check_count("--iterations", args.iterations)
    check_seconds(args.max_seconds, name="--max-seconds")
    check_seed(args.seed)
    if args.frames < args.clusters:
        raise SpecError(f"--frames is {args.frames}; expected at least --clusters, which is {args.clusters}")
    if overrides and args.config is None:
        raise SpecError(f"--{overrides[0][0]} is a key of a spec, but no spec is given. Add --config")
    out = user_path(args.out)
    if out.suffix != ".safetensors":
        raise SpecError(f"--out is '{args.out}'; expected a file name that ends in .safetensors")
    if out.exists():
        raise CheckpointError(f"'{args.out}' already exists; give --out a new file")
    make_directory(out.parent)
    return out


def _clips(args: argparse.Namespace, overrides: Overrides) -> Clips:
    """Return the clips of the folder, the dataset, or the data section of a spec that is trained on."""
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.spec_with_start import load_spec_with_start
    from soundomni.core.spec.load import parse_slot
    from soundomni.core.spec.registry import build
    from soundomni.core.spec.schema import DataSpec, Slot
    from soundomni.data.mixture import Mixture, open_dataset

    make = partial(build, trust_class_paths=args.trust_class_paths)
    if args.config is not None:
        spec = load_spec_with_start(args.config, overrides, trust_class_paths=args.trust_class_paths, start="if-here")
        if spec.data is None:
            raise SpecError("the spec has no section data, which names the datasets. Add it, or give --data FOLDER")
        mixture = Mixture.open(spec.data, make)
        return [(source.dataset, int(i)) for name, source in mixture.sources.items() for i in mixture.indices(name)]
    folder = Slot("audio-folder", {"path": args.data, "captions": False})
    slot = folder if args.dataset is None else parse_slot("dataset", args.dataset)
    dataset = open_dataset(slot, make, skip_limit=DataSpec(datasets={}).skip_limit)
    return [(dataset, i) for i in range(len(dataset))]


def _unlisted(clips: Clips, world: World) -> list[Failure]:
    """Return the files that the datasets could not read when they listed them, and name them on stderr."""
    from soundomni.cli.console import note

    datasets = {id(dataset): dataset for dataset, _ in clips}.values()
    skips = [skip for dataset in datasets for skip in dataset.skipped if skip.kind == "unreadable"]
    for skip in skips if world.is_main else ():
        note(f"left out: {skip.key}: {skip.reason}")
    return [{"clip": skip.key, "error": skip.reason} for skip in skips]


def _fit(source: SpeechSource, clips: Clips, out: Path, args: argparse.Namespace, world: World) -> dict[str, Any]:
    """Write the centroids, and return the report; on every rank."""
    from soundomni.cli.console import note
    from soundomni.vae.checkpoints.hubert_import import write_centroids
    from soundomni.vae.kmeans import fit_kmeans

    codec = source.codec().to(world.device)
    used = _choose(clips, codec, args)
    features, failures = world.on_every(lambda: _features(codec, used, args.max_seconds, world))

    def tell(iteration: int, inertia: float) -> None:
        if world.is_main:
            note(f"iteration {iteration}: inertia {inertia:.6g}")

    found = fit_kmeans(
        features,
        num_clips=len(used),
        dim=source.network.hidden_dim,
        num_clusters=args.clusters,
        seed=args.seed,
        ranks=world,
        device=world.device,
        iterations=args.iterations,
        on_iteration=tell,
    )
    world.on_main(lambda: write_centroids(found.centroids, source.layer, out))
    failed = [failure for own in world.gather(failures) for failure in own]
    frames = sum(world.gather(sum(map(len, features.values()))))
    counts = {"clusters": args.clusters, "clips": len(used) - len(failed), "frames": frames}
    return {"out": str(args.out), "layer": source.layer, **counts, "inertia": list(found.inertia), "failures": failed}


def _choose(clips: Clips, codec: HubertKmeansCodec, args: argparse.Namespace) -> Clips:
    """Return clips in random order until they have about as many frames as asked for; the same ones on every rank."""
    import numpy as np

    chosen, frames = [], 0
    for place in np.random.default_rng(args.seed).permutation(len(clips)).tolist():
        dataset, index = clips[place]
        item = dataset.item(index)
        seconds = min(item.num_samples / item.sample_rate, args.max_seconds)
        chosen.append(clips[place])
        frames += codec.spec.num_frames(round(seconds * codec.spec.sample_rate))
        if frames >= args.frames:
            break
    return chosen


def _features(codec: HubertKmeansCodec, clips: Clips, seconds: float, world: World) -> tuple[Frames, list[Failure]]:
    """Return the frames of this rank's share of the clips by number, `[N, D]` each, and what could not be read.

    Raise DataError if a plugin's dataset does.
    """
    import torch

    from soundomni.cli.console import note
    from soundomni.cli.progress import tracked
    from soundomni.core.errors import RejectedAudioError, UnreadableAudioError
    from soundomni.core.waveform import match_channels, resample

    features, failures = {}, []
    own = range(world.rank, len(clips), world.size)
    with torch.no_grad():
        for number in tracked(own, "computing frames", total=len(own)):
            dataset, index = clips[number]
            item = dataset.item(index)
            try:
                count = min(item.num_samples, max(1, round(seconds * item.sample_rate)))
                waveform, rate = dataset.load_part(index, first=0, num_samples=count)
            except RejectedAudioError as error:
                note(f"left out: {item.key}: {error}")
                continue
            except UnreadableAudioError as error:
                failures.append({"clip": item.key, "error": str(error)})
                note(f"left out: {item.key}: {error}")
                continue
            clip = torch.from_numpy(resample(match_channels(waveform, 1), rate, codec.spec.sample_rate))
            if clip.shape[-1]:
                features[number] = codec.features(clip[None].to(world.device))
    return features, failures
