"""Attributes of toy sounds: what signal analysis finds in a clip, and how many of the stated attributes are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from soundomni.evaluation.score import Score, Scores, mean, share

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.waveform import Audio
    from soundomni.data.toys.toy_recipe import Recipe


def are_toys(items: Sequence[Item]) -> bool:
    """Return whether all clips have a recipe, so that signal analysis can find their attributes."""
    from soundomni.data.toys.toy_recipe import is_recipe

    return all(is_recipe(item.attributes) for item in items)


def heard_recipe(clip: Audio) -> Recipe:
    """Return the recipe that signal analysis finds in a clip."""
    from soundomni.data.toys.analysis import analyze

    return analyze(clip.waveform, clip.sample_rate).recipe


def heard_attributes(item: Item, clip: Audio) -> dict[str, bool]:
    """Return for each attribute that an item states whether signal analysis finds it in a clip."""
    from soundomni.data.toys.toy_recipe import Recipe, agreement

    return agreement(Recipe.from_json(item.attributes), heard_recipe(clip))


def attribute_scores(verdicts: Sequence[Mapping[str, bool]]) -> Scores:
    """Score one verdict per clip and attribute.

    Returns:
        "right", the share of clips with every attribute right; "attributes", the share of right attributes; and for each attribute its
        share among the clips that state it.
    """
    names = sorted({name for verdict in verdicts for name in verdict})
    every = [right for verdict in verdicts for right in verdict.values()]
    whole = {"right": share([all(verdict.values()) for verdict in verdicts]), "attributes": Score(mean(every), len(every))}
    return whole | {name: share([verdict[name] for verdict in verdicts if name in verdict]) for name in names}
