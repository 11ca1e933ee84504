"""Why the spec engine has code of its own: what jsonargparse does with the same cases.

Each test first asserts what jsonargparse does, then what a spec needs. If the first part of a test fails after an update, jsonargparse has
learned to do it: see whether our code for it can go.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest
from jsonargparse import ArgumentError, ArgumentParser, set_loader
from jsonargparse.typing import PositiveInt, class_from_function

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.spec import registry, yaml_text
from soundomni.core.spec.arguments import argument_texts
from soundomni.core.spec.json_schema import spec_schema
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import OptimizerSpec
from soundomni.core.spec.values import convert, plain
from soundomni.vae import MDCTCodec, ShapeGainCodec

REFUSED = "refused"


@dataclass(frozen=True)
class Size:
    """A section of a config."""

    width: int = 1
    name: str | None = None


class Color(Enum):
    """Colors by name."""

    red = 1
    green = 2


class Wide:
    """A part with an argument that Narrow has too."""

    def __init__(self, size: int = 1, width: int = 2) -> None: ...


class Narrow(Wide):
    """The other part."""

    def __init__(self, size: int = 8) -> None: ...


def theirs(annotation: Any, value: Any, **settings: Any) -> Any:
    """Returns what jsonargparse makes of a value, or its error."""
    parser = ArgumentParser(exit_on_error=False, **settings)
    parser.add_argument("--value", type=annotation)
    try:
        return parser.parse_object({"value": copy.deepcopy(value)}).value  # it changes lists and mappings in place
    except ArgumentError as error:
        return error


def ours(annotation: Any, value: Any) -> Any:
    """Returns what a spec makes of a value, REFUSED if nothing."""
    try:
        return convert(value, annotation, "value")
    except SpecError:
        return REFUSED


CASES = [
    # A quoted number, word or null in a file is text. jsonargparse reads text again as YAML wherever something else may be meant.
    (list[int], ["1"], [1], REFUSED),
    (tuple[int, int], [1, "2"], (1, 2), REFUSED),
    (dict[str, float], {"a": "1e-4"}, {"a": 1e-4}, REFUSED),
    (str | None, "null", None, "null"),
    (str | None, "~", None, "~"),
    (dict[str, Any], {"a": "1", "b": "null"}, {"a": 1, "b": None}, {"a": "1", "b": "null"}),
    (Any, "1:30", 90, "1:30"),
    (Any, "no", False, "no"),
    (bool, "yes", True, REFUSED),
    (int, "7", 7, REFUSED),
    # null is a value, which only a key that says so takes.
    (str, None, None, REFUSED),
    (Size, None, None, REFUSED),
    (Literal["none", "all"], None, None, REFUSED),
    # true is not 1.
    (Literal[1, 2], True, True, REFUSED),
]


@pytest.mark.parametrize(("annotation", "value", "by_them", "by_us"), CASES, ids=lambda value: str(value)[:30])
def test_values_are_not_read_twice_and_null_is_a_value(annotation: Any, value: Any, by_them: Any, by_us: Any) -> None:
    found = theirs(annotation, value)
    assert found == by_them and type(found) is type(by_them)
    result = ours(annotation, value)
    assert result is REFUSED if by_us is REFUSED else result == by_us and type(result) is type(by_us)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"), [(list[int], ["1"], [1]), (str | None, "null", None), (Literal[1, 2], True, True)]
)
def test_a_loader_of_ones_own_does_not_change_that(annotation: Any, value: Any, expected: Any) -> None:
    set_loader("verbatim", lambda text, **_: text)
    assert theirs(annotation, value, parser_mode="verbatim") == expected


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, True, REFUSED),
        (float, True, REFUSED),
        (bool, 1, REFUSED),
        (int, 1.0, REFUSED),
        (float, 1, 1.0),
        (Color, "red", Color.red),
        (Color, "blue", REFUSED),
        (PositiveInt, 3, 3),
        (PositiveInt, 0, REFUSED),
        (Literal["a", "b"], "c", REFUSED),
    ],
)
def test_single_scalars_are_the_same_and_left_to_jsonargparse(annotation: Any, value: Any, expected: Any) -> None:
    found = theirs(annotation, value)
    assert isinstance(found, ArgumentError) if expected is REFUSED else found == expected
    assert ours(annotation, value) == expected


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("'1'", REFUSED), ("true", REFUSED), ("one", "one"), ("1.0", REFUSED)])
def test_choices_keep_the_types_of_their_members(text: str, value: Any) -> None:
    assert ours(Literal[1, "one"], yaml_text.parse(text, "test")) == value


def test_pure_paths_are_paths_and_no_classes() -> None:
    assert "Expected a dot import path string" in str(theirs(PurePosixPath, "a/b"))
    assert ours(PurePosixPath, "a/b") == PurePosixPath("a/b") and ours(Path, "a") == Path("a") and ours(Path, 3) is REFUSED
    assert plain(ours(PurePosixPath, "a/b")) == "a/b"


@pytest.mark.parametrize(
    ("annotation", "value", "place"),
    [
        (list[int], [1, 2, "x"], "value[2]"),
        (dict[str, list[int]], {"a": [1, None]}, "value.a[1]"),
        (dict[str, Size], {"a": {"width": "wide"}}, "value.a.width"),
        (list[Size | None], [None, {"widht": 3}], "value[1].widht"),
    ],
)
def test_errors_are_one_line_and_say_where(annotation: Any, value: Any, place: str) -> None:
    error = str(theirs(annotation, value))
    assert place not in error and "\n" in error and "Did you mean" not in error
    with pytest.raises(SpecError) as raised:
        convert(value, annotation, "value")
    assert place in str(raised.value) and "\n" not in str(raised.value)


def test_sections_become_objects_of_their_class() -> None:
    assert not isinstance(theirs(Size | None, {"width": 3}), Size)
    assert ours(Size | None, {"width": 3}) == Size(3)


def test_another_class_replaces_the_arguments_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"part: {{class_path: {__name__}.Wide, init_args: {{size: 64, width: 3}}}}\n")
    (tmp_path / "b.yaml").write_text(f"part: {{class_path: {__name__}.Narrow}}\n")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--part", type=Wide)
    part = parser.parse_args([f"--config={tmp_path / 'a.yaml'}", f"--config={tmp_path / 'b.yaml'}"]).part
    assert part.class_path.endswith("Narrow") and part.init_args.size == 64, "an argument of the class before leaks into the new one"

    layers = [("nano", "sampler: {class_path: euler, init_args: {num_steps: 3}}"), ("nano", "sampler: heun")]
    trees = [yaml_text.parse(text, name) for name, text in layers]
    assert load_spec(["nano", *trees]).model.made.sampler.init_args == {}


def test_entries_of_mappings_merge(tmp_path: Path) -> None:
    @dataclass
    class Data:
        datasets: dict[str, Size] = field(default_factory=dict)

    (tmp_path / "a.yaml").write_text("datasets: {one: {width: 1}}\n")
    (tmp_path / "b.yaml").write_text("datasets: {two: {width: 2}}\n")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Data)
    assert list(parser.parse_args([f"--config={tmp_path / 'a.yaml'}", f"--config={tmp_path / 'b.yaml'}"]).datasets) == ["two"]

    spec = load_spec(["demo", {"data": {"datasets": {"more": {"source": "toy-sounds"}}}}])
    assert spec.data is not None and list(spec.data.datasets) == ["toys", "more"]


def test_a_wrong_option_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(Size)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--widht=3"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 3 and "Did you mean" not in error
    from soundomni.cli.main import main

    assert main(["spec", "print", "nano", "--model.codce=mdct"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Did you mean 'codec'?" in error


@pytest.mark.parametrize(
    ("text", "by_them", "by_us"),
    [("no", False, "no"), ("1:30", 90, "1:30"), ("010", 8, "010"), ("0x1f", 31, 31), ("a: 1\na: 2", {"a": 2}, REFUSED)],
)
def test_files_follow_yaml_1_2_without_keys_given_twice(text: str, by_them: Any, by_us: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=Any)
    content = f"value: {text}" if ":" not in text or text == "1:30" else "value:\n  " + text.replace("\n", "\n  ")
    assert parser.parse_string(content).value == by_them
    try:
        assert yaml_text.parse(content, "test")["value"] == by_us
    except SpecError as error:
        assert by_us is REFUSED and "test:3:3" in str(error)


@pytest.mark.parametrize("name", ["mdct", "mdct-shape-gain", "soundomni:mdct"])
def test_registered_names_are_not_import_paths(name: str) -> None:
    assert isinstance(theirs(Codec, name), ArgumentError)
    assert issubclass(registry.load("codec", name), Codec)


def test_a_class_under_another_name_cannot_have_a_dash() -> None:
    def build() -> ShapeGainCodec:
        return ShapeGainCodec()

    class_from_function(build, func_return=ShapeGainCodec, name="other-name")
    try:
        assert "Unexpected import path format" in str(theirs(ShapeGainCodec, "other-name"))
    finally:
        delattr(sys.modules[__name__], "other-name")


def test_a_spec_is_read_without_importing_its_plugins(install: Any) -> None:
    source = "from soundomni.vae import MDCTCodec\n\nclass Quiet(MDCTCodec):\n    pass\n"
    install("acme-quiet", groups={"soundomni.codecs": {"quiet": "acme_quiet:Quiet"}}, modules={"acme_quiet": source})
    spec = load_spec(["nano", {"model": {"codec": "quiet"}}], validate_plugins=False)
    assert spec.model.codec.class_path == "quiet" and "acme_quiet" not in sys.modules
    theirs(Codec, {"class_path": "acme_quiet.Quiet"})
    assert "acme_quiet" in sys.modules


def test_a_config_does_not_say_which_distribution_a_class_came_from() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--codec", type=Codec)
    written = parser.dump(parser.parse_object({"codec": {"class_path": "soundomni.vae.MDCTCodec"}}))
    assert "0.1.0" not in written and set(parser.parse_string(written).codec.__dict__) == {"class_path", "init_args"}
    assert registry.lock(load_spec(["nano"]))[0].keys() == {"distribution", "version"}


def test_help_and_schema_describe_inherited_arguments_and_names_that_share_a_line() -> None:
    def described(of: type) -> dict[str, Any]:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(of)
        properties = json.loads(parser.get_completion_script("jsonschema"))["properties"]
        return {name: schema.get("description") for name, schema in properties.items()}

    assert described(MDCTCodec)["window"] and described(OptimizerSpec)["lr"]
    assert described(ShapeGainCodec)["window"] is None and described(OptimizerSpec)["eps"] is None
    assert argument_texts(ShapeGainCodec)["window"] and argument_texts(OptimizerSpec)["eps"]


def test_a_schema_offers_registered_names_and_not_only_imported_classes() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=Wide)
    paths = {schema["properties"]["class_path"]["const"] for schema in _objects(json.loads(parser.get_completion_script("jsonschema")))}
    assert paths == {f"{__name__}.Wide", f"{__name__}.Narrow"}
    names = next(choice["enum"] for choice in spec_schema()["$defs"]["codec"]["anyOf"] if "enum" in choice)
    assert {"mdct", "mdct-shape-gain"} <= set(names)


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yields every part of a schema that describes a class."""
    if isinstance(schema, dict):
        if "const" in schema.get("properties", {}).get("class_path", {}):
            yield schema
        schema = list(schema.values())
    for part in schema if isinstance(schema, list) else ():
        yield from _objects(part)
