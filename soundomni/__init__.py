"""SoundOmni: a modular plugin library for models that both generate and understand audio."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundomni.core.hub import SoundOmni as SoundOmni

__version__ = _version("soundomni")
__all__ = ["SoundOmni", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the model class on first use: `import soundomni` alone does not import torch."""
    if name == "SoundOmni":
        from soundomni.core.hub import SoundOmni

        return SoundOmni
    raise AttributeError(f"module 'soundomni' has no attribute '{name}'")
