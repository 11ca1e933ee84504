"""Numbers of the train section that make no sense are refused in one line, by a run before it builds anything and by `spec validate`."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tiny_spec import TEXT, tiny_spec
from torch.overrides import TorchFunctionMode

from soundomni.cli.main import main
from soundomni.cli.train import EXISTING
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.uninitialized import DRAWS, without_memory
from soundomni.core.errors import PluginError, SoundOmniError, SpecError
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.ranges import check_loss_weights, check_train
from soundomni.core.spec.registry import load
from soundomni.core.spec.schema import TrainSpec
from soundomni.train.preflight import build_without_memory, check_spec
from soundomni.train.run import run_training
from soundomni.train.run_directory.opening import Existing

WRONG = [
    ("steps", 0),
    ("batches_per_step", 0),
    ("log_every", 0),
    ("save_every", -1),
    ("keep_checkpoints", 0),
    ("threads", -1),
    ("threads", 1_000_000),
    ("seed", -1),
    ("ema_decay", 1.0),
    ("ema_decay", float("nan")),
    ("parallel.shard", 0),
    ("parallel.replicate", 0),
    ("optimizer.lr", -1e-3),
    ("optimizer.lr", float("inf")),
    ("optimizer.lr", float("nan")),
    ("optimizer.eps", 0.0),
    ("optimizer.clip", -1.0),
    ("optimizer.clip", float("nan")),
    ("optimizer.weight_decay", -0.1),
    ("optimizer.betas[0]", (1.0, 0.95)),
    ("optimizer.betas[1]", (0.9, -0.1)),
    ("schedule.warmup_steps", -1),
    ("schedule.min_lr", -1.0),
    ("loss_weights.ce", {"ce": -1.0}),
    ("loss_weights.ce", {"ce": float("inf")}),
    ("validation.every", -1),
    ("validation.seconds", 0.0),
    ("validation.num_describe", -1),
]


def changed(train: TrainSpec, key: str, value: Any) -> TrainSpec:
    """A copy with `value` at a dotted key; what follows a field of the value itself is left to the value."""
    name, _, rest = key.partition("[")[0].partition(".")
    inner = getattr(train, name)
    if rest and dataclasses.is_dataclass(inner):
        value = dataclasses.replace(inner, **{rest: value})  # type: ignore[type-var]
    return dataclasses.replace(train, **{name: value})


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_number_out_of_its_range_is_named_with_what_was_given_and_expected(key: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        check_train(changed(TrainSpec(run_dir="unused"), key, value))
    line = str(caught.value)
    assert line.startswith(f"train.{key} is ") and "; expected " in line and "\n" not in line


def test_what_training_can_use_is_let_through() -> None:
    train = TrainSpec(run_dir="unused")
    check_train(train)
    for key, value in (("optimizer.clip", 0.0), ("optimizer.lr", 0.0), ("ema_decay", 0.0), ("loss_weights", {"ce": 0.0})):
        check_train(changed(train, key, value))


def test_losses_that_a_model_does_not_have_are_named() -> None:
    check_loss_weights({"ce": 1.0}, ("ce", "velocity"))
    with pytest.raises(SpecError, match=r"names 'velocty'; the losses are ce, velocity. Did you mean 'velocity'"):
        check_loss_weights({"velocty": 1.0}, ("ce", "velocity"))


def test_checking_imports_no_torch() -> None:
    code = "import sys, soundomni.core.spec.ranges; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Drawn(TorchFunctionMode):
    """Counts what writes to parameters in place."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += isinstance(args[0] if args else None, torch.nn.Parameter) and getattr(func, "__name__", "") in DRAWS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["nano", "demo", "soundomni-7b", "soundomni-7b-full"])
def test_a_model_is_checked_without_drawing_its_weights(name: str) -> None:
    spec = resolve(load_spec([name], base={}))
    with Drawn() as drawn:
        model = build_without_memory(spec, trust_class_paths=False)
    assert model is not None and all(p.is_meta for p in model.parameters())
    assert drawn.count == 0


def test_drawing_is_noticed(tmp_path: Path) -> None:
    with Drawn() as drawn:
        build_model(tiny_spec(tmp_path / "unused").model, vocab_size=300)
    assert drawn.count > 0


def test_spec_validate_checks_the_train_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(TEXT)
    assert main(["spec", "validate", str(path), "--train.run_dir=run"]) == 0
    assert main(["spec", "validate", str(path), "--train.run_dir=run", "--train.optimizer.lr=-1"]) == 2
    assert "train.optimizer.lr is -1.0; expected finite and at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("sampler.num_steps=0", SpecError, "num_steps"),
        ("sampler=os.path.join", PluginError, "trust-class-paths"),
        ("guidance.interval=[1.0, 0.0]", SpecError, "guidance.interval"),
        ("guidance.renormalize_min=2", SpecError, "guidance.renormalize_min"),
        ("guidance.rescale=2", SpecError, "guidance.rescale is 2"),
        ("guidance.parallel=-1", SpecError, "guidance.parallel is -1"),
        ("guidance.norm_threshold=.inf", SpecError, "guidance.norm_threshold is inf"),
        ("guidance.scale=.nan", SpecError, "guidance scale"),
        ("train.validation.seconds=0", SpecError, "train.validation.seconds"),
        ("train.optimizer.eps=0", SpecError, "train.optimizer.eps"),
        ("train.optimizer.rule={class_path: muon, init_args: {momentum: 1}}", SpecError, "momentum"),
        ("train.loss_weights.velocty=1", SpecError, "Did you mean 'velocity'"),
        ("model.freeze=[undd]", SpecError, "unknown part 'undd'"),
        ("model.backbone.num_heads=5", SpecError, "expected a multiple of num_heads, which is 5"),
        ("model.codec.frame_size=0", SpecError, "frame_size"),
        ("data.max_tokens_per_sample=999", SpecError, "expected 1 to data.tokens_per_batch, which is 192"),
        ("data.workers=-1", SpecError, "data.workers"),
        ("data.datasets.toys.tasks={generat: 1}", SpecError, "Did you mean 'generate'"),
    ],
)
def test_what_validation_uses_is_checked_before_anything_is_written(
    tmp_path: Path, override: str, error: type[SoundOmniError], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_training(tiny_spec(tmp_path / "run", "train.validation.every=1", override))
    assert not (tmp_path / "run").exists()


def test_prompts_of_validation_are_empty_for_a_model_without_a_text(tmp_path: Path) -> None:
    given = ("train.validation.every=1", "model.prompt=[]")
    with pytest.raises(SpecError, match=r"train\.validation\.prompts is \['', 'rain'\], but the model takes no text; expected empty texts"):
        run_training(tiny_spec(tmp_path / "run", *given, "train.validation.prompts=['',rain]"))
    assert not (tmp_path / "run").exists()


def test_clips_of_validation_are_no_longer_than_the_connector_takes(tmp_path: Path) -> None:
    given = ("train.validation.every=1", "train.validation.prompts=[rain]", "train.validation.seconds=9", "model.connectors.latent=fourier")
    with pytest.raises(SpecError, match=r"train\.validation\.seconds is 9: the clip lasts 9 s; the latent connector takes at most"):
        run_training(tiny_spec(tmp_path / "run", *given))
    assert not (tmp_path / "run").exists()


def test_a_plugin_that_needs_memory_is_told_and_checked_when_it_is_built(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reads(load("router", "modality")):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.ones(()).item()

    monkeypatch.setattr("soundomni.experts.modality.ModalityRouter", Reads)
    with caplog.at_level("INFO", logger="soundomni"):
        check_spec(tiny_spec(tmp_path / "run"))
    assert "sizes are not checked beforehand" in caplog.text


def test_the_option_for_existing_runs_has_the_choices_of_a_run() -> None:
    assert get_args(Existing) == EXISTING


@pytest.mark.parametrize("run_dir", ["", " ", "a\0b", "~nobody-of-this-name/runs"])
def test_a_run_directory_that_cannot_be_meant_is_refused(run_dir: str) -> None:
    with pytest.raises(SpecError, match="train.run_dir is "):
        check_train(TrainSpec(run_dir=run_dir))


def test_what_a_constructor_imports_keeps_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package, its module and a module that they import in turn: whatever is imported first while nothing has memory."""
    (tmp_path / "lately").mkdir()
    (tmp_path / "lately" / "__init__.py").write_text("import torch\nfrom lately.inner import SMALL\nONE = torch.ones(2)\n")
    (tmp_path / "lately" / "inner.py").write_text("import torch\nSMALL = torch.tensor(1e-3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    with without_memory():
        lately = importlib.import_module("lately")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("lately.nowhere")
        assert torch.ones(1).is_meta
    assert sys.meta_path == finders and lately.ONE.tolist() == [1.0, 1.0] and float(lately.SMALL) == pytest.approx(1e-3)
    assert importlib.reload(lately).ONE.tolist() == [1.0, 1.0]
