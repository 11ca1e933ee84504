"""Specs: layers, slots, overrides, errors, and the round trip through YAML."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from soundomni.core.errors import PluginError, SoundOmniError, SpecError
from soundomni.core.spec import registry, yaml_text
from soundomni.core.spec.json_schema import schema_of
from soundomni.core.spec.load import changed_keys, dump_spec, load_spec, parse_slot, resolve, shipped_specs, spec_schema, spec_to_dict
from soundomni.core.spec.schema import (
    DataSpec,
    MixtureEntry,
    SegmentTemplate,
    Slot,
    Spec,
    TokenizerSpec,
    TrainSpec,
    ValidationSpec,
)
from soundomni.core.spec.shorthand import model_of
from soundomni.core.spec.slots import slots
from soundomni.core.spec.written import ConnectorsSpec, WrittenModel

CODECS = '''
from soundomni.core.interfaces import Codec

class Base(Codec):
    spec = None
    def encode(self, waveform, lengths): ...
    def decode(self, representation): ...

class Small(Base):
    """A small codec.

    Args:
        frame_size: samples per frame.
    """
    def __init__(self, *, frame_size: int = 64, name: str | None = None, weights: dict[str, float] = {}) -> None:
        super().__init__()

class Large(Base):
    def __init__(self, *, latent_dim: int, rate: float = 0.5) -> None:
        super().__init__()
'''

BASE = """
model:
  backbone: mot
  router: dense
  codec: {class_path: small, init_args: {frame_size: 32, weights: {a: 1}}}
  connectors: {latent: linear}
  objective: flow-matching
sampler: euler
"""

WHOLE = (
    BASE
    + """
data:
  datasets:
    toy: {source: toy-sounds, tasks: {generate: 1}}
train:
  run_dir: runs/x
  trackers: [tensorboard]
  optimizer: {lr: 1e-3}
"""
)


@pytest.fixture(autouse=True)
def codecs(install):
    points = {"soundomni.codecs": {"small": "spec_codecs:Small", "large": "spec_codecs:Large"}}
    install("spec-codecs", groups=points, modules={"spec_codecs": CODECS})


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes YAML files and returns their paths."""

    def files(*texts: str) -> list[Path]:
        paths = [tmp_path / f"layer{i}.yaml" for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
        return paths

    return files


def refusal(configs, overrides=(), **options) -> str:
    with pytest.raises(SoundOmniError) as caught:
        load_spec(configs, overrides, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_spec_becomes_typed(write):
    spec = load_spec(write(WHOLE), validate_plugins=False)
    assert spec.model.codec == Slot("small", {"frame_size": 32, "weights": {"a": 1}})
    assert spec.model.made.sampler == Slot("euler", {})
    assert spec.data.datasets["toy"].source == Slot("toy-sounds", {})
    assert spec.data.datasets["toy"].tasks == {"generate": 1.0}
    assert spec.train.trackers == [Slot("tensorboard", {})]
    assert spec.train.optimizer.lr == 1e-3 and spec.train.optimizer.betas == (0.9, 0.95)
    assert spec.train.run_dir == "runs/x"


def test_later_files_merge_mappings_and_replace_lists_and_values(write):
    top = "train: {steps: 7, trackers: [], optimizer: {clip: 2}}\ndata: {datasets: {more: {source: audio-folder}}}"
    spec = load_spec(write(WHOLE, top), validate_plugins=False)
    assert (spec.train.steps, spec.train.trackers, spec.train.optimizer.clip, spec.train.optimizer.lr) == (7, [], 2.0, 1e-3)
    assert list(spec.data.datasets) == ["toy", "more"]


WEIGHED = WHOLE.replace("{generate: 1}", "{generate: 3, answer: 0.5}") + "  loss_weights: {ce: 2, velocity: 3}\n"


def test_one_weight_is_set_beside_the_default_ones(write):
    spec = load_spec(
        write(WHOLE.replace(", tasks: {generate: 1}", "")), [("data.datasets.toy.tasks.describe", "2")], validate_plugins=False
    )
    assert spec.data.datasets["toy"].tasks == {"generate": 1.0, "describe": 2.0}


@pytest.mark.parametrize(
    ("layer", "overrides", "tasks", "weights"),
    [
        ("{}", [], {"generate": 3.0, "answer": 0.5}, {"ce": 2.0, "velocity": 3.0}),
        ("data: {datasets: {toy: {tasks: {describe: 1}}}}", [], {"describe": 1.0}, {"ce": 2.0, "velocity": 3.0}),
        ("train: {loss_weights: {ce: 1}}", [], {"generate": 3.0, "answer": 0.5}, {"ce": 1.0}),
        ("{}", [("data.datasets.toy.tasks", "{describe: 1}"), ("train.loss_weights", "{}")], {"describe": 1.0}, {}),
        ("{}", [("data.datasets.toy", "{tasks: {describe: 1}}"), ("train", "{loss_weights: {a: 1}}")], {"describe": 1.0}, {"a": 1.0}),
        (
            "{}",
            [("data.datasets.toy.tasks.answer", "2"), ("train.loss_weights.velocity", "1")],
            {"generate": 3.0, "answer": 2.0},
            {"ce": 2.0, "velocity": 1.0},
        ),
        (
            "train: {loss_weights: {ce: 1}}",
            [("data.datasets.toy.tasks", "{describe: 1}"), ("data.datasets.toy.tasks.answer", "2"), ("train.loss_weights.x", "4")],
            {"describe": 1.0, "answer": 2.0},
            {"ce": 1.0, "x": 4.0},
        ),
    ],
)
def test_weights_are_replaced_whole_and_changed_one_by_one(write, layer, overrides, tasks, weights):
    spec = load_spec(write(WEIGHED, layer), overrides, validate_plugins=False)
    assert (spec.data.datasets["toy"].tasks, spec.train.loss_weights) == (tasks, weights)
    assert spec.data.datasets["toy"].source == Slot("toy-sounds", {}) and spec.train.run_dir == "runs/x"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("small", {"frame_size": 32, "weights": {"a": 1.0}}),
        ("{class_path: small, init_args: {name: x, weights: {b: 2}}}", {"frame_size": 32, "name": "x", "weights": {"a": 1.0, "b": 2.0}}),
        ("{init_args: {frame_size: 8}}", {"frame_size": 8, "weights": {"a": 1.0}}),
        ("{class_path: large, init_args: {latent_dim: 3}}", {"latent_dim": 3}),
    ],
)
def test_a_slot_merges_with_its_own_class_and_is_replaced_by_another(write, layer, expected):
    spec = load_spec(write(BASE, f"model: {{codec: {layer}}}"))
    assert spec.model.codec.init_args == expected


@pytest.mark.parametrize(
    ("overrides", "class_path", "init_args"),
    [
        ([("model.codec.frame_size", "8")], "small", {"frame_size": 8, "weights": {"a": 1.0}}),
        ([("model.codec.init_args.frame_size", "8")], "small", {"frame_size": 8, "weights": {"a": 1.0}}),
        ([("model.codec.weights.b", "2")], "small", {"frame_size": 32, "weights": {"a": 1.0, "b": 2.0}}),
        ([("model.codec", "large"), ("model.codec.latent_dim", "3")], "large", {"latent_dim": 3}),
        ([("model.codec.class_path", "large"), ("model.codec.init_args", "{latent_dim: 3}")], "large", {"latent_dim": 3}),
        ([("model.codec", "{class_path: large, init_args: {latent_dim: 4}}")], "large", {"latent_dim": 4}),
        ([("model.codec", "large"), ("model.codec", "small")], "small", {}),
        ([("model.codec", "spec-codecs:small")], "spec-codecs:small", {}),
        ([("model.codec.name", "17")], "small", {"frame_size": 32, "weights": {"a": 1.0}, "name": "17"}),
        ([("model.codec.name", "null")], "small", {"frame_size": 32, "weights": {"a": 1.0}, "name": None}),
    ],
)
def test_overrides_reach_into_slots(write, overrides, class_path, init_args):
    assert load_spec(write(BASE), overrides).model.codec == Slot(class_path, init_args)


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("train.steps", "12", lambda s: s.train.steps == 12),
        ("train.optimizer.lr", "2e-4", lambda s: s.train.optimizer.lr == 2e-4),
        ("train.optimizer.betas", "[0.8, 1]", lambda s: s.train.optimizer.betas == (0.8, 1.0)),
        ("train.compile", "true", lambda s: s.train.compile is True),
        ("train.run_dir", "2024", lambda s: s.train.run_dir == "2024"),
        ("train.run_dir", "a #b: [", lambda s: s.train.run_dir == "a #b: ["),
        ("train.loss_weights.ce", "0.5", lambda s: s.train.loss_weights == {"ce": 0.5}),
        ("train.schedule", "{kind: cosine}", lambda s: (s.train.schedule.kind, s.train.schedule.warmup_steps) == ("cosine", None)),
        ("train.trackers", "[wandb]", lambda s: s.train.trackers == [Slot("wandb")]),
        ("data.datasets.toy.weight", "3", lambda s: s.data.datasets["toy"].weight == 3.0),
        ("data.datasets.toy.source.seed", "3", lambda s: s.data.datasets["toy"].source == Slot("toy-sounds", {"seed": 3})),
        ("model.encoder", "null", lambda s: not s.model.all_heard),
        ("data", "null", lambda s: s.data is None),
        ("model.tokenizer.path", "null", lambda s: s.model.tokenizer.path is None),
        ("train.validation.prompts", "[a, b]", lambda s: s.train.validation.prompts == ["a", "b"]),
    ],
)
def test_overrides_take_the_type_of_their_key(write, key, text, read):
    assert read(load_spec(write(WHOLE), [(key, text)], validate_plugins=False))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("train: {steps: abc}", "train.steps is 'abc'; expected a whole number"),
        ("train: {steps: 1.5}", "train.steps is 1.5; expected a whole number"),
        ("train: {optimizer: {betas: [1]}}", "train.optimizer.betas is [1]; expected a list of 2 numbers"),
        ("train: {precision: fp3}", "train.precision is 'fp3'; expected one of fp32, bf16. Did you mean 'fp32'?"),
        ("train: {loss_weights: {ce: x}}", "train.loss_weights.ce is 'x'; expected a number"),
        ("train: {validation: {prompts: [1]}}", "train.validation.prompts[0] is 1; expected text"),
        ("train: {trackers: tensorboard}", "train.trackers is 'tensorboard'; expected a list of names of plugins"),
        ("train: {stps: 1}", "unknown key 'train.stps'. Did you mean 'steps'? Keys of 'train': run_dir, steps"),
        ("modle: {}", "unknown key 'modle'. Did you mean 'model'? Keys: model, codec, stages, sampler, guidance, data, train"),
        ("model: {codec: {class_path: small, args: {}}}", "unknown key 'model.codec.args'. Did you mean 'init_args'?"),
        ("model: {codec: 3}", "model.codec is 3; expected the name of a plugin, or class_path and init_args"),
        ("model: 3", "model is 3; expected a mapping with backbone, router"),
        (
            "model: {encoder: {init_args: {a: 1}}}",
            "model.encoder: arguments are given, but no plugin. Name it first with model.encoder=NAME",
        ),
        ("data: {seed: 1, datasets: null}", "data.datasets is None; expected a mapping of names to a mapping with source"),
    ],
)
def test_wrong_files_end_in_one_line_with_the_key(write, layer, expected):
    assert refusal(write(WHOLE, layer), validate_plugins=False).startswith(expected)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.steps", "abc", "train.steps is 'abc'; expected a whole number"),
        ("train.step", "1", "unknown key 'train.step'. Did you mean 'steps'?"),
        ("train.steps.x", "1", "unknown key 'train.steps.x'. 'train.steps' holds int, which has no keys"),
        ("train.schedule", "{", "train.schedule is '{'; expected valid YAML"),
        ("model.encoder.num_mels", "3", "model.encoder: arguments are given, but no plugin"),
        ("model.codec", "smal", "model.codec: unknown codec 'smal'. Did you mean 'small'? Installed: "),
        ("model.codec", "large", "model.codec: codec 'large': missing argument latent_dim"),
        ("model.codec.frame_siz", "3", "model.codec: codec 'small' has no argument 'frame_siz'. Did you mean 'frame_size'?"),
        ("model.codec.frame_size", "x", "model.codec: codec 'small': frame_size is 'x'; expected a whole number"),
        ("model.connectors.latent.tokens", "3", "model.connectors.latent: connector 'linear': 'tokens' is set by the assembly"),
        ("model.codec", "spec_codecs.Small", "model.codec: codec 'spec_codecs.Small' is an import path"),
    ],
)
def test_wrong_overrides_end_in_one_line_with_the_key(write, key, text, expected):
    assert refusal(write(BASE + "train: {run_dir: x}"), [(key, text)]).startswith(expected)


def test_missing_keys_are_all_named(write):
    assert refusal(write("model: {}")) == (
        "model.backbone, model.router, model.codec, model.connectors.latent, model.objective and sampler are missing. Add them to the spec"
    )
    message = refusal(write("sampler: euler\nmodel: {codec: small}"))
    assert message == "model.backbone, model.router, model.connectors.latent and model.objective are missing. Add them to the spec"


LAUGHS = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)) + "train: {steps: *a8}"
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  codec: [a", "layer0.yaml:2:12: not valid YAML: "),
        ("sampler: a\nsampler: b", "layer0.yaml:2:1: not valid YAML: key 'sampler' is given twice"),
        (
            "model: !!python/object/apply:os.getcwd []",
            "layer0.yaml:1:8: not valid YAML: the tag '!!python/object/apply:os.getcwd' is not supported",
        ),
        ("train: {steps: !!bool zzz}", "layer0.yaml:1:16: not valid YAML: the tag '!!bool' is not supported; expected none"),
        (LAUGHS, "not valid YAML: it has more than 100,000 values, references counted"),
        (MERGES, "not valid YAML: it has more than 100,000 values, references counted"),
        ("a: " + "[" * 150 + "]" * 150, "not valid YAML: it has values within more than 100 others"),
        ("- a", "layer0.yaml is a list; expected a mapping"),
        (
            "sampler: {class_path: euler, init_args: &m {a: *m}}",
            "layer0.yaml:1:48: not valid YAML: '*m' refers to a value that contains it",
        ),
        ("a: " + "[" * 5000, "layer0.yaml:1:103: not valid YAML: it has values within more than 100 others"),
        ("a: \x07", "layer0.yaml: not valid YAML: "),
    ],
)
def test_malformed_yaml_names_file_and_line(write, text, expected):
    assert expected in refusal(write(text), validate_plugins=False)


def test_files_that_are_not_specs(tmp_path):
    assert refusal(["no-such-spec"]).startswith("there is no spec 'no-such-spec': it is neither a file nor a shipped spec.")
    assert refusal([tmp_path / "absent.yaml"]).startswith(
        f"there is no spec '{tmp_path / 'absent.yaml'}': it is neither a file nor a shipped spec."
    )
    assert refusal([tmp_path]).endswith("is a directory, not a spec. Give the YAML file in it")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    assert "cannot be read" in refusal([tmp_path / "latin.yaml"])
    assert refusal([]).startswith("no spec is given. Name a YAML file or a shipped spec")


@pytest.mark.parametrize("name", shipped_specs())
def test_shipped_specs_are_found_by_name_and_suggested(name):
    found, same = (load_spec([given], validate_plugins=False, base={}) for given in (name, f"{name}.yaml"))
    assert found == same
    assert f"Did you mean '{name}'?" in refusal([f"{name}q"])


def test_yaml_is_counted_as_it_is_read_and_not_only_once_it_is_whole(write, monkeypatch):
    monkeypatch.setattr(yaml_text, "MOST_NODES", 100)
    keys = "".join(f"k{i}: 1\n" for i in range(5000))
    for text, line in (("data:\n" + "  - a\n" * 5000, 99), (keys, 50), ("a: [\n" + "1,\n" * 5000 + "]", 99)):
        assert f"layer0.yaml:{line}:" in refusal(write(text), validate_plugins=False), text[:20]
    monkeypatch.setattr(yaml_text, "MOST_CHARACTERS", 50)
    assert "it has 60 characters; expected at most 50" in refusal(write("#" * 60), validate_plugins=False)


def test_words_and_numbers_follow_yaml_1_2(write):
    text = "train: {run_dir: no, validation: {prompts: [yes, 'null', '1', 1:30, 2024-01-01]}, optimizer: {lr: 1e-4}, save_every: 0x10}"
    train = load_spec(write(BASE, text), validate_plugins=False).train
    assert train.run_dir == "no" and train.validation.prompts == ["yes", "null", "1", "1:30", "2024-01-01"]
    assert (train.optimizer.lr, train.save_every) == (1e-4, 16)


def test_class_paths_need_trust(write):
    override = [("model.codec", "spec_codecs.Small")]
    with pytest.raises(PluginError, match="--trust-class-paths"):
        load_spec(write(BASE), override)
    trusted = load_spec(write(BASE), override, trust_class_paths=True)
    assert resolve(trusted, trust_class_paths=True).model.codec.class_path == "small"


def test_resolving_fills_every_default_and_is_idempotent(write):
    spec = load_spec(write(BASE), [("model.codec", "spec-codecs:small")])
    full = resolve(spec)
    assert full.model.codec == Slot("small", {"frame_size": 64, "name": None, "weights": {}})
    assert resolve(full) == full
    for _, kind, slot in slots(full):
        assert slot.init_args == registry.validate_init_args(kind, slot)
    assert load_spec(write(dump_spec(full))) == full


def test_changed_keys_name_what_differs(write):
    old = spec_to_dict(load_spec(write(WHOLE), validate_plugins=False))
    overrides = [("train.steps", "9"), ("train.seed", "1"), ("model.codec.frame_size", "8"), ("train.validation.every", "4")]
    new = spec_to_dict(load_spec(write(WHOLE), overrides, validate_plugins=False))
    assert changed_keys(old, new, may_change=["train.steps", "train.validation"]) == [
        "model.codec.init_args.frame_size: 32 -> 8",
        "train.seed: 4396 -> 1",
    ]
    assert changed_keys(old, old) == []
    del new["train"]
    assert changed_keys(new, old, may_change=["model"])[0].startswith("train: absent -> {")


def test_slots_of_options(write):
    assert parse_slot("dataset", "toy-sounds") == Slot("toy-sounds")
    assert parse_slot("dataset", "{class_path: toy-sounds, init_args: {seed: 1}}") == Slot("toy-sounds", {"seed": 1})
    with pytest.raises(SpecError, match="dataset.class_path|dataset: "):
        parse_slot("dataset", "{init_args: {}}")


text = st.text(max_size=8) | st.sampled_from(
    ["null", "~", "true", "no", "1e-4", "010", "1:30", "<<", "a: b", "- x", "#", " ", "\x85", "=", "é\n\n "]
)
path = text.filter(lambda name: not name.startswith("~"))  # which reads back as the home directory
number = st.floats(allow_nan=False)
data = st.recursive(
    st.none() | st.booleans() | st.integers() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
slot = st.builds(Slot, text, st.dictionaries(text, data, max_size=3))
heard = st.none() | slot
written = st.tuples(heard, slot).flatmap(
    lambda parts: st.builds(
        WrittenModel,
        backbone=slot,
        router=slot,
        codec=slot,
        connectors=st.builds(ConnectorsSpec, latent=slot, features=st.just(None if parts[0] is None else parts[1])),
        objective=slot,
        encoder=st.just(parts[0]),
        tokenizer=st.builds(TokenizerSpec, path=st.none() | path),
    )
)
specs = st.builds(
    Spec,
    model=st.builds(lambda one, sampler: model_of(one, sampler=sampler), written, slot),
    data=st.none()
    | st.builds(
        DataSpec,
        datasets=st.dictionaries(text, st.builds(MixtureEntry, source=slot, max_seconds=st.none() | number), max_size=2),
        tasks=st.dictionaries(
            text,
            st.lists(st.builds(SegmentTemplate, text=st.none() | text, known=st.none() | st.tuples(number, number)), max_size=2),
            max_size=2,
        ),
    ),
    train=st.none()
    | st.builds(
        TrainSpec,
        run_dir=path,
        loss_weights=st.dictionaries(text, number, max_size=2),
        validation=st.builds(ValidationSpec, prompts=st.lists(text, max_size=2)),
        trackers=st.lists(slot, max_size=2),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=specs)
def test_what_is_written_reads_back_as_it_was(tmp_path_factory, spec):
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(dump_spec(spec), encoding="utf-8")
    again = load_spec([path], validate_plugins=False)
    assert again == spec
    assert dump_spec(again) == dump_spec(spec)  # and of the same types: 1 is not 1.0, nor True


def test_schema_describes_keys_plugins_and_defaults():
    schema = json.loads(json.dumps(spec_schema(), allow_nan=False))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == [], "a spec has a model or a codec"
    assert schema["properties"]["codec"]["anyOf"][0]["required"] == ["codec"]
    model = schema["properties"]["model"]["anyOf"][0]
    assert model["properties"]["codec"]["$ref"] == "#/$defs/codec"
    assert model["properties"]["latent_positions"]["enum"] == ["shared", "advance"]
    train = schema["properties"]["train"]["anyOf"][0]["properties"]
    assert train["steps"] == {"description": "number of optimizer steps.", "type": "integer", "default": 1000}
    assert train["trackers"]["items"] == {"$ref": "#/$defs/tracker"}
    choices = {c["properties"]["class_path"].get("const"): c for c in schema["$defs"]["codec"]["anyOf"] if "properties" in c}
    small, large = choices["small"]["properties"]["init_args"], choices["large"]["properties"]["init_args"]
    assert small["properties"]["frame_size"] == {"description": "samples per frame.", "type": "integer", "default": 64}
    assert small["properties"]["name"] == {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    assert large["required"] == ["latent_dim"] and choices["large"]["required"] == ["class_path", "init_args"]
    names = schema["$defs"]["codec"]["anyOf"][0]["enum"]
    assert "small" in names and "large" not in names  # a name alone cannot give what is required


def accepts(schema: dict, value: object) -> bool:
    """The few keywords of JSON schema (draft 2020-12, sections 6 and 10) that are written, as a check of its meaning."""
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list, "object": dict}
    if "anyOf" in schema:
        return any(accepts(one, value) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "type" in schema and (not isinstance(value, kinds[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")):
        return False
    if schema.get("type") == "array":
        items = schema.get("prefixItems", [schema.get("items", {})] * len(value))
        return schema.get("minItems", 0) <= len(value) == len(items) and all(map(accepts, items, value))
    if schema.get("type") == "object":
        return all(accepts(schema["additionalProperties"], item) for item in value.values())
    return True


@dataclasses.dataclass
class Typed:
    annotation: object
    good: list
    bad: list


@pytest.mark.parametrize(
    "case",
    [
        Typed(int, [3], ["3", 3.5, None, True]),
        Typed(float, [3, 0.5], ["x", None, True]),
        Typed(str | None, ["3", None], [3]),
        Typed(list[str], [[], ["a"]], ["a", [1]]),
        Typed(tuple[float, float], [[1, 2]], [[1], [1, 2, 3]]),
        Typed(tuple[int, ...], [[], [1, 2]], [["a"]]),
        Typed(dict[str, float], [{"a": 1}], [{"a": "b"}, []]),
    ],
    ids=lambda case: str(case.annotation),
)
def test_schema_accepts_what_conversion_accepts(case):
    from soundomni.core.spec.values import convert

    schema = schema_of(case.annotation)
    for value in case.good:
        convert(value, case.annotation, "x")
        assert accepts(schema, value)
    for value in case.bad:
        with pytest.raises(SpecError):
            convert(value, case.annotation, "x")
        assert not accepts(schema, value)


def test_dump_is_plain_yaml_for_other_readers(write):
    tree = yaml.safe_load(dump_spec(load_spec(write(WHOLE), validate_plugins=False)))
    adamw = {"class_path": "adamw", "init_args": {}}
    assert tree["train"]["optimizer"] == {"rule": adamw, "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-15, "weight_decay": 0.0, "clip": 1.0}
    assert tree["model"]["encoder"] is None
