"""Audio files in and out. Resampling and channels are core's, for inference needs them without files; they are offered here too.

Shape letters: C audio channels, S samples. Rates are in Hz, waveforms float32 with full scale at 1.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import uuid
from pathlib import Path

import numpy as np
import soundfile

from soundomni.core.errors import DataError, UnreadableAudioError
from soundomni.core.waveform import fit_length, match_channels, resample, resampled_length

__all__ = ["SUFFIXES", "audio_info", "fit_announced", "match_channels", "read_audio", "resample", "resampled_length", "write_wav"]

SUFFIXES = (
    *(".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".mp1", ".mp2", ".mp3", ".nist", ".oga", ".ogg", ".opus"),
    *(".rf64", ".snd", ".sph", ".voc", ".w64", ".wav", ".wave"),
)
"""Suffixes of the files that listings take for audio."""

LOWEST_RATE = 100
HIGHEST_RATE = 1_000_000
"""Rates beyond these come from damaged headers, and a short file would become a long clip when it is resampled."""

PEAK_LIMIT = 8.0
"""A sample beyond this is not an overshoot of a lossy decoder but audio that is not scaled to [-1, 1]."""

_MAX_FRAMES = 2**40  # libsndfile announces 2**63 - 1 frames when it cannot tell
_RIFF_STREAMED = 0x7FFF0000  # writers to a pipe put a size at or above this, for they cannot go back and fill it in


def audio_info(path: str | Path) -> tuple[int, int, int]:
    """Returns (S, rate, C) as the file's header says, without decoding.

    Raises UnreadableAudioError when there is no such file, it is not audio, it is empty, or it ends before its header says.
    """
    _check_file(path)
    try:
        info = soundfile.info(_name(path))
        _check_header(path, int(info.frames), int(info.samplerate))
    except (soundfile.SoundFileError, OSError) as error:
        raise UnreadableAudioError(f"cannot read '{path}': {_reason(path, error)}") from error
    return int(info.frames), int(info.samplerate), int(info.channels)


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Decodes a file (WAV, FLAC, OGG, MP3, AIFF) and returns float32 `[C, S]` and its rate; S is what the header says.

    Raises UnreadableAudioError, naming the path and the reason, when the file is missing, not audio, empty or truncated, when it
    decodes to another length than its header says (see `fit_announced`), or holds samples that are not finite or not in [-1, 1].
    """
    _check_file(path)
    try:
        with soundfile.SoundFile(_name(path)) as file:
            frames, rate = int(file.frames), int(file.samplerate)
            _check_header(path, frames, rate)
            decoded = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, MemoryError) as error:  # a damaged header may announce any length
        raise UnreadableAudioError(f"cannot read '{path}': {_reason(path, error)}") from error
    if not np.isfinite(decoded).all():
        raise UnreadableAudioError(f"cannot read '{path}': it holds samples that are not finite")
    peak = float(np.abs(decoded).max(initial=0.0))
    if peak > PEAK_LIMIT:
        raise UnreadableAudioError(f"cannot read '{path}': samples reach {peak:.4g}, expected them within [-1, 1]")
    return fit_announced(np.ascontiguousarray(decoded.T), frames, rate, name=str(path)), rate


def fit_announced(waveform: np.ndarray, num_samples: int, rate: int, *, name: str) -> np.ndarray:
    """Returns `[C, num_samples]`: the waveform `[C, S]` padded with silence at its end, or cut there.

    Headers may be off by a little: MP3 headers estimate, and lossy codecs pad. A difference of more than 1 % and more than 0.1 s
    is not rounding, but a truncated or replaced file: that raises UnreadableAudioError with `name`, and so does an empty waveform.
    """
    found = waveform.shape[1]
    if found == 0 or abs(found - num_samples) > max(0.01 * num_samples, 0.1 * rate):
        raise UnreadableAudioError(f"cannot read '{name}': it decodes to {found} samples where {num_samples} were announced")
    return fit_length(waveform, num_samples)


def write_wav(path: str | Path, waveform: np.ndarray, rate: int) -> float:
    """Writes `[C, S]` as 16-bit PCM, all or nothing, and returns the gain that was applied.

    The gain is 1, or 1 / peak when the peak is above full scale: nothing is ever clipped. Raises DataError when the waveform is
    not `[C, S]` with S > 0 or not finite, or when the file cannot be written.
    """
    target, samples = Path(path), np.asarray(waveform, dtype=np.float32)
    if samples.ndim != 2 or samples.size == 0:
        raise DataError(f"cannot write '{target}': expected samples [C, S], got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise DataError(f"cannot write '{target}': it has samples that are not finite")
    gain = 1.0 / max(1.0, float(np.abs(samples).max()))
    pcm = np.rint(samples.T * np.float32(gain) * np.float32(32767)).astype(np.int16)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm, rate, format="WAV", subtype="PCM_16")
    try:
        part.write_bytes(encoded.getbuffer())  # not by libsndfile, which does not say that the disk is full
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        reason = "no such directory" if not target.parent.is_dir() else error.strerror or str(error)
        raise DataError(f"cannot write '{target}': {reason}") from error
    return gain


def _name(path: str | Path) -> str | bytes:
    """Returns a path as libsndfile takes it; where names are bytes, they need not be text."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def _check_file(path: str | Path) -> None:
    """Raises UnreadableAudioError for what is no file: a pipe, which cannot be read twice, would make its reader wait for ever."""
    if not Path(path).is_file():
        raise UnreadableAudioError(f"cannot read '{path}': {_reason(path, FileNotFoundError())}")


def _check_header(path: str | Path, frames: int, rate: int) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UnreadableAudioError(f"cannot read '{path}': its rate is {rate} Hz, expected {LOWEST_RATE} to {HIGHEST_RATE:,} Hz")
    if frames < 1:
        raise UnreadableAudioError(f"cannot read '{path}': it holds no samples")
    if frames > _MAX_FRAMES:
        raise UnreadableAudioError(f"cannot read '{path}': its header does not say how long it is")
    with Path(path).open("rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        # libsndfile reads what is left of a truncated WAV without a word
        announced, found = struct.unpack("<I", head[4:8])[0] + 8, Path(path).stat().st_size
        if announced < _RIFF_STREAMED and found < 0.99 * announced:
            raise UnreadableAudioError(f"cannot read '{path}': truncated, {found} bytes of {announced}")


def _reason(path: str | Path, error: Exception) -> str:
    if Path(path).is_dir():
        return "it is a folder"
    if not Path(path).is_file():
        return "it is not a regular file" if Path(path).exists() else "no such file"
    if Path(path).stat().st_size == 0:
        return "the file is empty"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    text = str(error).split(": ", 1)[-1] if isinstance(error, soundfile.SoundFileError) else str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
