"""What a codec costs and how much it keeps: a row for each number of levels, averaged over clips.

Shape letters: K levels of codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import SpecError
from soundomni.evaluation.score import Score, Scores, mean
from soundomni.evaluation.tasks.reconstruction import reconstruction_scores

if TYPE_CHECKING:
    from soundomni.core.representation import RepresentationSpec
    from soundomni.evaluation.tasks.reconstruction import Comparison


@dataclass(frozen=True, kw_only=True)
class CodecRow:
    """How clips came back from some levels of a codec.

    Args:
        levels: how many of the first levels of codes were decoded; None for latents.
        bits_per_second: bits that these levels take for a second of audio; None for latents, which do not have a fixed
            number of bits.
        clips: number of clips.
        scores: those of `reconstruction_scores`, and "bandwidth" and "bandwidth_file" in Hz: the frequency below which
            99 % of the energy lies, of the codec's output and of the files.
    """

    levels: int | None
    bits_per_second: float | None
    clips: int
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """Return plain data: the scores by name, and in "of" over how many clips each is averaged."""
        kbits = None if self.bits_per_second is None else self.bits_per_second / 1000
        values = {name: one.value for name, one in self.scores.items()}
        counts = {name: one.of for name, one in self.scores.items()}
        return {"levels": self.levels, "kbit_per_second": kbits, "clips": self.clips, **values, "of": counts}


def levels_to_measure(spec: RepresentationSpec, levels: int | None, *, name: str = "levels") -> list[int | None]:
    """Return the numbers of levels that rows are made for: 1 to `levels`, or only all of them for None.

    Raise SpecError, with the name of the argument, for latents, which do not have levels, and for more levels than there
    are.
    """
    if levels is None:
        return [len(spec.codebook_sizes) or None]
    if spec.kind != "codes":
        raise SpecError(f"{name} is {levels}, but this codec makes latents, which do not have levels. Leave it out")
    if not 1 <= levels <= len(spec.codebook_sizes):
        raise SpecError(f"{name} is {levels}; expected a number from 1 to {len(spec.codebook_sizes)}, the levels of this codec")
    return list(range(1, levels + 1))


def bits_per_second(spec: RepresentationSpec, levels: int | None) -> float | None:
    """Return what the first levels of codes take without compression: log2 of their codebooks' sizes, times the frame rate.

    None for latents, whose numbers do not have a fixed size.

    >>> from soundomni.core.representation import RepresentationSpec
    >>> sizes = dict(codebook_sizes=(1024,) * 8, sample_rate=24000, downsampling_ratio=320)
    >>> bits_per_second(RepresentationSpec(kind="codes", channels=1, **sizes), 2)
    1500.0
    """
    if spec.kind != "codes":
        return None
    return sum(map(math.log2, spec.codebook_sizes[:levels])) * spec.sample_rate / spec.downsampling_ratio


def codec_table(spec: RepresentationSpec, levels: Sequence[int | None], compared: Sequence[Sequence[Comparison]]) -> list[CodecRow]:
    """Return the rows of a table.

    Args:
        spec: the codec's spec.
        levels: number of levels of each row.
        compared: for each clip, at least one, how it came back from each number of levels.
    """
    rows = []
    for place, count in enumerate(levels):
        column = [of_clip[place] for of_clip in compared]
        bits = bits_per_second(spec, count)
        rows.append(CodecRow(levels=count, bits_per_second=bits, clips=len(column), scores=_scores(column)))
    return rows


def _scores(column: Sequence[Comparison]) -> Scores:
    """Average the measures of clips, each over those for which it is defined."""
    widths = {"bandwidth": [one.bandwidth for one in column], "bandwidth_file": [one.file_bandwidth for one in column]}
    defined = {name: [value for value in values if value is not None] for name, values in widths.items()}
    return reconstruction_scores(column) | {name: Score(mean(values), len(values)) for name, values in defined.items() if values}
