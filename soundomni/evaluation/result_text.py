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
    keeps = found.keeps_waveform
    at_codec, at_file = (_measures_text(rounded(one), keeps_waveform=keeps) for one in (found.at_codec, found.at_file))
    here = f"codec at {found.codec_rate} Hz, keeps 0-{found.kept_hz:g} Hz: {at_codec}"
    if found.codec_rate == found.file_rate:
        return f"{here}; the file has the same rate"
    lost = f"{100 * found.energy_above:.1f} % of its energy above {found.kept_hz:g} Hz"
    return f"{here}; file at {found.file_rate} Hz: {at_file}, {lost}"


def _measures_text(measures: Measures, *, keeps_waveform: bool = True) -> str:
    """Return the measures of one file as a line.

    >>> _measures_text({"si_sdr": 21.04, "stft_distance": 0.1, "mel_distance": 0.5})
    'SI-SDR 21.04 dB  STFT 0.1  mel 0.5 dB'
    >>> _measures_text({"si_sdr": None, "stft_distance": None, "mel_distance": 0.0})
    'SI-SDR undefined (silence)  STFT undefined (silence)  mel 0.0 dB'
    >>> _measures_text({"si_sdr": None, "stft_distance": 0.1, "mel_distance": 0.5}, keeps_waveform=False)
    'SI-SDR n/a (no phases)  STFT 0.1  mel 0.5 dB'
    """
    forms = {"si_sdr": ("SI-SDR", " dB"), "stft_distance": ("STFT", ""), "mel_distance": ("mel", " dB")}
    texts = []
    for name, (title, unit) in forms.items():
        applies = keeps_waveform or name != "si_sdr"
        undefined = "undefined (silence)" if applies else "n/a (no phases)"
        texts.append(f"{title} {undefined if measures[name] is None else f'{measures[name]}{unit}'}")
    return "  ".join(texts)
