"""Audio files, datasets, tasks, packing and resumable loading.

Names are imported on first use: the modules that measure sounds or read files must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from soundomni.data.pack_offline import pack_offline  # at once: the module of this name would take the function's place

if TYPE_CHECKING:
    from soundomni.data.audio import audio_info, fit_announced, match_channels, read_audio, resample, resampled_length
    from soundomni.data.audio_folder import AudioFolder
    from soundomni.data.audio_writing import write_audio, write_wav
    from soundomni.data.audiocaps import AudioCaps
    from soundomni.data.loader import PackedLoader, Step
    from soundomni.data.mixture import Draw, Mixture, MixtureStream, Source
    from soundomni.data.packer import StreamPacker
    from soundomni.data.segments import clean_segment, features_segment, target_segment, text_context
    from soundomni.data.tasks import BUILT_IN, Task, build_tasks, find_task
    from soundomni.data.toy_sounds import ToySounds
    from soundomni.data.writer import Crop, PlannedSample, SampleWriter

_MODULES = {
    "audio": ("audio_info", "fit_announced", "match_channels", "read_audio", "resample", "resampled_length"),
    "audio_writing": ("write_audio", "write_wav"),
    "audio_folder": ("AudioFolder",),
    "audiocaps": ("AudioCaps",),
    "loader": ("PackedLoader", "Step"),
    "mixture": ("Draw", "Mixture", "MixtureStream", "Source"),
    "packer": ("StreamPacker",),
    "segments": ("clean_segment", "features_segment", "target_segment", "text_context"),
    "tasks": ("BUILT_IN", "Task", "build_tasks", "find_task"),
    "toy_sounds": ("ToySounds",),
    "writer": ("Crop", "PlannedSample", "SampleWriter"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BUILT_IN",
    "AudioCaps",
    "AudioFolder",
    "Crop",
    "Draw",
    "Mixture",
    "MixtureStream",
    "PackedLoader",
    "PlannedSample",
    "SampleWriter",
    "Source",
    "Step",
    "StreamPacker",
    "Task",
    "ToySounds",
    "audio_info",
    "build_tasks",
    "clean_segment",
    "features_segment",
    "find_task",
    "fit_announced",
    "match_channels",
    "pack_offline",
    "read_audio",
    "resample",
    "resampled_length",
    "target_segment",
    "text_context",
    "write_audio",
    "write_wav",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
