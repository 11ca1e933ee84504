"""Reading audio files. audio_writing.py writes them. Resampling and channels are also available here, although core has
them, because inference needs them without files.

Shape letters: C audio channels, S samples. Rates are in Hz, waveforms float32 with full scale at 1.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.errors import UnreadableAudioError
from soundomni.core.waveform import PEAK_LIMIT, fit_length, match_channels, resample, resampled_length
from soundomni.data.aac import AAC_SUFFIXES, has_pyav
from soundomni.data.audio_writing import write_wav
from soundomni.data.decoder import Opened, Place, opened, size_of

__all__ = ["SUFFIXES", "audio_info", "fit_announced", "match_channels", "read_audio", "resample", "resampled_length", "write_wav"]

SUFFIXES = (
    *(".8svx", ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".mp1", ".mp2", ".mp3", ".nist", ".oga", ".ogg", ".opus"),
    *(".rf64", ".snd", ".sph", ".voc", ".w64", ".wav", ".wave"),
    *(AAC_SUFFIXES if has_pyav() else ()),
)
"""Suffixes of the files that count as audio in listings; AAC only counts if PyAV is installed."""

HEADER_THREADS = 8
"""Threads that read headers: opening many small files waits for the disk or the network, not for the processor."""

MOST_DECODED = 2**29
"""Number of bytes of float32 that any file may decode to."""

MOST_EXPANSION = 64
"""A larger file may decode to this many times its size, as speech at 24 kbit/s does; silence can exceed it widely."""


def audio_info(path: Place) -> tuple[int, int, int]:
    """Return (S, rate, C) as the file's header says, without decoding.

    Raise UnreadableAudioError if the file is missing, not audio, empty, or shorter than its header says.
    """
    with opened(path, look="ends") as file:
        return file.num_samples, file.rate, file.channels


def read_audio(path: Place, *, first: int = 0, num_samples: int | None = None, max_samples: int | None = None) -> tuple[np.ndarray, int]:
    """Decode a file (WAV, FLAC, OGG, MP3, AIFF and others; M4A with PyAV) and return float32 `[C, S]` and its rate.

    S is what `audio_info` says.

    Memory stays within the decoded audio and one block. Without `max_samples`, a file that would decode to more than
    512 MB and to more than 64 times its own size is refused before it is decoded.

    A part has the same samples as in the whole file. The decoder starts at the part if the format allows an exact
    start, otherwise at the beginning; the rest of the file is only examined once.

    Args:
        path: the file, or one that lies within another file or in memory (`decoder.Embedded`).
        first: the first sample to return.
        num_samples: number of samples to return from `first` on; None for all up to the end.
        max_samples: largest number of samples to return. A longer file is refused before it is decoded.

    Raise UnreadableAudioError, which names the path and the reason, if the file is missing, not audio, empty, truncated
    or damaged, if it is longer than allowed or ends before the requested part, or if it has samples that are not finite
    or not in [-1, 1].
    """
    is_part = first > 0 or num_samples is not None
    with opened(path, look="once" if is_part else "all") as file:
        count = file.num_samples - first if num_samples is None else num_samples
        if first < 0 or count < 1 or first + count > file.num_samples:
            asked = f"samples {first} to {first + count} were requested"
            raise UnreadableAudioError(f"cannot read '{path}': it has {file.num_samples} samples, {asked}")
        _check_size(path, count, file, max_samples)
        file.decoder.skip(first, seek=file.seekable(first))
        waveform, peak, done = np.empty((file.channels, count), np.float32), 0.0, 0
        for block in file.decoder.blocks(count):
            if not np.isfinite(block).all():
                raise UnreadableAudioError(f"cannot read '{path}': it has samples that are not finite")
            waveform[:, done : done + len(block)] = block.T
            peak, done = max(peak, float(block.max()), -float(block.min())), done + len(block)
    if done < count:
        raise UnreadableAudioError(
            f"cannot read '{path}': it is truncated or damaged; it decodes to {first + done} of {file.num_samples} samples"
        )
    if peak > PEAK_LIMIT:
        raise UnreadableAudioError(f"cannot read '{path}': samples reach {peak:.4g}; expected them within [-1, 1]")
    return waveform, file.rate


def fit_announced(waveform: np.ndarray, num_samples: int, rate: int, *, name: str) -> np.ndarray:
    """Return the waveform `[C, S]` as `[C, num_samples]`, padded with silence or cut at its end.

    Headers may be slightly off: MP3 headers estimate, and lossy codecs pad. A difference of more than 1 % and more than
    0.1 s is not rounding, but a truncated or replaced file. Raise UnreadableAudioError with `name` for such a file, and
    for an empty waveform.
    """
    found = waveform.shape[1]
    if found == 0 or abs(found - num_samples) > max(0.01 * num_samples, 0.1 * rate):
        raise UnreadableAudioError(f"cannot read '{name}': it decodes to {found} samples, but {num_samples} were announced")
    return fit_length(waveform, num_samples)


def _check_size(path: Place, count: int, file: Opened, max_samples: int | None) -> None:
    """Raise UnreadableAudioError for more samples than the caller allows, or than a file of this size may have."""
    if max_samples is not None:
        if count > max_samples:
            taken = f"it lasts {count / file.rate:.4g} s, but the limit here is {max_samples / file.rate:.4g} s"
            raise UnreadableAudioError(f"cannot read '{path}': {taken}. Cut it into shorter files")
        return
    decoded, stored = 4 * count * file.channels, size_of(path)
    if decoded > max(MOST_DECODED, MOST_EXPANSION * stored):
        raise UnreadableAudioError(
            f"cannot read '{path}': its {stored / 1e6:.3g} MB would decode to {decoded / 1e6:,.0f} MB ({count / file.rate:,.0f} s), but "
            f"a file this small may decode to at most {MOST_DECODED / 1e6:.0f} MB. Cut it into shorter files"
        )
