"""Audio files, data sets, tasks, packing and resumable loading."""

from soundomni.data.audio import audio_info, fit_announced, match_channels, read_audio, resample, resampled_length, write_wav
from soundomni.data.audio_folder import AudioFolder
from soundomni.data.audiocaps import AudioCaps
from soundomni.data.loader import PackedLoader, Step
from soundomni.data.mixture import Draw, Mixture, MixtureStream, Source
from soundomni.data.pack_offline import pack_offline
from soundomni.data.packer import StreamPacker
from soundomni.data.segments import clean_segment, features_segment, target_segment, text_context
from soundomni.data.tasks import BUILT_IN, Task, build_tasks, find_task
from soundomni.data.toy_sounds import ToySounds
from soundomni.data.writer import Crop, PlannedSample, SampleWriter

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
    "write_wav",
]
