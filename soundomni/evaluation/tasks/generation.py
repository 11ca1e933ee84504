"""The task "generate": a clip for the first caption of each item, judged by signal analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from soundomni.core.batches import batches
from soundomni.evaluation.observer import Observer, counted
from soundomni.evaluation.prompts import prompt_of
from soundomni.evaluation.score import Scores
from soundomni.evaluation.toy_attributes import attribute_scores, heard_attributes

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio
    from soundomni.evaluation.settings import Settings


def generate_clips(model: SoundOmni | Chain, items: Sequence[Item], settings: Settings, *, observer: Observer) -> list[Audio]:
    """Generate a clip from the first caption of each item, as long as the item; items of one length share batches."""
    lengths: dict[float, list[int]] = {}
    for i, item in enumerate(items):
        lengths.setdefault(item.num_samples / item.sample_rate, []).append(i)
    made: dict[int, Audio] = {}
    with observer.begin("generating clips", total=len(items)) as progress:
        for seconds, all_places in lengths.items():
            for places in batches(all_places, settings.batch_size):
                clips = model.generate(
                    [prompt_of(items[i], model) for i in places],
                    seconds=seconds,
                    num_steps=settings.num_steps,
                    guidance_scale=settings.guidance_scale,
                    of=settings.of,
                    seeds=[settings.seed + i for i in places],
                    batch_size=settings.batch_size,
                    on_step=lambda index, _: progress.detail(f"step {index + 1}"),
                )
                made |= dict(zip(places, clips, strict=True))
                progress.advance(len(places))
    return [made[i] for i in range(len(items))]


def generation_scores(items: Sequence[Item], made: Sequence[Audio], *, observer: Observer) -> Scores:
    """Score the attributes that signal analysis finds in the clips made from the captions of toy sounds; see
    `attribute_scores`.

    The spectrum is judged as the "waveform" of tones and as "noise", the color of noise.
    """
    clips = counted(made, "analyzing clips", total=len(made), observer=observer)
    return attribute_scores([heard_attributes(item, clip) for item, clip in zip(items, clips, strict=True)])
