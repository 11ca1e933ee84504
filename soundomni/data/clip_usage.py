"""How the clips of a dataset are prepared, and which captions are rare: reported once, before the first step.

Nothing is decoded: lengths and captions come from the listing.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from soundomni.core.interfaces import Item
from soundomni.core.spec.clips import in_words
from soundomni.core.writing.preparing import prepared_length
from soundomni.data.balance import repeats
from soundomni.data.mixture import Mixture
from soundomni.data.prepared import Prepared
from soundomni.data.usage import looked_at

RARE = 2.0
"""A caption is rare if it has fewer clips than the median caption has, divided by this."""
FEWEST_CLIPS = 4
"""If the median caption has fewer clips than this, captions are texts of single clips and not kinds of sounds."""
_NAMED, _LONGEST = 3, 40


def describe_clips(mixture: Mixture, name: str) -> list[str]:
    """Return a line on how the clips of a dataset are prepared, and one on its rare captions, if there are any."""
    whole = mixture.sources[name].dataset
    prepared = whole if isinstance(whole, Prepared) else None
    dataset = whole if prepared is None else prepared.whole
    items = [dataset.item(index) for index in looked_at(mixture, name).tolist()]
    lines = [] if prepared is None else [f"data '{name}': {_preparation(prepared, items)}"]
    rare = _rarity(mixture, name, items)
    return lines if rare is None else [*lines, f"data '{name}': {rare}"]


def _preparation(prepared: Prepared, items: list[Item]) -> str:
    clips = prepared.clips
    line = f"clips are prepared: {in_words(clips)}"
    if clips.seconds is not None:
        excess = [item.num_samples - prepared_length(item.num_samples, item.sample_rate, clips) for item in items]
        longer, shorter = sum(samples > 0 for samples in excess), sum(samples < 0 for samples in excess)
        line += f"; of {len(items):,}, {longer:,} are longer and cut, {shorter:,} are shorter and padded"
    level = clips.peak is not None or clips.loudness is not None
    return f"{line}; all get the same level" if level else line


def _rarity(mixture: Mixture, name: str, items: list[Item]) -> str | None:
    """Return which captions are rare, and what draws their clips more often; None if no caption is rare."""
    kinds = [item.captions for item in items]
    counts = Counter(kind for kind in kinds if kind)
    middle = float(np.median(list(counts.values()))) if counts else 0.0
    rare = sorted((count, kind[0]) for kind, count in counts.items() if count < middle / RARE)
    if middle < FEWEST_CLIPS or not rare:
        return None
    named = ", ".join(f"'{_short(caption)}' ({count:,})" for count, caption in rare[:_NAMED])
    named += f" and {len(rare) - _NAMED:,} more" if len(rare) > _NAMED else ""
    line = f"{len(counts):,} captions have a median of {middle:g} clips; rare ones are {named}"
    most, key = mixture.sources[name].balance, f"data.datasets.{name}.balance"
    if most == 1:
        return f"{line}. Set {key} to {int(np.ceil(middle / rare[0][0]))} to draw their clips more often"
    return f"{line}, whose clips are drawn up to {int(repeats(kinds, most=most).max())} times per epoch ({key})"


def _short(caption: str) -> str:
    text = " ".join(caption.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
