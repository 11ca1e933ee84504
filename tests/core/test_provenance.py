"""Names in shipped specs, runs and model directories mean what they meant when they were written, whatever else is installed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soundomni.cli.main import main
from soundomni.core.errors import PluginError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.spec import registry
from soundomni.core.spec.load import load_spec, resolve, shipped_specs, spec_to_dict
from soundomni.core.spec.provenance import lasting_names, read_record, settle_names
from tests.cli.conftest import TINY

CODEC = "from soundomni.vae.mdct import MDCTCodec\nclass Codec(MDCTCodec): ...\n"


@pytest.fixture
def rival(install: Callable[..., Path]) -> Callable[[], None]:
    """Returns a function that installs a distribution which registers every name of soundomni's plugins anew."""

    def put() -> None:
        groups = {f"soundomni.{kind}s": {e.name: "rival_plugins:Nothing" for e in registry.entries(kind)} for kind in registry.KINDS}
        install("rival-audio", groups=groups, modules={"rival_plugins": "class Nothing: ..."})

    return put


@pytest.fixture
def acme(install: Callable[..., Path]) -> Callable[..., Path]:
    """Returns a function that installs a distribution with the codec acme-vae."""

    def put(name: str = "acme-audio", version: str = "1.2", codec: str = "acme-vae") -> Path:
        module = f"{name.replace('-', '_')}_codec"
        return install(name, groups={"soundomni.codecs": {codec: f"{module}:Codec"}}, modules={module: CODEC}, version=version)

    return put


@pytest.mark.parametrize("name", [*shipped_specs(), "nano.yaml"])
def test_a_shipped_spec_means_soundomnis_own_plugins(rival: Callable[[], None], name: str) -> None:
    before = spec_to_dict(resolve(load_spec_with_start([name], start="if-here")))
    rival()
    after = resolve(load_spec_with_start([name], start="if-here"))
    if after.stages is None:
        codec = after.codec.codec if after.codec is not None else after.model.codec
        assert codec.class_path.startswith("soundomni:")
    assert settle_names(lasting_names(spec_to_dict(after)), {}) == spec_to_dict(after)
    assert lasting_names(spec_to_dict(after)) == before


def test_a_layer_that_names_another_slot_leaves_the_others_what_they_are(rival: Callable[[], None], tmp_path: Path) -> None:
    rival()
    layer = tmp_path / "mine.yaml"
    layer.write_text("sampler: {init_args: {num_steps: 3}}\ntrain: {steps: 5}\n")
    spec = load_spec(["demo", layer], [("model.objective", "soundomni:x-prediction")])
    assert spec.model.made.sampler.class_path.startswith("soundomni:") and spec.model.made.sampler.init_args["num_steps"] == 3
    assert spec.train is not None and spec.train.optimizer.rule.class_path.startswith("soundomni:")


@pytest.mark.parametrize(
    ("key", "text", "kind"),
    [
        ("sampler", "euler", "sampler"),
        ("model.codec", "{class_path: mdct, init_args: {frame_size: 64}}", "codec"),
        ("train.optimizer.rule", "adamw", "optimizer"),
        ("train.trackers", "[tensorboard]", "tracker"),
    ],
)
def test_ones_own_ambiguous_name_is_asked_for_its_distribution(rival: Callable[[], None], key: str, text: str, kind: str) -> None:
    rival()
    with pytest.raises(PluginError) as caught:
        load_spec(["demo"], [(key, text)])
    message = str(caught.value)
    assert message.startswith(f"{key}") and "is claimed by several distributions. Write one of: rival-audio:" in message
    assert f"{kind} '" in message and ", soundomni:" in message


def test_defaults_of_the_schema_are_soundomnis_own(rival: Callable[[], None], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = TINY.replace("RUN", str(tmp_path))
    for kind in registry.KINDS:
        for entry in registry.entries(kind):
            for written in (f"class_path: {entry.name},", f": {entry.name},", f": {entry.name}}}", f": {entry.name}\n"):
                text = text.replace(written, written.replace(entry.name, f"soundomni:{entry.name}"))
    path.write_text(text.replace("cosine", "constant"))
    rival()
    train = load_spec([path]).train
    assert train is not None and train.optimizer.rule.class_path == "soundomni:adamw"


def test_a_list_to_measure_on_is_made_of_soundomnis_own_sounds(rival: Callable[[], None]) -> None:
    from soundomni.evaluation import open_list, shipped_lists

    rival()
    assert open_list(shipped_lists()[0]).slot.class_path.startswith("soundomni:")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a model exported from it, and the distribution of its codec, acme-audio."""
    folder = tmp_path_factory.mktemp("made")
    info = folder / "site-acme-audio" / "acme_audio-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: acme-audio\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[soundomni.codecs]\nacme-vae = acme_audio_codec:Codec\n")
    (info.parent / "acme_audio_codec.py").write_text(CODEC)
    text = TINY.replace("RUN", str(folder / "run")).replace("steps: 4", "steps: 1").replace("class_path: mdct", "class_path: acme-vae")
    (folder / "mine.yaml").write_text(text.replace("cosine", "constant"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(info.parent))
        assert main(["train", "--config", str(folder / "mine.yaml"), "--train.validation.every=0"]) == 0
        export(folder / "run", folder / "model")
    return folder


@pytest.fixture
def acme_audio(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs acme-audio, and returns the folder with what was made with it."""
    monkeypatch.syspath_prepend(str(made / "site-acme-audio"))
    return made


def export(run: Path, out: Path) -> Path:
    assert main(["export", str(run), "--out", str(out)]) == 0
    return out


def slots_of(entries: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {f"{entry['distribution']} {entry['version']}": entry["slots"] for entry in entries}


def test_runs_and_models_record_the_distribution_of_each_slot(made: Path) -> None:
    assert slots_of(json.loads((made / "run" / "lock.json").read_text()))["acme-audio 1.2"] == ["model.codec"]
    recorded = slots_of(json.loads((made / "model" / "config.json").read_text())["distributions"])
    assert recorded.pop("acme-audio 1.2") == ["model.codec"]
    ((own, slots),) = recorded.items()
    assert own.startswith("soundomni ") and {"sampler", "model.connectors.latent", "model.backbone"} <= set(slots)
    assert "plugins of acme-audio 1.2: `pip install acme-audio`" in (made / "model" / "README.md").read_text()


def test_a_rival_changes_nothing_for_what_was_made_before(
    acme_audio: Path, rival: Callable[[], None], acme: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(acme_audio / "run", run)
    rival()
    acme("other-audio")
    spec = SoundOmni.from_pretrained(acme_audio / "model").spec
    assert spec.model.codec.class_path == "acme-audio:acme-vae" and spec.model.made.sampler.class_path == "soundomni:euler"
    again = export(run, tmp_path / "again")
    assert slots_of(json.loads((again / "config.json").read_text())["distributions"])["acme-audio 1.2"] == ["model.codec"]
    # The run goes on with its own spec, which says which plugins are meant.
    command = ["train", "--config", str(run / "spec.yaml"), f"--train.run_dir={run}", "--train.steps=2"]
    capsys.readouterr()
    assert main(command) == 0, capsys.readouterr().err
    assert "resuming from step 1" in capsys.readouterr().err


def test_a_model_made_among_rivals_is_read_without_them(
    acme_audio: Path, rival: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(sys.path)
    rival()
    model = export(acme_audio / "run", tmp_path / "model")
    assert "soundomni:euler" in (model / "spec.yaml").read_text()
    monkeypatch.setattr(sys, "path", before)
    assert SoundOmni.from_pretrained(model, overrides={"sampler.num_steps": "3"}).spec.model.made.sampler.class_path == "euler"


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (None, "is not installed here; this model was made with acme-audio 1.2: pip install acme-audio"),
        (("acme-audio", "2.0", "new-vae"), "is not in acme-audio 2.0, which is installed here; this model was made with acme-audio 1.2: "),
        (("other-audio", "7", "acme-vae"), "is not installed here; this model was made with acme-audio 1.2: pip install acme-audio"),
    ],
)
def test_who_lacks_the_plugin_of_a_model_is_told_where_it_was_from(
    made: Path,
    acme: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    there: tuple[str, str, str] | None,
    expected: str,
) -> None:
    if there is not None:
        acme(*there)
    for command in (["generate", "--model", str(made / "model"), "--prompt", "a tone"], ["export", str(made / "run")]):
        capsys.readouterr()
        assert main([*command, "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"soundomni: error: model.codec: codec 'acme-vae' {expected}")
    replaced = "{class_path: mdct, init_args: {sample_rate: 8000}}"
    assert load_spec([made / "model" / "spec.yaml"], [("model.codec", replaced)], base={}).model.codec.class_path == "mdct"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        '{"plugins": {}}',
        '{"distributions": 5}',
        '{"distributions": [{"slots": ["sampler"]}]}',
        '{"distributions": [{"distribution": "x; rm -rf ~", "version": "1", "slots": ["sampler"]}]}',
        '{"distributions": [{"distribution": "acme", "version": "1 && reboot", "slots": ["sampler"]}]}',
        '{"distributions": [{"distribution": "--index-url=http://x", "version": "1", "slots": ["sampler"]}]}',
        '{"distributions": [{"distribution": "acme", "version": "1", "slots": [["sampler"]]}]}',
    ],
)
def test_a_record_of_strangers_is_read_with_care(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    assert read_record(file) == {}
    assert len(caplog.messages) == (0 if content == '{"plugins": {}}' else 1)
    assert not any("\n" in message for message in caplog.messages)


def test_models_without_a_record_mean_soundomnis_own_plugins(rival: Callable[[], None], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "spec.yaml").write_text("\n".join(line for line in TINY.splitlines()).partition("\ndata:")[0])
    (model / "config.json").write_text('{"format": 1, "plugins": {"sampler": "euler"}}')
    rival()
    assert load_spec([model / "spec.yaml"]).model.made.sampler.class_path == "soundomni:euler"
    (model / "config.json").unlink()  # now it is a file of one's own
    with pytest.raises(PluginError, match="Write one of: rival-audio:mot, soundomni:mot"):
        load_spec([model / "spec.yaml"])


def test_a_start_model_of_others_is_kept_by_its_lasting_name(acme_audio: Path, acme: Callable[..., Path], tmp_path: Path) -> None:
    from soundomni.core.pretrained.start import kept_text, read_kept, read_start

    start = read_start("made", acme_audio / "model")
    assert start.layer["model"]["codec"]["class_path"] == "acme-vae"
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "start.yaml").write_text(kept_text(start))
    assert "acme-audio:acme-vae" in (kept / "start.yaml").read_text()
    assert read_kept(kept) == start
    acme("other-audio")
    again = read_kept(kept)
    assert again is not None and again.layer["model"]["codec"]["class_path"] == "acme-audio:acme-vae"
