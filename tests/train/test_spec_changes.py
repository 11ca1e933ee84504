"""With which changes of its spec and of its data a run goes on, and how it says so."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_run import measured
from test_run_directory import change_state, newest
from tiny_spec import tiny_spec

from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.interfaces import Dataset, Item
from soundomni.core.spec.load import dump_spec, resolve, spec_to_dict
from soundomni.core.spec.schema import Spec
from soundomni.data.digest import MOST_BLOCKS, list_dataset
from soundomni.train.checkpoint import read_state
from soundomni.train.run import run_training
from soundomni.train.run_directory.spec_changes import check_allowed, check_unchanged


def folder(path: Path, names: str = "abcdefgh") -> Path:
    """A folder with a clip and a caption for each letter."""
    path.mkdir()
    for name in names:
        add(path, name)
    return path


def add(path: Path, name: str, caption: str = "noise") -> None:
    soundfile.write(path / f"{name}.wav", 0.1 * np.random.default_rng(ord(name)).standard_normal(3200), 8000)
    (path / f"{name}.txt").write_text(f"{caption} {name}")


def on(path: Path) -> str:
    source = f"{{class_path: audio-folder, init_args: {{path: '{path}'}}}}"
    return f"data.datasets={{toys: null, mine: {{source: {source}, tasks: {{generate: 1}}}}}}"


def forget(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Returns a spec as an earlier version of the library or of a plugin would have saved it."""
    tree = json.loads(json.dumps(tree))
    for key in keys:
        *above, last = key.split(".")
        inner = tree
        for name in above:
            inner = inner[name]
        del inner[last]
    return tree


@pytest.mark.parametrize(
    "key",
    [
        "model.backbone.init_args.rope_theta",
        "data.datasets.toys.source.init_args.variation",
        "train.optimizer.rule.init_args",
        "model.codec.init_args.companding",
        "train.precision",
        "data.condition_dropout",
    ],
)
def test_a_key_that_came_later_counts_only_if_it_is_set(key: str, tmp_path: Path) -> None:
    spec = resolve(tiny_spec(tmp_path / "run"))
    saved = spec_to_dict(spec)
    assert check_unchanged(forget(saved, key), spec, "it") == []


@pytest.mark.parametrize(
    ("override", "key", "option"),
    [
        ("model.backbone.rope_theta=5", "model.backbone.init_args.rope_theta", False),
        ("data.datasets.toys.source.variation=0.5", "data.datasets.toys.source.init_args.variation", True),
        ("train.precision=bf16", "train.precision", True),
        ("train.optimizer.lr=0.5", "train.optimizer.lr", True),
        ("data.tokens_per_batch=256", "data.tokens_per_batch", True),
        ("model.normalize=global", "model.normalize", False),
        ("train.lora={streams: [und]}", "train.lora", False),
    ],
)
def test_a_change_is_named_with_the_option_that_allows_it(override: str, key: str, option: bool, tmp_path: Path) -> None:
    before, after = (resolve(tiny_spec(tmp_path / "run", *overrides)) for overrides in ((), (override,)))
    saved = spec_to_dict(before)
    if "rope_theta" in key:  # which came later, and had its default while it was not there
        saved = forget(saved, key)
    with pytest.raises(CheckpointError, match=rf"{key.replace('.', '[.]')}.*; undo these changes") as caught:
        check_unchanged(saved, after, "it")
    assert (f"--allow-change {key}" in str(caught.value)) == option
    allowed = [key, key.rpartition(".")[0]]
    if option:
        assert all(check_unchanged(saved, after, "it", allowed=[one]) == [key] for one in allowed)
    else:
        with pytest.raises(CheckpointError, match="undo these changes, choose another"):
            check_unchanged(saved, after, "it", allowed=allowed)


SEVERAL = (
    "model.modalities.codes={codec: dac, connector: codes, objective: masked, sampler: maskgit}",
    "data.datasets.toys.tasks={describe: 1}",
)


@pytest.mark.parametrize(
    "override",
    [
        "model.modalities.latent.sampler.num_steps=7",
        "model.modalities.codes.sampler={class_path: maskgit, init_args: {iterations: [3]}}",
        "model.modalities.codes.guidance.scale=3",
        "model.modalities.latent.guidance={scale: 2, interval: [0.1, 0.9]}",
    ],
)
def test_sampler_and_guidance_of_each_of_several_modalities_may_change(override: str, tmp_path: Path) -> None:
    before, after = (resolve(tiny_spec(tmp_path / "run", *SEVERAL, *overrides)) for overrides in ((), (override,)))
    assert before != after and check_unchanged(spec_to_dict(before), after, "it") == []


@pytest.mark.parametrize(
    ("overrides", "override", "key", "option"),
    [
        (SEVERAL, "model.modalities.codes.codec.weights=other.safetensors", "model.modalities.codes.codec.init_args.weights", True),
        ((), "model.modalities.latent.sampler=heun", None, False),
        ((), "model.modalities.latent.codec.frame_size=32", "model.codec.init_args.frame_size", False),
        (SEVERAL, "model.modalities.codes.connector.std=0.1", "model.modalities.codes.connector.init_args.std", False),
        (SEVERAL, "model.modalities.latent.normalize=none", "model.modalities.latent.normalize", False),
        ((), SEVERAL[0], "model.modalities.codes", False),
        (SEVERAL, "model.modalities.codes=null", "model.modalities.codes", False),
    ],
)
def test_other_keys_of_modalities_are_named_in_full(
    overrides: tuple[str, ...], override: str, key: str | None, option: bool, tmp_path: Path
) -> None:
    before, after = (resolve(tiny_spec(tmp_path / "run", *overrides, *more)) for more in ((), (override,)))
    if key is None:
        assert check_unchanged(spec_to_dict(before), after, "it") == []
        return
    with pytest.raises(CheckpointError, match="undo these changes") as caught:
        check_unchanged(spec_to_dict(before), after, "it")
    told = str(caught.value)
    assert told.count(" -> ") == 1 and f"{key}: " in told and (f"--allow-change {key}" in told) == option
    if option:
        check_allowed([key], after)
        assert check_unchanged(spec_to_dict(before), after, "it", allowed=[key]) == [key]


def test_a_full_key_may_be_allowed_for_a_spec_in_short_keys(tmp_path: Path) -> None:
    before, after = (resolve(tiny_spec(tmp_path / "run", f"model.codec={{class_path: dac, init_args: {{weights: {w}}}}}")) for w in "ab")
    for key in ("model.codec.weights", "model.modalities.latent.codec.weights"):
        key = key.replace("weights", "init_args.weights")
        check_allowed([key], after)
        assert check_unchanged(spec_to_dict(before), after, "it", allowed=[key]) == ["model.codec.init_args.weights"]
    with pytest.raises(SpecError, match="--allow-change is 'model.modalities.code.codec'; expected a key of the spec"):
        check_allowed(["model.modalities.code.codec"], after)


def with_old_names(spec: Spec) -> dict[str, Any]:
    """Returns a spec as it was saved before its keys had their present spelling."""
    text = json.dumps(spec_to_dict(spec))
    for new, old in (("normalize", "normalise"), ("renormalize_min", "renormalise_min"), ("copy_initialize", "copy_initialise")):
        text = text.replace(f'"{new}"', f'"{old}"')
    tree: dict[str, Any] = json.loads(text)
    assert tree != spec_to_dict(spec)
    return tree


def test_keys_that_were_renamed_have_not_changed(tmp_path: Path) -> None:
    overrides = ("model.normalize=global", "model.backbone.copy_initialize=true", "train.steps=1")
    spec = resolve(tiny_spec(tmp_path / "run", *overrides))
    assert check_unchanged(with_old_names(spec), spec, "it") == []
    with pytest.raises(CheckpointError, match="model.normalize: 'global' -> 'half'"):
        check_unchanged(with_old_names(spec), resolve(tiny_spec(tmp_path / "run", *overrides, "model.normalize=half")), "it")
    run_training(spec)
    change_state(newest(tmp_path / "run"), spec=with_old_names(spec))
    assert run_training(tiny_spec(tmp_path / "run", *overrides, "train.steps=2")).step == 2


def test_an_argument_that_a_plugin_has_no_more_can_be_let_go(tmp_path: Path) -> None:
    spec = resolve(tiny_spec(tmp_path / "run"))
    saved = spec_to_dict(spec)
    saved["model"]["codec"]["init_args"]["dither"] = 3
    key = "model.codec.init_args.dither"
    with pytest.raises(CheckpointError, match=rf"{key}: 3 -> absent; .*--allow-change {key}"):
        check_unchanged(saved, spec, "it")
    check_allowed([key], spec)
    assert check_unchanged(saved, spec, "it", allowed=[key]) == [key]


def test_keys_that_cannot_change_are_left_out_of_the_options(tmp_path: Path) -> None:
    before, after = (resolve(tiny_spec(tmp_path / "run", *o)) for o in ((), ("train.optimizer.lr=0.5", "model.normalize=global")))
    with pytest.raises(CheckpointError, match="allow those that may change with --allow-change train.optimizer.lr, choose"):
        check_unchanged(spec_to_dict(before), after, "it")


@pytest.mark.parametrize(("key", "near"), [("train.optimiser.lr", "train.optimizer"), ("dat", "data"), ("lr", "")])
def test_a_key_that_no_spec_has_is_refused(key: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"--allow-change is '{key}'; expected a key of the spec.*{near}"):
        run_training(tiny_spec(tmp_path / "run"), allow_change=[key])
    assert not (tmp_path / "run").exists()


def test_rates_change_on_request_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text(dump_spec(tiny_spec(tmp_path / "run", "train.steps=2")))
    command = ["train", "--config", str(config)]
    assert main(command) == 0
    changed = [*command, "--train.optimizer.lr=0.5", "--train.schedule.warmup_steps=0", "--train.steps=4"]
    assert main(changed) == 2
    assert "--allow-change train.optimizer.lr --allow-change train.schedule.warmup_steps, choose" in capsys.readouterr().err
    assert main([*changed, "--allow-change", "train.optimizer", "--allow-change=train.schedule"]) == 0
    assert [line["lr"] for line in measured(tmp_path / "run")][2:] == [0.5, 0.5]
    assert main([*changed, "--train.steps=5"]) == 0, "it goes on with the new rates as they are"


@pytest.fixture(scope="module")
def on_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `sounds`, and a `run` of two steps on them."""
    base = tmp_path_factory.mktemp("folder")
    folder(base / "sounds")
    run_training(tiny_spec(base / "run", on(base / "sounds"), "train.steps=2"))
    return base


@pytest.fixture
def base(on_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(on_folder, tmp_path / "base"))


def go_on(base: Path, *allowed: str, sounds: str = "sounds", steps: int = 4) -> None:
    run_training(tiny_spec(base / "run", on(base / sounds), f"train.steps={steps}"), allow_change=("data.datasets.mine.source", *allowed))


def test_a_folder_that_moved_is_gone_on_with_bit_for_bit(base: Path) -> None:
    whole = Path(shutil.copytree(base, base.with_name("whole")))
    go_on(whole)
    (base / "sounds").rename(base / "elsewhere")
    with pytest.raises(CheckpointError, match=r"--allow-change data.datasets.mine.source.init_args.path"):
        run_training(tiny_spec(base / "run", on(base / "elsewhere"), "train.steps=4"))
    go_on(base, sounds="elsewhere")
    files = [hashlib.sha256((newest(path / "run") / "rank-00000.safetensors").read_bytes()).hexdigest() for path in (whole, base)]
    assert files[0] == files[1]


def swap(sounds: Path) -> str:
    (sounds / "c.wav").rename(sounds / "x.wav")
    (sounds / "c.txt").rename(sounds / "x.txt")
    return "has the same number of clips, and first differs at 'd.wav'"


def recaption(sounds: Path) -> str:
    (sounds / "e.txt").write_text("another caption")
    return "has the same number of clips, and first differs at 'e.wav'"


def lengthen(sounds: Path) -> str:
    soundfile.write(sounds / "b.wav", np.zeros(3300), 8000)
    return "has the same number of clips, and first differs at 'b.wav'"


def grow(sounds: Path) -> str:
    add(sounds, "k")
    return "has 9 clips instead of 8, and first differs at 'k.wav'"


def shrink(sounds: Path) -> str:
    (sounds / "h.wav").unlink()
    return "ends after 7 of 8 clips"


@pytest.mark.parametrize("change", [swap, recaption, lengthen, grow, shrink])
def test_other_data_are_named_and_gone_on_with_on_request(change: Any, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = change(base / "sounds")
    with pytest.raises(DataError, match=rf"dataset 'mine' {told}; restore it, or .*--allow-change data.datasets.mine$"):
        go_on(base)
    assert len(measured(base / "run")) == 2
    go_on(base, "data")
    assert "the data has changed: the run resumes with its samples in a new order" in capsys.readouterr().err
    go_on(base, steps=5)
    assert "the data changed" not in capsys.readouterr().err, "the checkpoint knows them now"
    assert [line["step"] for line in measured(base / "run")] == [1, 2, 3, 4, 5]
    assert read_state(newest(base / "run"))["progress"]["data"]["mixture"]["draws"] > 40


def test_a_dataset_is_added_and_taken_away_on_request(base: Path) -> None:
    folder(base / "more", "xyz")
    two = on(base / "sounds")[:-1] + ", more: {source: {class_path: audio-folder, init_args: {path: '%s'}}, tasks: {generate: 1}}}"
    spec = tiny_spec(base / "run", two % (base / "more"), "train.steps=3")
    with pytest.raises(CheckpointError, match=r"data.datasets.more"):
        run_training(spec)
    run_training(spec, allow_change=["data"])
    go_on(base, "data", steps=4)


def test_a_smaller_budget_is_gone_on_with_on_request(base: Path) -> None:
    spec = tiny_spec(base / "run", on(base / "sounds"), "train.steps=4", "data.tokens_per_batch=100")
    run_training(spec, allow_change=["data"])
    assert measured(base / "run")[-1]["tokens"] - measured(base / "run")[1]["tokens"] <= 4 * 100


def test_a_checkpoint_without_digests_is_taken_at_its_word(base: Path) -> None:
    change_state(newest(base / "run"), data=None)
    recaption(base / "sounds")
    go_on(base)


class Counted(Dataset):
    def __init__(self, captions: list[str]) -> None:
        self.captions, self.asked = captions, 0

    def __len__(self) -> int:
        return len(self.captions)

    def item(self, index: int) -> Item:
        self.asked += 1
        return Item(key=f"{index:06d}", num_samples=9, sample_rate=8000, captions=(self.captions[index],))

    def load(self, index: int) -> tuple[np.ndarray, int]:
        raise AssertionError("a listing decodes nothing")


def test_listings_stay_small_and_find_the_first_difference() -> None:
    captions = ["one"] * (MOST_BLOCKS + 5)
    first = list_dataset(Counted(captions))
    assert len(first.blocks) <= 8 * MOST_BLOCKS and first == list_dataset(Counted(captions))
    captions[1001] = "two"
    other = list_dataset(Counted(captions))
    assert other != first and other.first_difference(first) == 1000, "one digest covers two items"
    assert list_dataset(Counted(["a", "b"])).first_difference(list_dataset(Counted(["a"]))) == 1


def test_a_dataset_that_computes_its_items_is_not_gone_through(tmp_path: Path) -> None:
    class Computed(Counted):
        generated_from = "a seed"

    computed = Computed(["x"] * 5000)
    assert list_dataset(computed) == list_dataset(Computed(["x"] * 5000)) and computed.asked < 100
    Computed.generated_from = "another seed"
    assert list_dataset(computed) != list_dataset(Counted(["x"] * 5000))


def numpy_drawn(spec: Spec, **changes: Any) -> list[Any]:
    assert spec.train is not None
    run_training(replace(spec, train=replace(spec.train, **changes)))
    state = json.loads((newest(Path(spec.train.run_dir)) / "rank-00000.json").read_text())
    return list(state["rng"]["numpy"][1])


def test_the_generator_of_numpy_is_seeded(tmp_path: Path) -> None:
    specs = [tiny_spec(tmp_path / name, "train.steps=1") for name in "abc"]
    np.random.seed(5)
    first = numpy_drawn(specs[0])
    np.random.seed(6)
    assert numpy_drawn(specs[1]) == first != numpy_drawn(specs[2], seed=7)


def test_a_tokenizer_of_the_run_is_what_a_changed_path_does_not_change(tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "run", "train.steps=1"))
    elsewhere = shutil.copy(tmp_path / "run" / "tokenizer.json", tmp_path / "elsewhere.json")
    spec = tiny_spec(tmp_path / "run", "train.steps=2", f"model.tokenizer.path={elsewhere}")
    assert run_training(spec, allow_change=["model.tokenizer.path"]).step == 2
