"""Specs written with the old spelling of a key are read as specs with the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from soundomni.core.errors import SpecError
from soundomni.core.files.shipped import SHIPPED
from soundomni.core.spec.load import dump_spec, load_spec, spec_to_dict
from soundomni.core.spec.renamed import current_key, current_names

KEYS = [
    ("model.normalise", "model.normalize", "global"),
    ("guidance.renormalise", "guidance.renormalize", "channel"),
    ("guidance.renormalise_min", "guidance.renormalize_min", "0.5"),
    ("model.backbone.init_args.copy_initialise", "model.backbone.init_args.copy_initialize", "true"),
]
each_key = pytest.mark.parametrize(("old", "new", "value"), KEYS)


def nested(key: str, value: str, *, separator: str = "  ") -> str:
    lines = [f"{separator * depth}{name}:" for depth, name in enumerate(key.split("."))]
    return "\n".join(lines) + f" {value}\n"


@each_key
def test_the_old_spelling_means_the_new_one(old: str, new: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(nested(old, value))
    expected = load_spec(["demo"], [(new, value)])
    assert expected != load_spec(["demo"])
    assert load_spec(["demo", file]) == load_spec(["demo"], [(old, value)]) == expected
    assert load_spec(["demo", file], [(new, value)]) == expected, "a new name replaces an old one of a lower layer"
    assert old.rpartition(".")[2] + ":" not in dump_spec(load_spec(["demo", file]))


def test_arguments_are_renamed_in_both_forms_of_an_override() -> None:
    short, full = (load_spec(["demo"], [(f"model.backbone.{key}copy_initialise", "true")]) for key in ("", "init_args."))
    assert short == full and full.model.backbone.init_args["copy_initialize"] is True


@each_key
def test_an_old_model_directory_is_read(old: str, new: str, value: str, tmp_path: Path) -> None:
    spec = load_spec([SHIPPED / "nano" / "spec.yaml"], [(new, value)])
    text = dump_spec(spec).replace(f"{new.rpartition('.')[2]}:", f"{old.rpartition('.')[2]}:")
    assert text != dump_spec(spec)
    (tmp_path / "spec.yaml").write_text(text)
    (tmp_path / "config.json").write_text('{"format": 1}')
    assert load_spec([tmp_path / "spec.yaml"]) == spec
    based = load_spec([], [("sampler.num_steps", "3")], base=spec_to_dict(spec))
    assert based == load_spec([tmp_path / "spec.yaml"], [("sampler.num_steps", "3")])


@each_key
def test_one_layer_may_not_give_both_names(old: str, new: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{nested(old, value)}{'  ' * old.count('.')}{new.rpartition('.')[2]}: {value}\n")
    with pytest.raises(SpecError, match=f"{old} and {new} are both given; expected one. Remove {old}, the old name"):
        load_spec(["demo", file])


@pytest.mark.parametrize(
    ("layer", "key"),
    [("model.normalise: half", "model.normalise"), ("model: {backbone: {init_args.copy_initialise: true}}", "init_args.copy_initialise")],
)
def test_a_dotted_key_in_a_file_is_named_as_it_was_written(layer: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(layer)
    with pytest.raises(SpecError, match=f"(?s)unknown .*'?{key}"):
        load_spec(["demo", tmp_path / "mine.yaml"])


def test_other_plugins_and_keys_keep_their_names() -> None:
    tree = {"model": {"backbone": {"class_path": "acme:mot", "init_args": {"copy_initialise": True}}, "codec": {"normalise": 1}}}
    assert current_names(tree) == tree
    assert current_key("model.codec.normalise") == "model.codec.normalise"
