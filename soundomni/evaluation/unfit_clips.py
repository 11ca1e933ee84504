"""Clips and texts that a model or a metric does not take, found before anything is made: each would stop an evaluation
halfway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from soundomni.core.errors import DataError, SpecError
from soundomni.evaluation.judges import Judges
from soundomni.evaluation.prompts import prompt_of

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio


_TOO_FEW = "there is no set of clips to compare: a CLAP network and a classifier need at least 2, there is 1"


def find_unfit(
    model: SoundOmni | Chain,
    pairs: Iterable[tuple[Item, Audio]],
    tasks: Sequence[str],
    judges: Judges,
    *,
    count: int,
    of: str | None = None,
) -> dict[int, DataError]:
    """Return the places of the clips that cannot be measured in one of the tasks, each with the reason, which names the item.

    Args:
        model: the model to measure.
        pairs: the items and clips that it will get, one by one.
        tasks: the tasks that it will do.
        judges: the networks that will judge the generated clips.
        count: number of pairs.
        of: the modality that is made; None for the first one.

    Raises:
        DataError: no clip is left, or too few for the judges.
    """
    judged = judges.has_networks and "generate" in tasks
    if judged and count == 1:
        raise DataError(_TOO_FEW)
    unfit: dict[int, DataError] = {}
    for place, (item, clip) in enumerate(pairs):
        try:
            with _named(item):
                _check_clip(model, item, clip, tasks, of)
                if judges.clap is not None and "generate" in tasks:
                    judges.clap.tokens(item.captions[0])
        except DataError as error:
            unfit[place] = error
    if len(unfit) == count:
        raise next(iter(unfit.values()))
    if judged and count - len(unfit) == 1:
        raise DataError(f"{_TOO_FEW}: {next(iter(unfit.values()))}")
    return unfit


def _check_clip(model: SoundOmni | Chain, item: Item, clip: Audio, tasks: Sequence[str], of: str | None) -> None:
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.waveform import match_channels
    from soundomni.metrics.text import normalize

    if {"generate", "continue", "vary"} & set(tasks):
        model.check_request(prompt_of(item, model), item.num_samples / item.sample_rate, of=of)
    if isinstance(model, Chain):
        return
    if "describe" in tasks:
        for caption in item.captions:
            if not normalize(caption):
                raise DataError(f"the caption {caption!r} has no words")
        model.contexts.clip(clip, None)
    if "answer" in tasks and item.questions:
        longest = max((question for question, _ in item.questions), key=lambda question: len(model.tokenizer.encode(question)))
        model.contexts.clip(clip, longest)
    if "reconstruct" in tasks:
        match_channels(clip.waveform, model.model.made(of).channels)


@contextmanager
def _named(item: Item) -> Iterator[None]:
    """Add the key of the item to an error. A SpecError here says that the item's length does not suit the model."""
    try:
        yield
    except (DataError, SpecError) as error:
        raise DataError(f"'{item.key}': {error}") from error
