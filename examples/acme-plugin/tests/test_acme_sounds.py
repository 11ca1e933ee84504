"""SoundOmni's conformance suites, applied to these plugins."""

from soundomni.testing import CodecSuite, RouterSuite, SamplerSuite

from acme_sounds.fold import FoldCodec
from acme_sounds.ralston import RalstonSampler
from acme_sounds.split import SplitRouter


class TestFoldCodec(CodecSuite):
    def make(self) -> FoldCodec:
        return FoldCodec(sample_rate=8000, frame_size=32)


class TestRalstonSampler(SamplerSuite):
    def make(self) -> RalstonSampler:
        return RalstonSampler(num_steps=4)


class TestSplitRouter(RouterSuite):
    def make(self) -> SplitRouter:
        return SplitRouter()
