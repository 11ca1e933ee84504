"""What a model made and said in an evaluation, before it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.waveform import Audio
    from soundomni.evaluation.tasks.continuation import Continuation
    from soundomni.evaluation.tasks.reconstruction import Comparison
    from soundomni.evaluation.tasks.variation import Variant


@dataclass(kw_only=True)
class Outcome:
    """What a model made and said.

    Args:
        items, clips: what it got; clips that cannot be read are left out and counted as `unreadable`.
        unmeasurable: how many clips can be read but are left out, because the model or a metric does not take them.
        failures: for each clip that is left out, its key as "file" and what is wrong with it as "error".
        generated: a clip for the first caption of each item, of the item's length.
        described: a text for each clip.
        answered: for each clip, the answer to each of its questions.
        reconstructed: how each clip came back through the codec.
        continued: each clip that could be cut in the middle of a sound, continued.
        varied: for each strength, a variant of each clip towards the caption of the next one.
        not_measured: reason for each task that did not run.
    """

    items: list[Item]
    clips: Sequence[Audio]
    unreadable: int = 0
    unmeasurable: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    generated: list[Audio] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    answered: list[list[str]] = field(default_factory=list)
    reconstructed: list[Comparison] = field(default_factory=list)
    continued: list[Continuation] = field(default_factory=list)
    varied: dict[float, list[Variant]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
