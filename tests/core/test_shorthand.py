"""Short keys of a spec and the full keys that they stand for: both say the same, in files, layers and overrides."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.assembly.build import build_model
from soundomni.core.errors import SpecError
from soundomni.core.spec.load import comparable, dump_spec, load_spec, shipped_specs, spec_of, spec_to_dict
from soundomni.core.spec.schema import GuidanceSpec, ModalitySpec, ModelSpec, Slot, Spec
from soundomni.core.spec.shorthand import written_key
from soundomni.core.spec.slots import slots

FULL = {
    "codec": ("latent", "codec"),
    "objective": ("latent", "objective"),
    "latent_positions": ("latent", "positions"),
    "normalize": ("latent", "normalize"),
    "encoder": ("features", "encoder"),
    "feature_positions": ("features", "positions"),
    "feature_attend": ("features", "attend"),
}
"""Short key of the section `model` → modality and its key."""
SHORT: dict[str, Any] = {
    "model": {
        "backbone": "mot",
        "router": "modality",
        "codec": "mdct",
        "connectors": {"latent": "linear"},
        "objective": "flow-matching",
    },
    "sampler": "euler",
}
CODES: dict[str, Any] = {"codec": "harmonic-codes", "connector": "codes", "objective": "masked", "sampler": "maskgit"}
SEVERAL: dict[str, Any] = {"model": {"modalities": {"codes": CODES}}}
HEARD: dict[str, Any] = {"model": {"encoder": "log-mel", "connectors": {"features": "linear"}}}


def full_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same spec in full keys, with what short keys imply."""
    model, modalities = dict(tree["model"]), {name: dict(one) for name, one in tree["model"].get("modalities", {}).items()}
    if "codec" in model:
        modalities["latent"] = {"positions": "shared", "normalize": "channel", **modalities.get("latent", {})}
    for short, (name, key) in FULL.items():
        if short in model:
            modalities.setdefault(name, {})[key] = model.pop(short)
    for name, connector in model.pop("connectors", {}).items():
        modalities[name]["connector"] = connector
    rest = {key: value for key, value in tree.items() if key not in ("sampler", "guidance")}
    for key in ("sampler", "guidance"):
        if key in tree:
            modalities["latent"][key] = tree[key]
    return {**rest, "model": {**model, "modalities": modalities}}


def read(*layers: Mapping[str, Any], **overrides: str) -> Spec:
    pairs = [(key.replace("__", "."), text) for key, text in overrides.items()]
    return load_spec(layers, pairs, base={}, validate_plugins=False)


@pytest.mark.parametrize("name", shipped_specs())
def test_a_shipped_spec_in_full_keys_is_the_same_spec(name: str) -> None:
    tree = yaml.safe_load((resources.files("soundomni") / "specs" / f"{name}.yaml").read_text())
    if "model" not in tree:
        spec = load_spec([name], validate_plugins=False)
        assert load_spec([yaml.safe_load(dump_spec(spec))], validate_plugins=False) == spec
        return
    given_spec = load_spec([name], base={}, validate_plugins=False)
    full = full_keys(tree)
    assert not set(FULL) & set(full["model"]) and "sampler" not in full
    own = load_spec([full], base={}, validate_plugins=False)
    assert own.model.modalities == given_spec.model.modalities and own == given_spec
    assert list(own.model.used) == list(given_spec.model.used)
    assert load_spec([yaml.safe_load(dump_spec(own))], base={}, validate_plugins=False) == own


def test_a_spec_is_written_in_short_keys_if_these_say_everything() -> None:
    for layers in ((SHORT,), (SHORT, HEARD), (full_keys(SHORT),)):
        tree = spec_to_dict(read(*layers))
        assert "modalities" not in tree["model"] and {"sampler", "guidance"} <= set(tree) and spec_of(tree) == read(*layers)
    for change in (SEVERAL, {"model": {"modalities": {"ears": {"encoder": "log-mel", "connector": "linear"}}}}):
        tree = spec_to_dict(read(SHORT, HEARD, change))
        assert "sampler" not in tree and not {"codec", "connectors", "encoder"} & set(tree["model"])
        assert spec_of(tree) == read(SHORT, HEARD, change)
    tree = spec_to_dict(read(SHORT, HEARD, SEVERAL))
    assert list(tree["model"]["modalities"]) == ["latent", "codes", "features"]
    assert spec_to_dict(read(SHORT, HEARD, SEVERAL, {"model": {"modalities": {"codes": None}}})) == spec_to_dict(read(SHORT, HEARD))


@pytest.mark.parametrize("key", [{"normalize": "channel"}, {"guidance": {"scale": 2.0}}])
def test_what_short_keys_cannot_say_is_written_in_full(key: dict[str, Any]) -> None:
    spec = read(SHORT, HEARD, {"model": {"modalities": {"features": key}}})
    assert spec != read(SHORT, HEARD) and spec_of(spec_to_dict(spec)) == spec


LAYERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "codec": ({"model": {"codec": "dac"}}, {"model": {"modalities": {"latent": {"codec": "dac"}}}}),
    "arguments": (
        {"model": {"codec": {"init_args": {"frame_size": 32}}}},
        {"model": {"modalities": {"latent": {"codec": {"init_args": {"frame_size": 32}}}}}},
    ),
    "connector": ({"model": {"connectors": {"latent": "fourier"}}}, {"model": {"modalities": {"latent": {"connector": "fourier"}}}}),
    "sampler": ({"sampler": "heun"}, {"model": {"modalities": {"latent": {"sampler": "heun"}}}}),
    "guidance": ({"guidance": {"scale": 3.0}}, {"model": {"modalities": {"latent": {"guidance": {"scale": 3.0}}}}}),
    "encoder": (HEARD, {"model": {"modalities": {"features": {"encoder": "log-mel", "connector": "linear"}}}}),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_of_both_kinds_are_laid_over_each_other(name: str) -> None:
    short, full = LAYERS[name]
    assert read(SHORT, short) == read(SHORT, full) == read(full_keys(SHORT), short) == read(full_keys(SHORT), full) != read(SHORT)


@pytest.mark.parametrize(
    ("overrides", "modality", "part", "expected"),
    [
        ({"model__codec": "dac"}, "latent", "codec", Slot("dac")),
        ({"model__codec__frame_size": "32"}, "latent", "codec", Slot("mdct", {"frame_size": 32})),
        ({"model__modalities__latent__codec__frame_size": "32"}, "latent", "codec", Slot("mdct", {"frame_size": 32})),
        ({"sampler__num_steps": "5"}, "latent", "sampler", Slot("euler", {"num_steps": 5})),
        ({"model__modalities__latent__sampler__num_steps": "5"}, "latent", "sampler", Slot("euler", {"num_steps": 5})),
        ({"model__modalities__codes__codec": "dac"}, "codes", "codec", Slot("dac")),
        ({"model__modalities__codes__sampler__iterations": "[3, 1]"}, "codes", "sampler", Slot("maskgit", {"iterations": [3, 1]})),
        ({"model__modalities__codes__guidance__scale": "4"}, "codes", "guidance", GuidanceSpec(scale=4.0)),
    ],
)
def test_overrides_take_both_kinds_of_keys(overrides: dict[str, str], modality: str, part: str, expected: object) -> None:
    layers = (SHORT, SEVERAL) if modality == "codes" else (SHORT,)
    spec = read(*layers, **overrides)
    assert getattr(spec.model.used[modality], part) == expected
    assert {name: one for name, one in spec.model.used.items() if name != modality} == {
        name: one for name, one in read(*layers).model.used.items() if name != modality
    }


def test_null_removes_a_modality_whatever_the_layer_says_besides() -> None:
    only_latent, heun = read(SHORT), read(SHORT, sampler="heun")
    assert read(SHORT, SEVERAL, {"model": {"modalities": {"codes": None}}}) == only_latent
    assert read(SHORT, SEVERAL, model__modalities__codes="null") == only_latent
    assert read(SHORT, SEVERAL, {"model": {"modalities": {"codes": None}}, "sampler": "heun"}) == heun, "one is left"
    assert read(SHORT, HEARD, {"model": {"modalities": {"features": None}}}) == only_latent
    assert read(SHORT, HEARD, {"model": {"encoder": None, "connectors": {"features": None}}}) == only_latent
    codes = read(SHORT, SEVERAL, {"model": {"modalities": {"latent": None}}})
    assert list(codes.model.used) == ["codes"] and codes.model.made.sampler == Slot("maskgit")
    assert read(SHORT, SEVERAL, {"model": {"modalities": {"latent": None}}}, sampler="other").model.made.sampler == Slot("other")


ERRORS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "several are made": (
        [SHORT, SEVERAL, {"sampler": "heun"}],
        r"^sampler may mean several modalities: latent, codes. Write model.modalities.latent.sampler for the first of them$",
    ),
    "several in one layer": (
        [SHORT, {"model": {**SEVERAL["model"], "codec": "dac"}}],
        r"^model.codec may mean several modalities: latent, codes. Write model.modalities.latent.codec",
    ),
    "several are heard": (
        [SHORT, HEARD, {"model": {"modalities": {"ears": {"encoder": "log-mel", "connector": "mlp"}}}}, {"model": {"encoder": "other"}}],
        r"^model.encoder may mean several modalities: features, ears. Write model.modalities.features.encoder",
    ),
    "twice": (
        [{**SHORT, "model": {**SHORT["model"], "modalities": {"latent": {"codec": "dac"}}}}],
        "^model.codec and model.modalities.latent.codec are both given; expected one. Remove one of them$",
    ),
    "sampler twice": (
        [SHORT, {"sampler": "heun", "model": {"modalities": {"latent": {"sampler": "rk4"}}}}],
        "^sampler and model.modalities.latent.sampler are both given; expected one",
    ),
    "short keys are missing": ([{"model": {"codec": "mdct"}}], r"^model.backbone, model.router, model.connectors.latent, .*are missing"),
    "one short key is missing": ([{**SHORT, "sampler": None}], "^sampler is missing. Add it to the spec$"),
    "nothing at all": ([{"model": {"backbone": "mot", "router": "dense"}}], "model.codec, .*sampler are missing"),
    "no connector": (
        [SHORT, {"model": {"modalities": {"codes": {"codec": "dac"}}}}],
        "model.modalities.codes.connector.* missing",
    ),
    "encoder without connector": ([SHORT, {"model": {"encoder": "log-mel"}}], "model.encoder and model.connectors.features go together"),
    "both": (
        [SHORT, {"model": {"modalities": {"codes": {**CODES, "encoder": "log-mel"}}}}],
        "^model.modalities.codes has a codec and an encoder; expected one of them$",
    ),
    "neither": (
        [SHORT, {"model": {"modalities": {"codes": {"connector": "codes"}}}}],
        "^model.modalities.codes has neither a codec nor an encoder; expected one of them$",
    ),
    "objective without sampler": (
        [SHORT, {"model": {"modalities": {"codes": {**CODES, "sampler": None}}}}],
        "^model.modalities.codes has an objective but no sampler; .* Set model.modalities.codes.sampler$",
    ),
    "sampler without objective": (
        [SHORT, {"model": {"modalities": {"codes": {**CODES, "objective": None}}}}],
        "^model.modalities.codes has a sampler but no objective; .* Set model.modalities.codes.objective$",
    ),
    "objective of an encoder": (
        [SHORT, {"model": {"modalities": {"ears": {"encoder": "log-mel", "connector": "mlp", "objective": "masked", "sampler": "x"}}}}],
        "^model.modalities.ears has an objective, but an encoder only hears",
    ),
    "unknown key": (
        [SHORT, {"model": {"modalities": {"codes": {**CODES, "smapler": "x"}}}}],
        "unknown key 'model.modalities.codes.smapler'. Did you mean 'sampler'",
    ),
    "unknown part": ([SHORT, {"model": {"start_fresh": ["codce"]}}], r"model.start_fresh\[0\] is 'codce'; .*Did you mean 'codec'"),
    "unknown part of several": (
        [SHORT, SEVERAL, {"model": {"start_fresh": ["codes.codec", "codes.conector"]}}],
        r"model.start_fresh\[1\] is 'codes.conector'; expected one of backbone, codes.codec, .*Did you mean 'codes.connector'",
    ),
    "part that it does not have": (
        [SHORT, {"model": {"start_fresh": ["encoder"]}}],
        r"model.start_fresh\[0\] is 'encoder'; expected one of backbone, codec",
    ),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_mistakes_end_in_one_line_with_the_key(name: str) -> None:
    layers, message = ERRORS[name]
    with pytest.raises(SpecError, match=message) as caught:
        read(*layers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text", "backbone", "two words", "a.b", "a/b", "", "1st", "é-è"])
def test_names_that_are_not_possible_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"the modality '{name}' has a name that is not possible; expected a word such as"):
        read(SHORT, {"model": {"modalities": {name: CODES}}})


@pytest.mark.parametrize("name", ["items", "train", "half", "training", "forward"])
def test_names_that_torch_uses_are_refused_in_one_line(name: str) -> None:
    spec = load_spec([full_keys(SHORT), {"model": {"modalities": {name: CODES}}}], base={})
    with pytest.raises(SpecError, match=f"^the modality '{name}' has a name that torch uses itself. Choose another one"):
        build_model(spec.model, vocab_size=300)


def test_keys_of_slots_are_those_that_the_spec_is_written_in() -> None:
    assert {"model.codec", "sampler"} < {key for key, _, _ in slots(read(SHORT))}
    several = {key for key, _, _ in slots(read(SHORT, SEVERAL))}
    assert {"model.modalities.latent.codec", "model.modalities.codes.sampler"} < several and "sampler" not in several


def test_a_full_key_is_written_short_if_the_spec_is() -> None:
    short, several = read(SHORT).model, read(SHORT, SEVERAL).model
    for full, written in (("latent.codec.init_args.x", "model.codec.init_args.x"), ("latent.sampler", "sampler")):
        assert written_key(f"model.modalities.{full}", short) == written
        assert written_key(f"model.modalities.{full}", several) == f"model.modalities.{full}"
    assert written_key("model.modalities.latent.codecs", short) == "model.modalities.latent.codecs"
    old, new = comparable(read(SHORT), read(SHORT, SEVERAL))
    assert set(old) == set(new) and list(old["model"]["modalities"]) == ["latent"]


names = st.sampled_from(["latent", "features", "codes", "mel", "speech", "class"])
some_slots = st.builds(Slot, st.sampled_from(["one", "two"]), st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2))
guidances = st.builds(
    GuidanceSpec,
    scale=st.sampled_from([1.0, 2.5]),
    interval=st.sampled_from([(0.0, 1.0), (0.2, 0.9)]),
    renormalize=st.sampled_from(["none", "global"]),
)


@st.composite
def modality_specs(draw: st.DrawFn) -> ModalitySpec:
    """A modality that is made, given or heard, with any settings."""
    kind = draw(st.sampled_from(["made", "given", "heard"]))
    return ModalitySpec(
        codec=None if kind == "heard" else draw(some_slots),
        encoder=draw(some_slots) if kind == "heard" else None,
        connector=draw(some_slots),
        objective=draw(some_slots) if kind == "made" else None,
        sampler=draw(some_slots) if kind == "made" else None,
        guidance=draw(guidances),
        normalize=draw(st.sampled_from(["none", "channel", "half"])),
        positions=draw(st.sampled_from(["shared", "advance"])),
        attend=draw(st.sampled_from(["full", "causal"])),
    )


@settings(max_examples=60, deadline=None)
@given(modalities=st.dictionaries(names, modality_specs(), min_size=1, max_size=3), fresh=st.booleans(), freeze=st.booleans())
def test_any_map_of_modalities_is_read_as_it_was_written(modalities: dict[str, ModalitySpec], fresh: bool, freeze: bool) -> None:
    name = next(iter(modalities))
    model = ModelSpec(
        backbone=Slot("mot"),
        router=Slot("dense"),
        modalities=dict(modalities),
        freeze=[f"{name}.connector"] if freeze else [],
        start_fresh=[f"{name}.connector"] if fresh else None,
    )
    spec = Spec(model=model)
    again = load_spec([yaml.safe_load(dump_spec(spec))], base={}, validate_plugins=False)
    assert again == spec
    order = sorted(modalities, key=lambda one: one == "features")
    assert list(again.model.used) == order, "the order decides which weights are drawn first"
    assert load_spec([yaml.safe_load(dump_spec(again))], base={}, validate_plugins=False) == spec
