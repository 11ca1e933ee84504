"""SoundOmni: a modular plugin library for models that both generate and understand audio."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundomni.core.inference.editing import Kept as Kept
    from soundomni.core.pretrained.omni import SoundOmni as SoundOmni
    from soundomni.core.spec.parsers import extend_jsonargparse as extend_jsonargparse
    from soundomni.core.waveform import Audio as Audio

__version__ = _version("soundomni")
__all__ = ["Audio", "Kept", "SoundOmni", "__version__", "extend_jsonargparse"]

_HOMES = {
    "Audio": "soundomni.core.waveform",
    "Kept": "soundomni.core.inference.editing",
    "SoundOmni": "soundomni.core.pretrained.omni",
    "extend_jsonargparse": "soundomni.core.spec.parsers",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import soundomni` does not import torch."""
    if name in _HOMES:
        return getattr(_import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'soundomni' has no attribute '{name}'")
