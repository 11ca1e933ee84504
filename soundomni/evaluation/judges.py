"""What judges generated clips: networks, loaded from the user's own directories, and their scores; and a reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soundomni.core.errors import SpecError
from soundomni.evaluation.observer import Observer, counted
from soundomni.evaluation.score import Score, Scores

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.waveform import Audio
    from soundomni.evaluation.reference import Reference
    from soundomni.metrics.clap import ClapEmbedder
    from soundomni.metrics.classifier import AudioClassifier


@dataclass(frozen=True, kw_only=True)
class Judges:
    """A CLAP network, an audio classifier and a reference, or None for any of them.

    Args:
        clap, classifier: the networks.
        clap_directory, classifier_directory: directories that they were loaded from, to identify them in a result; None
            if unknown.
        reference: real clips that the model was trained on, see `read_reference`.
    """

    clap: ClapEmbedder | None = None
    classifier: AudioClassifier | None = None
    clap_directory: str | None = None
    classifier_directory: str | None = None
    reference: Reference | None = None

    def __bool__(self) -> bool:
        return self.has_networks or self.reference is not None

    @property
    def has_networks(self) -> bool:
        """Whether there is a network, which compares sets of at least two clips."""
        return self.clap is not None or self.classifier is not None


NO_JUDGES = Judges()


def load_judges(*, clap: str | None = None, classifier: str | None = None, device: str = "cpu") -> Judges:
    """Load networks from directories in transformers format. Raise CheckpointError if a directory does not hold one."""
    from soundomni.metrics.clap import ClapEmbedder
    from soundomni.metrics.classifier import AudioClassifier

    return Judges(
        clap=None if clap is None else ClapEmbedder(clap, device=device),
        classifier=None if classifier is None else AudioClassifier(classifier, device=device),
        clap_directory=clap,
        classifier_directory=classifier,
    )


def check_judged_tasks(tasks: Sequence[str], *, by_reference: bool = False) -> None:
    """Raise SpecError if no task makes anything that a network, or a reference, could judge."""
    if "generate" not in tasks:
        judge, cure = ("a reference", "the reference") if by_reference else ("a CLAP network or a classifier", "the networks")
        raise SpecError(
            f"{judge} judges the clips of the task generate, but the tasks are {', '.join(tasks)}. Add generate, or leave {cure} out"
        )


def judge_scores(prompts: Sequence[str], clips: Sequence[Audio], made: Sequence[Audio], judges: Judges, *, observer: Observer) -> Scores:
    """Score generated clips with networks: against their prompts, and as a set against the data's own clips."""
    import numpy as np

    from soundomni.metrics.clap import clap_score
    from soundomni.metrics.kl import kl_divergence
    from soundomni.metrics.set_distances import SET_DISTANCES

    values: dict[str, float] = {}
    if judges.clap is not None:
        words, embed = judges.clap.embed_text(prompts), judges.clap.embed_audio
        generated, real = (np.concatenate([embed([pair]) for pair in _pairs(group, "CLAP", observer)]) for group in (made, clips))
        values["clap_score"] = clap_score(words, generated)
        values["clap_score_of_data"] = clap_score(words, real)
        values |= {f"{name}_clap": distance(generated, real) for name, distance in SET_DISTANCES["clap"].items()}
    if judges.classifier is not None:
        hear = judges.classifier.hear
        groups = [[hear([pair]) for pair in _pairs(group, "the classifier", observer)] for group in (made, clips)]
        heard, true = (np.concatenate([one.embeddings for one in group]) for group in groups)
        odds = [np.concatenate([one.probabilities for one in group]) for group in groups]
        values["kl"] = kl_divergence(odds[1], odds[0])
        values |= {f"{name}_classifier": distance(heard, true) for name, distance in SET_DISTANCES["classifier"].items()}
    return {name: Score(value, len(made)) for name, value in values.items()}


def _pairs(clips: Sequence[Audio], judge: str, observer: Observer) -> Iterator[tuple[np.ndarray, int]]:
    """Yield waveform and rate of one clip at a time, so that they need not all be in memory."""
    for clip in counted(clips, f"judging clips with {judge}", total=len(clips), observer=observer):
        yield clip.waveform, clip.sample_rate
