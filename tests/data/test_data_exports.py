"""What `soundomni.data` offers, and that asking for a part of it does not load the rest."""

import importlib
import subprocess
import sys

import pytest

import soundomni.data as data


@pytest.mark.parametrize(
    "module",
    [
        *("audio", "audio_writing", "best_fit", "captions", "packer", "spectrogram"),
        *("toys.analysis", "toys.pitch", "toys.toy_language", "toys.toy_synthesis"),
    ],
)
def test_light_modules_load_no_torch(module):
    program = f"import sys, soundomni.data.{module}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_every_name_is_there_and_comes_from_its_own_module():
    assert set(data.__all__) <= set(dir(data))
    for name in data.__all__:
        value = getattr(data, name)
        assert value is getattr(data, name)
        if hasattr(value, "__module__"):
            assert getattr(importlib.import_module(value.__module__), name) is value


def test_modules_never_take_the_place_of_a_name():
    program = (
        "import soundomni.data.best_fit, soundomni.data.audio_folder\n"
        "from soundomni.data import AudioFolder, pack_offline\n"
        "assert callable(pack_offline) and isinstance(AudioFolder, type)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'soundomni.data' has no attribute 'AudioFoldr'"):
        _ = data.AudioFoldr
