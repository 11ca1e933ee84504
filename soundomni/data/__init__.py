"""Audio files, datasets, packing and resumable loading.

Names are imported on first use, so modules that measure sounds or read files do not wait for torch.
"""

from typing import TYPE_CHECKING

from soundomni.core.lazy_names import lazy_names

if TYPE_CHECKING:
    from soundomni.data.audio import audio_info, fit_announced, match_channels, read_audio, resample, resampled_length
    from soundomni.data.audio_folder import AudioFolder
    from soundomni.data.audio_writing import write_audio, write_wav
    from soundomni.data.audiocaps import AudioCaps
    from soundomni.data.best_fit import pack_offline
    from soundomni.data.encoded.dataset import EncodedClips
    from soundomni.data.loader import PackedLoader, Step
    from soundomni.data.manifest import Manifest
    from soundomni.data.mixture import Draw, Mixture, MixtureStream, Source
    from soundomni.data.packer import StreamPacker
    from soundomni.data.parquet import Parquet
    from soundomni.data.samples import Crop, PlannedSample, SampleWriter
    from soundomni.data.toys.toy_sounds import ToySounds
    from soundomni.data.webdataset import WebDataset

_MODULES = {
    "audio": ("audio_info", "fit_announced", "match_channels", "read_audio", "resample", "resampled_length"),
    "audio_writing": ("write_audio", "write_wav"),
    "audio_folder": ("AudioFolder",),
    "audiocaps": ("AudioCaps",),
    "best_fit": ("pack_offline",),
    "encoded.dataset": ("EncodedClips",),
    "loader": ("PackedLoader", "Step"),
    "manifest": ("Manifest",),
    "mixture": ("Draw", "Mixture", "MixtureStream", "Source"),
    "packer": ("StreamPacker",),
    "parquet": ("Parquet",),
    "webdataset": ("WebDataset",),
    "toys.toy_sounds": ("ToySounds",),
    "samples": ("Crop", "PlannedSample", "SampleWriter"),
}

__all__ = [
    "AudioCaps",
    "AudioFolder",
    "Crop",
    "Draw",
    "EncodedClips",
    "Manifest",
    "Mixture",
    "MixtureStream",
    "PackedLoader",
    "Parquet",
    "PlannedSample",
    "SampleWriter",
    "Source",
    "Step",
    "StreamPacker",
    "ToySounds",
    "WebDataset",
    "audio_info",
    "fit_announced",
    "match_channels",
    "pack_offline",
    "read_audio",
    "resample",
    "resampled_length",
    "write_audio",
    "write_wav",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
