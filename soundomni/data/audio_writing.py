"""Writing audio files in every format of the commands, all or nothing.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

from soundomni.core.errors import DataError, message_of
from soundomni.core.files.whole_files import write_whole
from soundomni.data.audio_formats import FORMATS, AudioFormat, check_format, find_format

_BLOCK = 65536  # samples written at once: libsndfile puts a block of Vorbis on its stack, where long ones crash
_LARGEST_WAV = 2**32 - 2**16  # its header counts bytes in 32 bits


def write_audio(path: str | Path, waveform: np.ndarray, rate: int, *, format: str | None = None) -> float:
    """Write a clip, all or nothing, and return the gain that was applied to it.

    Args:
        path: file to write; its directory must exist.
        waveform: float `[C, S]`, full scale 1.
        rate: sample rate in Hz; it is never changed.
        format: one of FORMATS; None for the one of the path's suffix, 16 bits for `.wav`.

    Returns:
        1, or 1 / peak if the peak is above full scale: nothing is ever clipped. Floats have no full scale, so "wav32f"
        always returns 1.

    Raises:
        DataError: the waveform is not `[C, S]` with S > 0 or not finite, the format does not support its rate or
            channels, or the file cannot be written.
    """
    target, samples = Path(path), np.asarray(waveform, dtype=np.float32)
    name = _format_of(target) if format is None else format
    kind = find_format(name)
    if samples.ndim != 2 or samples.size == 0:
        raise DataError(f"cannot write '{target}': its samples have shape {samples.shape}; expected [C, S]")
    if not np.isfinite(samples).all():
        raise DataError(f"cannot write '{target}': it has samples that are not finite")
    check_format(name, sample_rate=rate, channels=len(samples))
    gain = 1.0 if name == "wav32f" else 1.0 / max(1.0, float(np.abs(samples).max()))
    try:
        encoded = _encode(samples, rate, kind, np.float32(gain))
    except soundfile.SoundFileError as error:
        raise DataError(f"cannot write '{target}' as {kind.described}: {message_of(error)}") from error
    _replace(target, encoded)
    return gain


def write_wav(path: str | Path, waveform: np.ndarray, rate: int) -> float:
    """Write `[C, S]` as 16-bit WAV; see `write_audio`."""
    return write_audio(path, waveform, rate, format="wav")


def _format_of(path: Path) -> str:
    for name, kind in FORMATS.items():
        if path.suffix.lower() == kind.suffix:
            return name
    suffixes = sorted({kind.suffix for kind in FORMATS.values()})
    raise DataError(f"cannot write '{path}': its suffix is '{path.suffix}'; expected one of {', '.join(suffixes)}, or a format by name")


def _encode(samples: np.ndarray, rate: int, kind: AudioFormat, gain: np.float32) -> memoryview:
    """Return a file's bytes. They are made in memory, because libsndfile does not report a full disk."""
    size = samples.size * (kind.bits or 0) // 8
    if kind.container == "WAV" and size > _LARGEST_WAV:
        raise DataError(f"a WAV file can have at most 4 GB, but this clip takes {size / 1e9:.1f} GB. Use flac, or write it in parts")
    buffer = io.BytesIO()
    lossy = {"compression_level": 0.0} if kind.bits is None else {}
    with soundfile.SoundFile(
        buffer, "w", samplerate=rate, channels=len(samples), format=kind.container, subtype=kind.subtype, **lossy
    ) as file:
        for first in range(0, samples.shape[1], _BLOCK):
            file.write(_quantized(samples[:, first : first + _BLOCK].T * gain, kind.bits))
    return buffer.getbuffer()


def _quantized(block: np.ndarray, bits: int | None) -> np.ndarray:
    """Return float32 `[S, C]` as libsndfile expects it: integers rounded to nearest, or floats as they are."""
    if bits == 16:
        return np.rint(block * np.float32(2**15 - 1)).astype(np.int16)
    if bits == 24:  # libsndfile uses the upper 24 of 32 bits
        return np.rint(block.astype(np.float64) * (2**23 - 1)).astype(np.int32) << 8
    return np.ascontiguousarray(block)


def _replace(target: Path, data: memoryview) -> None:
    """Write a whole file. Raise DataError if that fails."""
    try:
        write_whole(target, data)
    except OSError as error:
        reason = f"no such directory '{target.parent.absolute()}'" if not target.parent.is_dir() else error.strerror or str(error)
        raise DataError(f"cannot write '{target}': {reason}") from error
