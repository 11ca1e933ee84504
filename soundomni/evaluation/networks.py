"""Networks that judge what was generated, from the user's own directories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soundomni.metrics.clap import ClapEmbedder
    from soundomni.metrics.classifier import AudioClassifier


@dataclass(frozen=True, kw_only=True)
class Networks:
    """A CLAP network and a classifier, or None for either."""

    clap: ClapEmbedder | None = None
    classifier: AudioClassifier | None = None

    def __bool__(self) -> bool:
        return self.clap is not None or self.classifier is not None


def load_networks(*, clap: str | None, classifier: str | None, device: str) -> Networks:
    """Loads the directories that are named. Raises CheckpointError for one that holds no such network."""
    from soundomni.metrics.clap import ClapEmbedder
    from soundomni.metrics.classifier import AudioClassifier

    return Networks(
        clap=None if clap is None else ClapEmbedder(clap, device=device),
        classifier=None if classifier is None else AudioClassifier(classifier, device=device),
    )
