"""jsonargparse parsers that others write take registered plugin names."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

import pytest
from jsonargparse import ArgumentError, ArgumentParser, _typehints

from soundomni import extend_jsonargparse
from soundomni.core.errors import PluginError
from soundomni.core.interfaces import Backbone, Codec, Connector, Encoder, Router, Sampler
from soundomni.core.representation import TokenSpec
from soundomni.experts import MLPConnector, ModalityRouter, MoTBackbone
from soundomni.flow import EulerSampler, HeunSampler
from soundomni.vae import MDCTCodec, OobleckCodec, ShapeGainCodec

HALVING = """
from soundomni.core.interfaces import Sampler

class Halving(Sampler):
    def __init__(self, *, num_steps: int = 3) -> None:
        self.num_steps = num_steps
    def num_evaluations(self, start):
        return 1

    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        return start / 2
"""


class Trainer:
    """Stands for a class of a researcher's own."""

    def __init__(
        self, codec: Codec, sampler: Sampler | None = None, codecs: list[Codec] | None = None, ears: Codec | Encoder | None = None
    ) -> None:
        self.codec, self.sampler, self.codecs, self.ears = codec, sampler, codecs, ears


class Experiment:
    """Holds a class that holds plugins."""

    def __init__(self, trainer: Trainer, name: str = "") -> None:
        self.trainer, self.name = trainer, name


@pytest.fixture(autouse=True)
def extended(jsonargparse_as_it_was: None) -> None:
    """Extends jsonargparse for each test of this file."""
    extend_jsonargparse()


def parser_of(name: str, annotation: Any, **settings: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, **settings)
    parser.add_argument("--config", action="config")
    parser.add_argument(f"--{name}", type=annotation)
    return parser


def built(parser: ArgumentParser, *arguments: str) -> Any:
    return parser.instantiate(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--codec", "mdct"], MDCTCodec),
        (["--codec=mdct-shape-gain"], ShapeGainCodec),
        (["--codec", "soundomni:oobleck"], OobleckCodec),
        (["--codec", "OobleckCodec"], OobleckCodec),
        (["--codec", "soundomni.vae.MDCTCodec"], MDCTCodec),
        (["--codec", "soundomni.vae.shape_gain.ShapeGainCodec"], ShapeGainCodec),
        (["--codec", "{class_path: mdct, init_args: {channels: 1}}"], MDCTCodec),
        (["--codec.class_path", "mdct", "--codec.init_args.channels", "1"], MDCTCodec),
    ],
)
def test_a_plugin_is_named_in_every_way(arguments: list[str], expected: type) -> None:
    argument = built(parser_of("codec", Codec), *arguments, "--codec.sample_rate", "8000").codec
    assert type(argument) is expected and argument.spec.sample_rate == 8000
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Codec, "codec")
    assert type(built(parser, *arguments).codec) is expected


def test_a_file_names_plugins_within_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "trainer:\n  codec: {class_path: mdct-shape-gain, init_args: {frame_size: 32}}\n  sampler: heun\n"
        "  codecs: [mdct, {class_path: mdct, init_args: {frame_size: 16}}]\n  ears: log-mel\n"
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Trainer, "trainer")
    trainer = built(parser, "--config", str(file), "--trainer.sampler.num_steps", "5").trainer
    assert isinstance(trainer.codec, ShapeGainCodec) and trainer.codec.spec.downsampling_ratio == 32
    assert isinstance(trainer.sampler, HeunSampler) and trainer.sampler.num_steps == 5
    assert [codec.spec.downsampling_ratio for codec in trainer.codecs] == [128, 16]
    assert isinstance(trainer.ears, Encoder)

    written = parser.dump(parser.parse_args(["--config", str(file)]))
    assert "class_path: soundomni.vae.shape_gain.ShapeGainCodec" in written and "class_path: mdct" not in written


def test_classes_within_classes_and_defaults_take_names(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = parser_of("experiment", Experiment)
    value = {"class_path": f"{__name__}.Experiment", "init_args": {"trainer": {"init_args": {"codec": "mdct", "sampler": "euler"}}}}
    trainer = deep.instantiate(deep.parse_object({"experiment": value})).experiment.trainer
    assert isinstance(trainer.codec, MDCTCodec) and isinstance(trainer.sampler, EulerSampler)

    by_default = parser_of("sampler", Sampler)
    by_default.set_defaults({"sampler": {"class_path": "heun"}})
    assert built(by_default, "--sampler.num_steps", "7").sampler.num_steps == 7

    monkeypatch.setenv("X_ROUTER", "modality")
    of_environment = ArgumentParser(exit_on_error=False, default_env=True, env_prefix="X")
    of_environment.add_argument("--router", type=Router)
    assert isinstance(built(of_environment).router, ModalityRouter)


@pytest.mark.parametrize(
    ("annotation", "name", "expected"),
    [
        (Codec, "mdtc", "unknown codec 'mdtc'. Did you mean 'mdct'?"),
        (Sampler, "huen", "unknown sampler 'huen'. Did you mean 'heun'?"),
        (Sampler | None, "eulr", "Did you mean 'euler'?"),
        (list[Codec], "[mdct, oobelck]", "Did you mean 'oobleck'?"),
        (Codec | Encoder, "log-mal", "Did you mean 'log-mel'?"),
        (Codec, "soundomni:mdtc", "Did you mean 'soundomni:mdct'?"),
        (Codec, "acme:mdct", "no plugins of 'acme' are installed here"),
        (Codec, "euler", "unknown codec 'euler'"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(annotation: Any, name: str, expected: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        parser_of("part", annotation).parse_args(["--part", name])
    assert expected in str(raised.value)


def test_help_of_a_plugin_is_asked_for_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser_of("part", Codec | Encoder).parse_args(["--part.help", "log-mel"])
    assert ended.value.code == 0 and "--part.num_mels" in capsys.readouterr().out


def test_plugins_of_other_packages_are_found(install: Any) -> None:
    points = {"soundomni.samplers": {"halving": "acme_halving:Halving", "broken": "acme_halving:Absent"}}
    install("acme-samplers", groups=points, modules={"acme_halving": HALVING})
    parser = parser_of("sampler", Sampler)
    assert built(parser, "--sampler", "halving", "--sampler.num_steps", "2").sampler.num_steps == 2
    with pytest.raises(ArgumentError, match=r"sampler 'broken' of acme-samplers 1\.2\.3 cannot be imported"):
        parser.parse_args(["--sampler", "broken"])

    install("other-samplers", groups={"soundomni.samplers": {"halving": "acme_halving:Halving"}}, modules={})
    with pytest.raises(ArgumentError, match="several distributions. Write one of: acme-samplers:halving, other-samplers:halving"):
        parser.parse_args(["--sampler", "halving"])
    assert built(parser, "--sampler", "other-samplers:halving").sampler.num_steps == 3


def test_runtime_arguments_are_options_where_the_class_is_asked_for() -> None:
    parser = parser_of("connector", Connector)
    with pytest.raises(ArgumentError, match="required: tokens.inputs, tokens.outputs, hidden_dim, generates"):
        parser.parse_args(["--connector", "mlp"])
    sizes = [
        "--connector.tokens.inputs",
        "4",
        "--connector.tokens.outputs",
        "4",
        "--connector.hidden_dim",
        "8",
        "--connector.generates",
        "false",
    ]
    assert isinstance(built(parser, "--connector", "mlp", *sizes).connector, MLPConnector)

    parts = ["--backbone.router", "modality", "--backbone.vocab_size", "300", "--backbone.hidden_dim", "32", "--backbone.num_layers", "1"]
    backbone = built(parser_of("backbone", Backbone), "--backbone", "mot", *parts).backbone
    assert isinstance(backbone, MoTBackbone) and backbone.hidden_dim == 32


class MakeConnector(Protocol):
    """Makes a connector of what the program knows."""

    def __call__(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool) -> Connector: ...


def test_runtime_arguments_are_left_to_the_program_where_a_factory_is_asked_for() -> None:
    parser = parser_of("connector", MakeConnector)
    make = built(parser, "--connector", "mlp", "--connector.multiple", "3").connector
    assert isinstance(make, functools.partial)
    connector = make(tokens=TokenSpec(4, 4), hidden_dim=8, generates=False)
    assert isinstance(connector, MLPConnector) and connector.inward[0].out_features == 24
    with pytest.raises(ArgumentError, match="Did you mean 'mlp'"):
        parser.parse_args(["--connector", "mpl"])


def test_other_classes_are_resolved_as_before() -> None:
    assert isinstance(built(parser_of("trainer", Trainer), "--trainer", "Trainer", "--trainer.codec", "mdct").trainer, Trainer)
    with pytest.raises(ArgumentError) as raised:
        parser_of("trainer", Trainer).parse_args(["--trainer", "mdct"])
    assert "Did you mean" not in str(raised.value)


def test_extending_twice_changes_nothing_and_another_jsonargparse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _typehints.resolve_class_path_by_name
    extend_jsonargparse()
    assert _typehints.resolve_class_path_by_name is first
    monkeypatch.setattr(_typehints, "resolve_class_path_by_name", lambda name: name)
    with pytest.raises(PluginError, match=r"Install jsonargparse 4\.53, or give import paths"):
        extend_jsonargparse()
    monkeypatch.delattr(_typehints, "resolve_class_path_by_name")
    with pytest.raises(PluginError, match="resolves class names differently"):
        extend_jsonargparse()
