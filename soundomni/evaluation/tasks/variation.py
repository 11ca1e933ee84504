"""The task "vary": how far variants of a clip go from it, and whether they become what the prompt asks for.

Clips are toy sounds, in which signal analysis finds the attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soundomni.evaluation.observer import Observer
from soundomni.evaluation.prompts import prompt_of
from soundomni.evaluation.score import Score, Scores
from soundomni.evaluation.tasks.comparable import comparable
from soundomni.evaluation.toy_attributes import attribute_scores, heard_attributes

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio
    from soundomni.evaluation.settings import Settings

STRENGTHS = (0.2, 0.5, 0.8)
"""Strengths of the measured variants."""


@dataclass(frozen=True)
class Variant:
    """A variant of a clip towards the first caption of `prompted`."""

    prompted: Item
    clip: Audio
    made: Audio


def vary_clips(
    model: SoundOmni, items: Sequence[Item], clips: Sequence[Audio], settings: Settings, *, observer: Observer
) -> dict[float, list[Variant]]:
    """Vary every clip towards the caption of the next one, and the last clip towards that of the first, at each of STRENGTHS."""
    made: dict[float, list[Variant]] = {strength: [] for strength in STRENGTHS}
    with observer.begin("varying clips", total=len(STRENGTHS) * len(items)) as progress:
        for i, clip in enumerate(clips):
            prompted = items[(i + 1) % len(items)]
            for strength, variants in made.items():
                (one,) = model.generate(
                    [prompt_of(prompted, model)],
                    seconds=items[i].num_samples / items[i].sample_rate,
                    num_steps=settings.num_steps,
                    guidance_scale=settings.guidance_scale,
                    of=settings.of,
                    vary=[clip],
                    strength=strength,
                    seeds=[settings.seed + i],
                )
                variants.append(Variant(prompted, clip, one))
                progress.advance(1)
    return made


def variation_scores(variants: Mapping[float, Sequence[Variant]]) -> Scores:
    """Compare variants with their original clips, and with what their prompts ask for.

    Returns:
        for each strength "distance at …", the median spectral convergence against the clip (0 for the same spectrum), "right at …", the
        share of variants with every attribute of the prompt, and "attributes at …", the share of its attributes.
    """
    import numpy as np

    from soundomni.metrics.waveform_distances import spectral_convergence

    scores: Scores = {}
    for strength, those in variants.items():
        distances = [spectral_convergence(*comparable(one.clip, one.made)) for one in those]
        attributes = attribute_scores([heard_attributes(one.prompted, one.made) for one in those])
        scores[f"distance at {strength:g}"] = Score(float(np.nanmedian(distances)), len(distances))
        scores[f"right at {strength:g}"] = attributes["right"]
        scores[f"attributes at {strength:g}"] = attributes["attributes"]
    return scores
