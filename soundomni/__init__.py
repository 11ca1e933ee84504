"""SoundOmni: a modular plugin library for models that both generate and understand audio."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING

from soundomni.core.lazy_names import lazy_names as _lazy_names

if TYPE_CHECKING:
    from soundomni.core.inference.editing import Kept as Kept
    from soundomni.core.pretrained.chain import Chain as Chain
    from soundomni.core.pretrained.omni import SoundOmni as SoundOmni
    from soundomni.core.spec.parsers import extend_jsonargparse as extend_jsonargparse
    from soundomni.core.waveform import Audio as Audio

__version__ = _version("soundomni")
__all__ = ["Audio", "Chain", "Kept", "SoundOmni", "__version__", "extend_jsonargparse"]

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "core.inference.editing": ("Kept",),
        "core.pretrained.chain": ("Chain",),
        "core.pretrained.omni": ("SoundOmni",),
        "core.spec.parsers": ("extend_jsonargparse",),
        "core.waveform": ("Audio",),
    },
)
