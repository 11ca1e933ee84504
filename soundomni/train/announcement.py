"""What a run reports about its data, its latents and its machine before the first step."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from soundomni.core.assembly.modality import MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.representation import Representation, length_mask
from soundomni.core.sequence import Clips
from soundomni.core.spec.schema import DataSpec, ModelSpec
from soundomni.core.spec.shorthand import written_key
from soundomni.data.clip_usage import describe_clips
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.rates import describe_rates
from soundomni.data.samples import SampleWriter
from soundomni.data.usage import survey
from soundomni.train.cores import busy_warning, free_cores
from soundomni.train.latent_fitting import is_used
from soundomni.train.terminal import tell

SPREAD_CLIPS, SPREAD_SECONDS, SPREAD_BATCHES = 8, 5.0, (1, 2, 4, 8)
"""Number of clips, and seconds of each, for measuring the spread of latents; and number of packed batches to look for
them."""
LEAST_SPREAD, MOST_SPREAD = 0.5, 2.0
"""Range of the latents' standard deviation that matches noise of 1 well enough."""


def announce(mixture: Mixture, writer: SampleWriter, spec: DataSpec, *, codec_rate: int) -> set[str]:
    """Report on stderr which clips are used, how the codec changes their rates, how they are prepared, which captions
    are rare, and whether processor cores are short.

    Return the groups of left-out clips that were named.

    Args:
        mixture, writer, spec: those of the run.
        codec_rate: sample rate of the codec, in Hz.
    """
    told: set[str] = set()
    for usage in survey(mixture, writer, spec):
        told |= usage.examples.keys()
        for line in usage.describe():
            tell(line)
        if len(mixture.indices(usage.name)):
            tell(describe_rates(mixture, usage.name, codec_rate=codec_rate))
            for line in describe_clips(mixture, usage.name):
                tell(line)
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    warning = busy_warning(torch.get_num_threads(), processes=local_processes, free=free_cores())
    if warning is not None:
        tell(f"warning: {warning}")
    return told


def announce_latents(model: UnifiedModel, spec: ModelSpec, mixture: Mixture, loader: PackedLoader) -> None:
    """Warn on stderr about latents that are mixed with noise of standard deviation 1, but have a different one
    themselves.

    Timesteps then mean other shares of noise than intended, and sounds come out too loud, too quiet or as noise.

    Args:
        model: the model, with fitted codecs and normalization.
        spec: its spec.
        mixture, loader: the run's.
    """
    for modality in model.all_made:
        if modality.objective.predicts != "velocity" or not is_used(modality, model, mixture):
            continue
        spread = _spread(modality, loader)
        if spread is None or LEAST_SPREAD <= spread <= MOST_SPREAD:
            continue
        key = written_key(f"model.modalities.{modality.name}.normalize", spec)
        if spec.used[modality.name].normalize == "none":
            cure = f"Set {key} to global, which divides all latents by one number, or to channel"
        else:
            cure = "They were normalized for other data or another codec. Use data like the starting model's, or change " + key
        told = f"the latents of '{modality.name}' have a standard deviation of {spread:.3g}; expected about 1, like the noise"
        tell(f"warning: {told}. {cure}")


@torch.no_grad()
def _spread(modality: MadeModality, loader: PackedLoader) -> float | None:
    """Return the standard deviation of the normalized latents of a run's first clips; None if its first batches have
    none."""
    found: list[Clips] = []
    for count in SPREAD_BATCHES:
        found = [clips for batch in loader.preview_batches(count) if len(clips := batch.of(modality.name))]
        if sum(map(len, found)) >= SPREAD_CLIPS:
            break
    values = torch.cat([torch.zeros(0, dtype=torch.float64), *(_values(modality, clips) for clips in found)])
    return float(values.std(correction=0)) if len(values) else None


def _values(modality: MadeModality, clips: Clips) -> Tensor:
    """Return the normalized latents of the beginnings of the first clips, flat and in float64."""
    samples, spec = round(SPREAD_SECONDS * modality.sample_rate), modality.codec.spec
    clips = clips.to(modality.device)
    rows = [i for i in range(len(clips)) if clips.values is None or clips.encoded[i]][:SPREAD_CLIPS]
    lengths = clips.lengths[rows].clamp_max(samples)
    if clips.values is None:
        latents = modality.encode(clips.waveform[rows, :, :samples], lengths)
    else:
        own = clips.values[rows, :, : spec.num_frames(samples)]
        latents = modality.normalizer.normalize(Representation(own, spec.frame_lengths(lengths), spec))
    valid = length_mask(latents.lengths.to(modality.device), latents.values.shape[-1])
    return latents.values.transpose(1, 2)[valid].flatten().cpu().double()
