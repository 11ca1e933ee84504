"""`~` in a spec is the home directory, everywhere, and errors give the place where was looked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch import nn

from soundomni.core.errors import CheckpointError
from soundomni.core.files.paths import at_home, local_path, place
from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.spec.load import load_spec
from soundomni.data.audiocaps import AudioCaps
from soundomni.vae.checkpoints.codec_weights import load_strict


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory, and the working directory as well."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [("~", "{home}"), ("~/a b", "{home}/a b"), ("./~", "./~"), ("a/~/b", "a/~/b"), ("./a", "./a"), ("~nobody-here/a", "~nobody-here/a")],
)
def test_only_a_leading_tilde_is_expanded(home: Path, given: str, expected: str) -> None:
    assert at_home(given) == expected.format(home=home) and local_path(given) == Path(expected.format(home=home))


def test_places_are_absolute(home: Path) -> None:
    assert place("a/b") == f"'a/b' ({home}/a/b)" and place("~/a") == f"'~/a' ({home}/a)" and place(home) == f"'{home}'"


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("train.run_dir", lambda spec: spec.train.run_dir),
        ("model.tokenizer.path", lambda spec: spec.model.tokenizer.path),
    ],
)
def test_paths_of_a_spec_begin_at_home(home: Path, key: str, read: object) -> None:
    from_override = load_spec(["demo"], [(key, "~/there")], base={})
    section, *names = key.split(".")
    tree: dict[str, object] = {names[-1]: "~/there"}
    layer = {section: tree if len(names) == 1 else {names[0]: tree}}
    from_file = load_spec(["demo", layer], base={})
    assert read(from_override) == read(from_file) == f"{home}/there"  # type: ignore[operator]


def test_a_model_to_start_from_is_looked_for_at_home(home: Path) -> None:
    with pytest.raises(CheckpointError, match=f"'{home}/model' is neither a model directory"):
        load_spec_with_start([], [("model.start", "~/model")])
    with pytest.raises(CheckpointError, match=f"'mine' is neither a model directory .*; looked for '{home}/mine'"):
        load_spec_with_start([], [("model.start", "mine")])


def test_plugins_look_at_home(home: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"no weights at '~/a.safetensors' \({home}/a.safetensors\)"):
        load_strict(nn.Linear(1, 1), "~/a.safetensors")
    (home / "clips").mkdir()
    soundfile.write(home / "clips/a_1.wav", np.zeros(800), 8000)
    (home / "caps.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,a,1,silence\n")
    assert len(AudioCaps(csv="~/caps.csv", audio_dir="~/clips")) == 1
