"""What a model made and said, turned into numbers; every number comes with how many clips or verdicts it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.interfaces import Item
    from soundomni.core.waveform import Audio
    from soundomni.evaluation.networks import Networks
    from soundomni.evaluation.reconstruction import Comparison

MOST_QUESTIONS = 20
"""Different questions beyond which their shares are not told one by one."""


@dataclass(frozen=True)
class Score:
    """A number.

    Args:
        value: a share from 0 to 1, or what the metric of this name gives.
        of: clips, answers or attributes that it sums up.
        low, high: ends of the 95 % Wilson interval of a share of independent verdicts, one per clip. Shares that take several
            verdicts from one clip have none: those depend on each other.
    """

    value: float
    of: int
    low: float | None = None
    high: float | None = None


Scores = dict[str, Score]


def generation_scores(items: Sequence[Item], made: Sequence[Audio]) -> Scores:
    """Attributes that signal analysis hears in what was made from the first caption of each toy sound.

    The spectrum is judged as "waveform" of tones and "noise", the color of noise.
    """
    from soundomni.cli.progress import tracked
    from soundomni.data.toys.toy_recipe import Recipe, agreement

    heard = [heard_recipe(clip) for clip in tracked(made, "analysing clips", total=len(made))]
    return attribute_scores([agreement(Recipe.from_json(item.attributes), one) for item, one in zip(items, heard, strict=True)])


def heard_recipe(clip: Audio) -> Any:
    """Returns the recipe that signal analysis hears in a clip."""
    from soundomni.data.toys.analysis import analyze

    return analyze(clip.waveform, clip.sample_rate).recipe


def description_scores(items: Sequence[Item], texts: Sequence[str]) -> Scores:
    """Compares texts with captions: share that equals one ("exact"), error rates against the nearest one, consensus with all.

    Of toy sounds also the attributes that the text names right, and "right", the share of texts that name all of them.
    """
    from soundomni.data.toys.toy_language import parse_caption
    from soundomni.data.toys.toy_recipe import Recipe, agreement
    from soundomni.metrics.cider import cider_d
    from soundomni.metrics.text import cer, normalize, wer

    captions = [item.captions for item in items]
    scores: Scores = {}
    if are_toys(items):
        verdicts = [agreement(Recipe.from_json(i.attributes), parse_caption(t)) for i, t in zip(items, texts, strict=True)]
        scores |= attribute_scores(verdicts)
    scores["exact"] = share([normalize(text) in map(normalize, known) for known, text in zip(captions, texts, strict=True)])
    scores["wer"] = Score(wer(captions, texts), len(texts))
    scores["cer"] = Score(cer(captions, texts), len(texts))
    scores["cider_d"] = Score(cider_d(captions, texts), len(texts))
    return scores


def answer_scores(asked: Sequence[tuple[str, str, str]]) -> Scores:
    """Share of (question, right answer, given answer) answered right, of all of them and of each question that is asked of many clips."""
    from soundomni.metrics.text import normalize

    verdicts: dict[str, list[bool]] = {}
    for question, truth, given in asked:
        verdicts.setdefault(question, []).append(normalize(given) == normalize(truth))
    every = [right for rights in verdicts.values() for right in rights]
    scores = {"right": Score(_mean(every), len(every))}
    if len(verdicts) <= MOST_QUESTIONS:
        scores |= {question: share(rights) for question, rights in verdicts.items()}
    return scores


def reconstruction_scores(compared: Sequence[Comparison]) -> Scores:
    """Means over clips of SI-SDR in dB, multi-resolution STFT distance, and mel distance in dB; of the first two, over those where they
    are defined (see reconstruction.measure).

    If a file has another rate than the codec, also the same against the files at their own rate, as names that end in "_file", and the
    mean share of their energy that lies above what the codec's rate keeps.
    """
    rates_differ = any(one.file_rate != one.codec_rate for one in compared)
    rows = [one.scores() if rates_differ else one.at_codec for one in compared]
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    return {name: Score(_mean(values), len(values)) for name, values in columns.items() if values}


def network_scores(prompts: Sequence[str], clips: Sequence[Audio], made: Sequence[Audio], networks: Networks) -> Scores:
    """Scores of generated clips by networks: against their prompts, and as a set against the data's own clips."""
    import numpy as np

    from soundomni.metrics.clap import clap_score
    from soundomni.metrics.frechet import frechet_distance
    from soundomni.metrics.kernel import kernel_distance
    from soundomni.metrics.kl import kl_divergence

    values: dict[str, float] = {}
    if networks.clap is not None:
        words, embed = networks.clap.embed_text(prompts), networks.clap.embed_audio
        generated, real = (np.concatenate([embed([pair]) for pair in _pairs(group, "CLAP")]) for group in (made, clips))
        values["clap_score"] = clap_score(words, generated)
        values["clap_score_of_data"] = clap_score(words, real)
        values["frechet_clap"] = frechet_distance(generated, real)
        values["kernel_clap"] = kernel_distance(generated, real)
    if networks.classifier is not None:
        hear = networks.classifier.hear
        groups = [[hear([pair]) for pair in _pairs(group, "the classifier")] for group in (made, clips)]
        heard, true = (np.concatenate([one.embeddings for one in group]) for group in groups)
        odds = [np.concatenate([one.probabilities for one in group]) for group in groups]
        values["kl"] = kl_divergence(odds[1], odds[0])
        values["frechet_classifier"] = frechet_distance(heard, true)
    return {name: Score(value, len(made)) for name, value in values.items()}


def _pairs(clips: Sequence[Audio], judge: str) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (waveform, rate) of one clip at a time, so that not all of them have to be in memory."""
    from soundomni.cli.progress import tracked

    for clip in tracked(clips, f"judging clips by {judge}", total=len(clips)):
        yield clip.waveform, clip.sample_rate


def attribute_scores(verdicts: Sequence[Mapping[str, bool]]) -> Scores:
    """Share of clips with every attribute right ("right"), of right attributes ("attributes"), and of each one where it is stated."""
    names = sorted({name for verdict in verdicts for name in verdict})
    every = [right for verdict in verdicts for right in verdict.values()]
    whole = {"right": share([all(verdict.values()) for verdict in verdicts]), "attributes": Score(_mean(every), len(every))}
    return whole | {name: share([verdict[name] for verdict in verdicts if name in verdict]) for name in names}


def share(verdicts: Sequence[bool]) -> Score:
    """Returns the share of True among independent verdicts, with its interval."""
    from soundomni.metrics.shares import wilson_interval

    low, high = wilson_interval(sum(verdicts), len(verdicts))
    return Score(_mean(verdicts), len(verdicts), low, high)


def are_toys(items: Sequence[Item]) -> bool:
    """Says whether all clips have a recipe, so that their attributes can be heard and read."""
    from soundomni.data.toys.toy_recipe import is_recipe

    return all(is_recipe(item.attributes) for item in items)


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))
