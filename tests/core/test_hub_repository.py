"""Models of the Hugging Face Hub, fetched from and pushed to a small server of its endpoints."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, serving, sha
from huggingface_hub import constants
from tiny_models import TOKENIZER, make_model, model_spec

from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.directory import Origin, find_model, read_origin, spec_block
from soundomni.core.pretrained.hub import parse_repository
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.pretrained.start import KEPT_FILE, kept_text, read_kept
from soundomni.core.spec import yaml_text
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.schema import Slot, Spec
from soundomni.train.start_weights import open_start

ROOT = Path(__file__).parents[2]
OTHERS = {
    "modeling.py": b"raise SystemExit(9)",
    "weights.pkl": pickle.dumps([1]),
    "more/model.safetensors": b"no",
    "optimizer.safetensors": b"no",
}
"""Files of a repository that are not of a model directory."""


def omni(**origin: str) -> SoundOmni:
    spec = Spec(model=model_spec(sampler=Slot("euler", {"num_steps": 2})))
    return SoundOmni(make_model().float(), spec, TOKENIZER, max_tokens=200, origin=Origin(**origin))


def audio(model: SoundOmni) -> np.ndarray:
    return model.generate(["one two"], seconds=0.3, seeds=4)[0].waveform


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with weights in shards."""
    return omni().save_pretrained(tmp_path_factory.mktemp("local") / "model", max_shard_bytes=20_000)


@pytest.fixture
def hub(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with `ann/tiny`, of which `v1` lacks the sampler's steps; what this process fetches goes to a cache of its own."""
    files = {file.name: file.read_bytes() for file in local.iterdir()} | OTHERS
    first = files | {"spec.yaml": files["spec.yaml"].replace(b"num_steps: 2", b"num_steps: 1")}
    with serving(
        Hub(commits={"ann/tiny": [first, files], "ann/gated": [files], "ann/data": [{"data.csv": b"1"}]}, gated={"ann/gated"})
    ) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace("https://huggingface.co", made.url))
        yield made


def test_names() -> None:
    assert parse_repository("ann/tiny") == ("ann/tiny", None)
    assert parse_repository("ann/tiny@v1") == ("ann/tiny", "v1") and parse_repository("a.b/c_d-e@x/y") == ("a.b/c_d-e", "x/y")
    for name in ("nano", "/ann/tiny", "ann/tiny/more", "./tiny", "../tiny", "ann/", "ann/tiny@", "ann/ti ny", "ann@v1/tiny", "Änn/tiny"):
        assert parse_repository(name) is None, name


def test_a_model_of_the_hub_is_the_local_one_and_nothing_else_is_fetched(hub: Hub, local: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = SoundOmni.from_pretrained("ann/tiny")
    assert np.array_equal(audio(model), audio(SoundOmni.from_pretrained(local)))
    fetched = [path for _, path in hub.fetched]
    assert sorted(fetched) == sorted(file.name for file in local.iterdir()) and len(fetched) == len(set(fetched))
    assert len([path for path in fetched if path.startswith("model-0")]) > 1
    assert f"ann/tiny at {sha('ann/tiny', 1)}\n" in capfd.readouterr().err
    assert SoundOmni.from_pretrained("ann/tiny@v1").spec.model.made.sampler.init_args == {"num_steps": 1}
    assert SoundOmni.from_pretrained("ann/tiny", revision=sha("ann/tiny", 0)).spec.model.made.sampler.init_args == {"num_steps": 1}


def test_the_cache_serves_without_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = audio(SoundOmni.from_pretrained("ann/tiny", cache_dir=tmp_path / "mine"))
    assert not (tmp_path / "cache").exists()
    asked = len(hub.fetched)
    assert np.array_equal(audio(SoundOmni.from_pretrained("ann/tiny", cache_dir=tmp_path / "mine", offline=True)), expected)
    with pytest.raises(
        CheckpointError, match="'ann/tiny' at 'v1' is not a local directory, and the Hub cache does not have all of its files .offline"
    ):
        SoundOmni.from_pretrained("ann/tiny@v1", cache_dir=tmp_path / "mine", offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert np.array_equal(audio(SoundOmni.from_pretrained("ann/tiny", cache_dir=tmp_path / "mine")), expected)
    with pytest.raises(CheckpointError, match="the Hub cache does not have all of its files .offline"):
        find_model("ann/tiny")
    assert len(hub.fetched) == asked


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "ann/absent",
            {},
            r"'ann/absent' is neither a directory here nor a repository at http://127.0.0.1:\d+ that this account may read; ",
        ),
        ("ann/tiny@v7", {}, "'ann/tiny' has no revision 'v7'; give a branch, a tag or a commit"),
        ("ann/gated", {}, r"'ann/gated' is gated: ask for access at http://127.0.0.1:\d+/ann/gated, then log in"),
        ("ann/data", {}, "the Hub repository 'ann/data' is not a model directory: it has no spec.yaml"),
        ("ann/tiny@v1", {"revision": "main"}, "names a revision, and 'main' was given as well"),
        ("nano", {"revision": "v1"}, "'nano' is not a Hub repository"),
        ("absent", {}, "'absent' is neither a model directory nor a shipped model"),
    ],
)
def test_what_the_hub_does_not_give_is_told_in_one_line(hub: Hub, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        SoundOmni.from_pretrained(name, **options)
    assert "\n" not in str(caught.value)


def test_a_directory_comes_before_a_repository_of_its_name(hub: Hub, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "tiny").symlink_to(local)
    assert find_model("ann/tiny") == Path("ann/tiny") and not hub.fetched
    with pytest.raises(
        CheckpointError, match="'ann/gated' is not there; it cannot mean a Hub repository, because there is a folder 'ann' here"
    ):
        find_model("ann/gated")
    with pytest.raises(CheckpointError, match="model.start: 'ann/gated' is not there; .* Make one with"):
        load_spec_with_start([], [("model.start", "ann/gated")])


def test_a_spec_may_start_from_the_hub_without_its_weights(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = load_spec_with_start([], [("model.start", "ann/tiny@v1")])
    assert spec.model.made.sampler.init_args["num_steps"] == 1 and spec.model.backbone.init_args["hidden_dim"] == 32
    (tmp_path / "start.yaml").write_text("model: {start: ann/tiny@v1}\n")
    assert main(["spec", "validate", str(tmp_path / "start.yaml")]) == 0
    assert "the weights of 'ann/tiny@v1' were not fetched; `soundomni train` compares their shapes" in capfd.readouterr().err
    assert {name for _, name in hub.fetched} == {"spec.yaml", "config.json", "tokenizer.json"}
    assert find_model("ann/tiny@v1", offline=True, weights=False).name == sha("ann/tiny", 0)
    with pytest.raises(
        CheckpointError, match="the Hub cache does not have all of its files .offline|has no weights: .* the cache lacks them"
    ):
        find_model("ann/tiny@v1", offline=True)
    assert SoundOmni.from_pretrained("ann/tiny@v1").spec.model.made.sampler == spec.model.made.sampler


def test_a_start_of_the_hub_is_opened_and_kept_in_one_commit(hub: Hub, tmp_path: Path) -> None:
    spec = resolve(load_spec_with_start([], [("model.start", "ann/tiny")]))
    newest, first = open_start(spec), open_start(spec, commit=sha("ann/tiny", 0))
    assert newest is not None and first is not None
    assert [one.model.commit for one in (newest, first)] == [sha("ann/tiny", 1), sha("ann/tiny", 0)]
    assert first.directory.name == sha("ann/tiny", 0) and first.model.layer["sampler"]["init_args"] == {"num_steps": 1}
    (tmp_path / KEPT_FILE).write_text(kept_text(first.model))
    assert read_kept(tmp_path) == first.model


def test_what_is_pushed_comes_back(hub: Hub, local: Path) -> None:
    model = omni(license="Apache-2.0", source="Some-7B")
    model.model.made().normalizer.std.mul_(1.5)
    address = model.push_to_hub("ann/new", private=True, token="hf_mine", commit_message="First")
    assert address == f"{hub.url}/ann/new/commit/{sha('ann/new', 1)}" and hub.private["ann/new"]
    assert set(hub.tokens) == {"Bearer hf_mine"}
    again = SoundOmni.from_pretrained("ann/new")
    assert np.array_equal(audio(again), audio(model)) and again.origin == Origin("Apache-2.0", "Some-7B") and again.max_tokens == 200
    card = hub.commits["ann/new"][-1]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: soundomni\npipeline_tag: text-to-audio\nlicense: apache-2.0\n---\n")
    assert "Weights come from `Some-7B`. License of the weights: Apache-2.0." in card
    tree = card.partition("```yaml\n")[2].partition("```")[0]
    assert load_spec([yaml_text.parse(tree, "card")]).model == again.spec.model


def test_weights_of_an_older_commit_are_not_left_behind(hub: Hub) -> None:
    before = hub.commits["ann/tiny"][-1]
    assert "model.safetensors.index.json" in before
    omni().push_to_hub("ann/tiny", token="hf_mine", license="Own license", card="mine\n")
    after = hub.commits["ann/tiny"][-1]
    assert set(after) == {"spec.yaml", "config.json", "tokenizer.json", "README.md", "model.safetensors", *OTHERS}
    assert after["README.md"] == b"mine\n" and json.loads(after["config.json"])["license"] == "Own license"


def test_what_cannot_be_pushed_is_told(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="'tiny' is not a valid Hub repository name; expected owner/name"):
        omni().push_to_hub("tiny")
    assert main(["export", "nano", "--out", str(tmp_path / "out"), "--private"]) == 2
    assert main(["export", "nano", "--out", str(tmp_path / "out"), "--push", "ann/new@v1"]) == 2
    assert main(["export", "nano", "--out", str(tmp_path / "out"), "--push", "ann/new", "--format", "soundomni"]) == 2
    assert not (tmp_path / "out").exists() and not hub.tokens


def test_cards_name_licenses_as_the_hub_knows_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def card(given: str | None, **origin: str) -> str:
        return (omni(**origin).save_pretrained(folder, license=given) / "README.md").read_text()

    assert "license" not in card(None)
    assert "license: mit\n" in card("MIT")
    theirs = card(None, source="theirs")
    assert "license: unknown\n" in theirs and "unknown; ask whoever" in theirs
    assert "license: other\nlicense_name: Stability AI Community\n" in card(None, license="Stability AI Community")
    config = json.loads((folder / "config.json").read_text())
    older = {key: value for key, value in config.items() if key != "license"} | {"licence": "Theirs"}
    (folder / "config.json").write_text(json.dumps(older))
    assert read_origin(folder).license == "Theirs", "older files spell the key so"
    (folder / "config.json").write_text(json.dumps(config | {"license": 7}))
    with pytest.raises(CheckpointError, match="license is 7; expected text or null"):
        SoundOmni.from_pretrained(folder)


@pytest.mark.parametrize("text", ["a\n---\nlicense: mit\n---\n# Hello", "x\u2028y", "\x1b[2J", "x" * 301])
@pytest.mark.parametrize("key", ["source", "license"])
def test_what_a_config_says_of_its_origin_is_one_short_line(key: str, text: str, tmp_path: Path) -> None:
    folder = omni().save_pretrained(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: text}))
    with pytest.raises(CheckpointError, match=f"{key} is .*; expected one line of at most 300 characters. Shorten it"):
        SoundOmni.from_pretrained(folder)


def test_no_text_of_a_config_is_markup_in_a_card(tmp_path: Path) -> None:
    texts = ("<script>x</script>", "[a](http://b)", "`</code><b>`", "# **x** | y", "!!python/name:os.system", "---", '"x": {')
    for text in texts:
        written = (omni(source=text, license=text).save_pretrained(tmp_path / "model") / "README.md").read_text()
        front, _, rest = written.removeprefix("---\n").partition("\n---\n")
        assert yaml_text.parse(front, "card")["license_name"] == text.replace("<", "").replace(">", "")
        line = next(line for line in rest.splitlines() if line.startswith("Weights come from "))
        source, _, license = line.removeprefix("Weights come from `").partition("`. License of the weights: ")
        assert not set("`<>|") & set(source) and not re.search(r"(?<!\\)[<>`*\[\]#|!]", license), line
        assert SoundOmni.from_pretrained(tmp_path / "model").origin == Origin(text, text)


def test_texts_of_a_spec_stay_in_their_block() -> None:
    model = omni()
    own = model.spec.model
    codec = replace(own.codec, init_args={"note": "a\n\n````\n# Hello"})
    modalities = {**own.modalities, "latent": replace(own.made, codec=codec)}
    block = spec_block(replace(model.spec, model=replace(own, modalities=modalities)))
    assert block.count("`````") == 2 and block.endswith("`````\n")


@pytest.mark.long
def test_commands_take_and_push_models_of_the_hub(hub: Hub, local: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "kept"),
        "HF_TOKEN": "hf_env",
        "PYTHONPATH": str(ROOT),
    }

    def run(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "soundomni", *map(str, arguments)]
        return subprocess.run(command, env=environment | settings, capture_output=True, text=True, timeout=120, check=False)

    made = run("generate", "--model", "ann/tiny", "--prompt", "one", "--seconds", "0.2", "--out", tmp_path / "online")
    assert made.returncode == 0 and f"ann/tiny at {sha('ann/tiny', 1)}" in made.stderr, made.stderr
    pushed = run("--json", "export", local, "--out", tmp_path / "out", "--push", "ann/pushed")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["pushed"] == f"{hub.url}/ann/pushed/commit/{sha('ann/pushed', 1)}"
    assert hub.commits["ann/pushed"][-1]["spec.yaml"] == (local / "spec.yaml").read_bytes() and not hub.private["ann/pushed"]
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    again = run("generate", "--model", "ann/tiny", "--prompt", "one", "--seconds", "0.2", "--out", tmp_path / "without", **gone)
    assert again.returncode == 0, again.stderr
    first, second = (sorted((tmp_path / name).glob("*.wav"))[0].read_bytes() for name in ("online", "without"))
    assert first == second
    failed = run("generate", "--model", "ann/pushed", "--prompt", "one", "--out", tmp_path / "failed", **gone)
    assert failed.returncode == 2 and "cannot be reached" in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
