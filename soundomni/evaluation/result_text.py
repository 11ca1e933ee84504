"""Scores as people read them: with their unit and a sensible number of digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soundomni.evaluation.tasks.reconstruction import rounded

if TYPE_CHECKING:
    from soundomni.evaluation.tasks.reconstruction import Comparison, Measures

_CODEC_FORMS = {"si_sdr": "{:.1f} dB", "mel_distance": "{:.2f} dB", "stft_distance": "{:.3f}"}
_FORMS = {
    **_CODEC_FORMS,
    **{f"{name}_file": form for name, form in _CODEC_FORMS.items()},
    "cider_d": "{:.2f}",
    "kl": "{:.3f}",
    "level_step": "{:.2f} dB",
    **dict.fromkeys(("novelty", "novelty_of_data"), "{:.2f}"),
    **dict.fromkeys(("bandwidth", "bandwidth_of_data"), "{:.0f} Hz"),
}


def score_text(name: str, value: float) -> str:
    """Return the value of a score with its unit.

    >>> score_text("right", 0.5), score_text("si_sdr", 21.04)
    ('50.0 %', '21.0 dB')
    """
    if name in _FORMS:
        return _FORMS[name].format(value)
    if name.startswith("distance at"):
        return f"{value:.2f}"
    return f"{value:.3f}" if name.startswith(("clap_", "frechet_", "kernel_")) else f"{100 * value:.1f} %"


def comparison_text(found: Comparison) -> str:
    """Return one line that says how a file came back through a codec."""
    here = f"codec at {found.codec_rate} Hz, keeps 0-{found.kept_hz:g} Hz: {_measures_text(rounded(found.at_codec))}"
    if found.codec_rate == found.file_rate:
        return f"{here}; the file has the same rate"
    lost = f"{100 * found.energy_above:.1f} % of its energy above {found.kept_hz:g} Hz"
    return f"{here}; file at {found.file_rate} Hz: {_measures_text(rounded(found.at_file))}, {lost}"


def _measures_text(measures: Measures) -> str:
    """Return the measures of one file as a line.

    >>> _measures_text({"si_sdr": 21.04, "stft_distance": 0.1, "mel_distance": 0.5})
    'SI-SDR 21.04 dB  STFT 0.1  mel 0.5 dB'
    >>> _measures_text({"si_sdr": None, "stft_distance": None, "mel_distance": 0.0})
    'SI-SDR undefined (silence)  STFT undefined (silence)  mel 0.0 dB'
    """
    forms = {"si_sdr": ("SI-SDR", " dB"), "stft_distance": ("STFT", ""), "mel_distance": ("mel", " dB")}
    values = ((title, unit, measures[name]) for name, (title, unit) in forms.items())
    return "  ".join(f"{title} undefined (silence)" if value is None else f"{title} {value}{unit}" for title, unit, value in values)
