"""Settings that work but can hardly be meant are one line each, at the start of a run and in `spec validate`; others are not doubted."""

from pathlib import Path

import pytest
from tiny_spec import tiny_spec

from soundomni.cli.main import main
from soundomni.core.errors import SpecError
from soundomni.core.spec.load import dump_spec, load_spec, shipped_specs
from soundomni.core.spec.schema import ScheduleSpec, Spec
from soundomni.train.ema import EMA
from soundomni.train.learning_rate import learning_rate, warmup_steps
from soundomni.train.preflight import check_spec

UNPROMPTED = "data.condition_dropout={text: 0.0}"

DOUBTFUL = [
    (("train.schedule.warmup_steps=7",), "train.schedule.warmup_steps is 7, but train.steps is 6: the learning rate never reaches"),
    (("train.save_every=7",), "train.save_every is 7, but train.steps is 6: the run is saved only at the end"),
    (("train.log_every=20",), "train.log_every is 20, but train.steps is 6: only the last step is logged"),
    (("train.validation.every=7",), "train.validation.every is 7, but train.steps is 6: validation never runs"),
    (("train.optimizer.lr=0",), "train.optimizer.lr is 0: the model learns nothing"),
    (("train.optimizer.lr=3",), "train.optimizer.lr is 3: training rarely works above 1"),
    (("train.schedule={kind: cosine, min_lr: 0.1}",), "train.schedule.min_lr is 0.1, above train.optimizer.lr, which is 0.001"),
    (
        ("train.optimizer.weight_decay=1000",),
        "train.optimizer.weight_decay is 1000, which at a learning rate of 0.001 removes every weight",
    ),
    (("train.loss_weights={ce: 0, velocity: 0}",), "train.loss_weights is 0 for every loss (ce, velocity): the model learns nothing"),
    (("train.trackers=[tensorboard, tensorboard]",), "train.trackers names 'tensorboard' 2 times"),
    (("train.validation={every: 2, num_describe: 0}",), "train.validation does nothing: it has no prompts"),
    (("train.validation={every: 2, prompts: [a], seconds: 0.001}",), "train.validation.seconds is 0.001, shorter than one frame"),
    (("data.condition_dropout={text: 1.0}",), "data.condition_dropout.text is 1: the model never sees a caption"),
    ((UNPROMPTED, "guidance.scale=2"), "guidance.scale is 2, but data.condition_dropout.text is 0"),
    (("data.datasets.toys.max_seconds=0.001",), "data.datasets.toys.max_seconds is 0.001, shorter than one frame of the codec"),
    (
        ("data.datasets.toys.max_seconds=2",),
        "data.datasets.toys.max_seconds is 2, which is 251 codec frames, but a sample can have at most 192",
    ),
]

FINE = [
    (),
    ("train.schedule.warmup_steps=6",),
    ("train.steps=3", "train.save_every=500", "train.log_every=10", "train.schedule.warmup_steps=null"),
    ("train.save_every=0", "train.validation.every=0", "train.validation.prompts=[a]"),
    ("train.validation=null",),
    ("train.schedule={kind: constant, min_lr: 0.1}",),
    ("train.loss_weights={ce: 0}",),
    ("train.trackers=[tensorboard, wandb]",),
    (UNPROMPTED,),
    (UNPROMPTED, "guidance.scale=2", "data.datasets.toys.tasks={describe: 1}"),
    ("data.condition_dropout={text: 1.0}", "data.datasets.toys.tasks={describe: 1}"),
    ("data.datasets.toys.max_seconds=0.5",),
]


@pytest.mark.parametrize(("overrides", "message"), DOUBTFUL, ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_a_setting_that_can_hardly_be_meant_is_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (line,) = check_spec(tiny_spec(tmp_path / "run", *overrides))
    assert line.startswith(message) and "\n" not in line
    assert ". Set" in line or ". Name it once" in line, "what to do comes last"


OF_CODECS = [
    ("train.activation_checkpointing=true", "train.activation_checkpointing does nothing here: it is for the layers of a model"),
    ("train.compile=true", "train.compile does nothing here"),
    ("train.phases.codec.optimizer.lr=1e-3", ""),
    ("train.loss_starts.l1=6", "train.loss_starts.l1 is 6, but train.steps is 6, so it never begins"),
]


@pytest.mark.parametrize(("override", "message"), OF_CODECS)
def test_a_spec_that_trains_a_codec_is_doubted_too(override: str, message: str, tmp_path: Path) -> None:
    lines = check_spec(tiny_spec(tmp_path / "run", override, codec=True))
    assert [line.startswith(message) and ". Set" in line for line in lines] == ([True] if message else [])


@pytest.mark.parametrize("overrides", FINE, ids=" ".join)
def test_what_may_be_meant_is_not_doubted(overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert check_spec(tiny_spec(tmp_path / "run", *overrides)) == []


@pytest.mark.parametrize("name", shipped_specs())
def test_shipped_specs_are_not_doubted(name: str) -> None:
    spec = load_spec([name], base={}) if name in ("nano", "demo") else None
    assert spec is None or check_spec(spec) == []


def test_spec_validate_prints_them_and_they_are_no_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(tiny_spec(tmp_path / "run", "train.optimizer.lr=0", "train.log_every=20")))
    assert main(["spec", "validate", str(path), "--json"]) == 0
    told = capsys.readouterr()
    assert [line.partition(" is ")[0] for line in told.err.splitlines()] == ["warning: train.log_every", "warning: train.optimizer.lr"]
    assert '"warnings": ["train.log_every is 20' in told.out


@pytest.mark.parametrize("share", ["text: 1.5", "latent: -0.1", "features: .nan"])
def test_a_share_of_conditions_out_of_its_range_is_an_error_before_anything_is_built(share: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data.condition_dropout.\w+ is \S+; expected a number from 0 to 1"):
        check_spec(tiny_spec(tmp_path / "run", f"data.condition_dropout={{{share}}}"))


@pytest.mark.parametrize(("steps", "expected"), [(1, 0), (9, 0), (10, 1), (1000, 100), (20_000, 2000), (10**6, 2000)])
def test_a_warm_up_that_is_not_set_fits_the_run(steps: int, expected: int) -> None:
    schedule = ScheduleSpec(warmup_steps=None)
    assert warmup_steps(schedule, steps) == expected
    assert learning_rate(steps - 1, schedule=schedule, peak=1.0, total_steps=steps) == 1.0


def test_no_decay_of_averages_is_doubted_as_the_first_weights_are_soon_forgotten() -> None:
    """The decay warms up, so that after ten steps less than 1e-4 of an average is what it began with, whatever decay is set."""
    import torch
    from torch import nn

    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ema = EMA(model, decay=0.999999)
    nn.init.zeros_(model.weight)
    for _ in range(10):
        ema.update(model)
    assert float(torch.as_tensor(ema.averages["weight"]).max()) < 1e-4


NULLS = [
    ("guidance", "set its scale to 1"),
    ("data.condition_dropout", "set its text, latent and features to 0"),
    ("train.schedule", "set its kind to constant and its warmup_steps to 0"),
    ("train.trackers", r"set it to \[\]"),
    ("train.loss_weights", "set it to {}"),
    ("train.ema_decay", "set it to 0"),
    ("train.optimizer.clip", "set it to 0"),
    ("model.freeze", r"set it to \[\]"),
    ("model.normalize", "set it to none"),
]


@pytest.mark.parametrize(("key", "cure"), NULLS)
@pytest.mark.parametrize("typed", [False, True])
def test_null_where_it_is_refused_comes_with_the_way_to_switch_off(key: str, cure: str, typed: bool, tmp_path: Path) -> None:
    layer: object = None
    for name in reversed(key.split(".")):
        layer = {name: layer}
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(tiny_spec(tmp_path / "run")))
    with pytest.raises(SpecError, match=rf"^{key} is None; expected .*\. To switch it off, {cure}$"):
        load_spec([path] if typed else [path, layer], [(key, "null")] if typed else [], validate_plugins=False)  # type: ignore[list-item]


def test_null_switches_validation_off_and_a_key_of_it_on_again(tmp_path: Path) -> None:
    def every(spec: Spec) -> tuple[bool, int]:
        assert spec.train is not None
        return spec.train.validation is None, spec.train.validating.every

    off = tiny_spec(tmp_path / "run", "train.validation.every=2", "train.validation=null")
    assert every(off) == (True, 0) and every(load_spec([_written(off, tmp_path)])) == (True, 0)
    assert every(tiny_spec(tmp_path / "run", "train.validation=null", "train.validation.every=3")) == (False, 3)


def _written(spec: Spec, folder: Path) -> Path:
    path = folder / "written.yaml"
    path.write_text(dump_spec(spec))
    return path
