"""What a model is measured by: what its audio is, judged by signal analysis, and what it says, judged by what is true.

Every number comes from the audio and the words that the model made for clips it was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import DataError, UnreadableAudioError

if TYPE_CHECKING:
    from soundomni.core.hub import Audio, SoundOmni
    from soundomni.core.interfaces import Dataset, Item

Scores = dict[str, float]


def evaluate(model: SoundOmni, dataset: Dataset, *, limit: int, seed: int, batch: int) -> dict[str, Any]:
    """Measures a model on the first `limit` clips of a data set.

    "reconstructed" is always measured. "described" and "answered" need an encoder, and captions or questions. "generated" needs
    clips whose attributes can be heard by signal analysis: those of toy-sounds. Clips that cannot be read are named on stderr, left
    out, and counted as "unreadable".

    Raises:
        DataError: the data set is empty, or none of its clips can be read.
    """
    if len(dataset) == 0:
        raise DataError("there is nothing to evaluate on: the data set is empty")
    count = min(limit, len(dataset))
    items, clips = _read(dataset, count)
    result: dict[str, Any] = {"clips": len(clips), "unreadable": count - len(clips), "reconstructed": reconstruction_scores(model, clips)}
    toys = [item for item in items if "events" in item.attributes]
    if model.model.encoder is not None:
        texts = model.describe(clips, batch_size=batch)
        result["described"] = description_scores(items, texts)
        result |= _answered(model, items, clips, batch)
    if len(toys) == len(items):
        seconds = items[0].num_samples / items[0].sample_rate
        made = model.generate([item.captions[0] for item in items], seconds=seconds, seeds=seed, batch_size=batch)
        result["generated"] = generation_scores(items, made)
    return result


def _read(dataset: Dataset, count: int) -> tuple[list[Item], list[Audio]]:
    from soundomni.cli.output import note
    from soundomni.core.hub import Audio

    items, clips = [], []
    for i in range(count):
        item = dataset.item(i)
        try:
            clips.append(Audio(*dataset.load(i)))
        except UnreadableAudioError as error:
            note(f"left out '{item.key}': {error}")
            continue
        items.append(item)
    if not clips:
        raise DataError(f"there is nothing to evaluate on: none of the {count} clips can be read")
    return items, clips


def reconstruction_scores(model: SoundOmni, clips: Sequence[Audio]) -> Scores:
    """Means over clips: SI-SDR in dB, and the multi-resolution STFT distance."""
    from soundomni.core.waveform import match_channels, resample
    from soundomni.data.analysis import multi_resolution_stft_distance, si_sdr

    ratios, distances = [], []
    for clip in clips:
        made = model.reconstruct(clip)
        reference = resample(match_channels(clip.waveform, made.waveform.shape[0]), clip.sample_rate, made.sample_rate)
        ratios.append(si_sdr(reference, made.waveform))
        distances.append(multi_resolution_stft_distance(reference, made.waveform))
    return {"si_sdr": _mean(ratios), "stft_distance": _mean(distances)}


def description_scores(items: Sequence[Item], texts: Sequence[str]) -> Scores:
    """Share of texts that are one of the clip's captions, and of attributes named right where the clips are toy sounds."""
    from soundomni.data.toy_language import parse_caption
    from soundomni.data.toy_recipe import Recipe, agreement

    exact = [_plain(text) in {_plain(caption) for caption in item.captions} for item, text in zip(items, texts, strict=True)]
    scores = {"exact": _mean(exact)}
    if all("events" in item.attributes for item in items):
        verdicts = [agreement(Recipe.from_json(i.attributes), parse_caption(t)) for i, t in zip(items, texts, strict=True)]
        scores |= attribute_scores(verdicts)
    return scores


def generation_scores(items: Sequence[Item], clips: Sequence[Audio]) -> Scores:
    """Share of attributes that signal analysis hears in what was made from the first caption of each toy sound."""
    from soundomni.data.analysis import analyse, compare
    from soundomni.data.toy_recipe import Recipe

    verdicts = [
        compare(Recipe.from_json(item.attributes), analyse(clip.waveform, clip.sample_rate))
        for item, clip in zip(items, clips, strict=True)
    ]
    return attribute_scores(verdicts)


def attribute_scores(verdicts: Sequence[Mapping[str, bool]]) -> Scores:
    """Share right of each attribute, of all attributes together ("attributes"), and of clips with nothing wrong ("all_right")."""
    names = sorted({name for verdict in verdicts for name in verdict})
    shares = {name: _mean([verdict[name] for verdict in verdicts if name in verdict]) for name in names}
    every = [right for verdict in verdicts for right in verdict.values()]
    return {"attributes": _mean(every), "all_right": _mean([all(v.values()) for v in verdicts]), **shares}


def _answered(model: SoundOmni, items: Sequence[Item], clips: Sequence[Audio], batch: int) -> dict[str, Scores]:
    """Share of questions answered right; clip i is asked its i-th question, so that all of them have their turn."""
    asked: dict[str, list[tuple[str, Audio]]] = {}
    for i, (item, clip) in enumerate(zip(items, clips, strict=True)):
        if item.questions:
            question, answer = item.questions[i % len(item.questions)]
            asked.setdefault(question, []).append((answer, clip))
    if not asked:
        return {}
    right = []
    for question, pairs in asked.items():
        answers = model.describe([clip for _, clip in pairs], question=question, batch_size=batch)
        right += [_plain(given) == _plain(truth) for given, (truth, _) in zip(answers, pairs, strict=True)]
    return {"answered": {"exact": _mean(right)}}


def lines(result: Mapping[str, Any]) -> list[str]:
    """Writes a result as text, one line per task."""
    out = [f"{result['clips']} clips" + (f", {result['unreadable']} unreadable" if result["unreadable"] else "")]
    for task in ("generated", "described", "answered", "reconstructed"):
        if task in result:
            parts = [f"{name} {_number(name, value)}" for name, value in result[task].items()]
            out.append(f"{task:>13}: " + ", ".join(parts))
    return out


def _number(name: str, value: float) -> str:
    if name == "si_sdr":
        return f"{value:.1f} dB"
    return f"{value:.3f}" if name.endswith("distance") else f"{100 * value:.1f} %"


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .!?")


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))
