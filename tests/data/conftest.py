"""Small real parts for the tests of tasks, mixtures and loading: an in-memory dataset, a tokenizer, a writer."""

import numpy as np
import pytest

from soundomni.core.errors import UnreadableAudioError
from soundomni.core.interfaces import Dataset, Item
from soundomni.core.representation import FeatureSpec, RepresentationSpec
from soundomni.core.sequence import Attend, PositionRule
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.segments import CodecModality, HeardModality, SegmentWriter
from soundomni.data.samples import SampleWriter

CODEC = RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=100, latent_dim=4, extra_frames=1)
ENCODER = FeatureSpec(sample_rate=4000, feature_dim=8)


class Ramps(Dataset):
    """Clips whose samples rise from 0 to 1, so that a cut shows where it was made. Some indices can be broken."""

    def __init__(self, *, lengths, rate=8000, channels=1, broken=(), captions=None, questions=()):
        self.lengths, self.rate, self.channels, self.broken = list(lengths), rate, channels, set(broken)
        self.captions, self.questions = captions, questions

    def __len__(self):
        return len(self.lengths)

    def item(self, index):
        captions = (f"ramp {index}", f"slope {index}") if self.captions is None else self.captions
        return Item(
            key=f"ramp-{index}", num_samples=self.lengths[index], sample_rate=self.rate, captions=captions, questions=self.questions
        )

    def load(self, index):
        if index in self.broken:
            raise UnreadableAudioError(f"cannot read 'ramp-{index}': it was broken for this test")
        return np.tile(np.linspace(0, 1, self.lengths[index], dtype=np.float32), (self.channels, 1)), self.rate


@pytest.fixture(scope="session")
def ramps():
    """Returns the class of an in-memory dataset."""
    return Ramps


@pytest.fixture(scope="session")
def tokenizer():
    """Plain bytes."""
    return TextTokenizer.train(["ramp"], vocab_size=261)


@pytest.fixture(scope="session")
def make_writer(tokenizer):
    """Returns a function that makes a writer for a tiny codec and encoder, with changes."""

    def make(
        *,
        dropout=None,
        codec=CODEC,
        encoder=ENCODER,
        max_frames=None,
        latent_positions="shared",
        feature_positions="advance",
        feature_attend="full",
        chat="none",
    ):
        made = CodecModality(name="latent", spec=codec, max_tokens=max_frames, positions=PositionRule.named(latent_positions))
        heard = HeardModality(
            name="features",
            spec=encoder,
            num_tokens=lambda num_samples: -(-num_samples // 200),
            positions=PositionRule.named(feature_positions),
            attend=Attend.named(feature_attend),
        )
        modalities = [made] if encoder is None else [made, heard]
        return SampleWriter(SegmentWriter(tokenizer=tokenizer, modalities=modalities, chat=chat), dropout=dropout)

    return make
