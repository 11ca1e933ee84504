"""Conformance suites: what every plugin of a kind must satisfy, as pytest classes that plugin authors subclass.

    from soundomni.testing import CodecSuite

    class TestAcmeCodec(CodecSuite):
        def make(self) -> Codec:
            return AcmeCodec(latent_dim=8)

Each inherited test is one clause of the contract in `soundomni.core.interfaces`. If a plugin knowingly breaks a clause,
name it with the reason in `known_failures = {"batch": "attends across clips"}`; that test must then fail. Suites need
pytest.
"""

import re
from typing import TYPE_CHECKING

from soundomni.core.lazy_names import lazy_names

if TYPE_CHECKING:
    from soundomni.testing.augmentation import AugmentationSuite
    from soundomni.testing.backbone import BackboneSuite
    from soundomni.testing.codec import CodecSuite
    from soundomni.testing.connector import ConnectorSuite
    from soundomni.testing.critic import CriticSuite
    from soundomni.testing.dataset import DatasetSuite
    from soundomni.testing.encoder import EncoderSuite
    from soundomni.testing.filter import FilterSuite
    from soundomni.testing.next_token_objective import NextTokenObjectiveSuite
    from soundomni.testing.next_token_sampler import NextTokenSamplerSuite
    from soundomni.testing.objective import ObjectiveSuite
    from soundomni.testing.optimizer import OptimizerSuite
    from soundomni.testing.router import RouterSuite
    from soundomni.testing.sampler import SamplerSuite
    from soundomni.testing.tracker import TrackerSuite

__all__ = [
    "AugmentationSuite",
    "BackboneSuite",
    "CodecSuite",
    "ConnectorSuite",
    "CriticSuite",
    "DatasetSuite",
    "EncoderSuite",
    "FilterSuite",
    "NextTokenObjectiveSuite",
    "NextTokenSamplerSuite",
    "ObjectiveSuite",
    "OptimizerSuite",
    "RouterSuite",
    "SamplerSuite",
    "TrackerSuite",
]


def _module(suite: str) -> str:
    """Return the module of a suite.

    >>> _module("NextTokenSamplerSuite")
    'next_token_sampler'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", suite.removesuffix("Suite")).lower()


# on first use, because suites need pytest and torch
__getattr__, __dir__ = lazy_names(__name__, {_module(name): (name,) for name in __all__})
