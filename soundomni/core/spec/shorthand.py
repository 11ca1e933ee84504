"""Short keys of a spec, such as `model.codec` and `sampler`, and the full keys that they stand for.

A short key stands for a key of the only modality that is made, or heard: `model.codec` is
`model.modalities.latent.codec` in most models. A spec with one of each is also written back in short keys, so that the
common case looks simple; several modalities are written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soundomni.core.errors import SpecError, did_you_mean, listed
from soundomni.core.spec.discovery import OWN
from soundomni.core.spec.schema import GuidanceSpec, ModalitySpec, ModelSpec, Slot
from soundomni.core.spec.values import plain, settle
from soundomni.core.spec.written import ConnectorsSpec, WrittenModel

LATENT, FEATURES = "latent", "features"
"""Names of the modalities that short keys create."""
MADE: Mapping[str, str] = {
    "model.codec": "codec",
    "model.connectors.latent": "connector",
    "model.objective": "objective",
    "model.latent_positions": "positions",
    "model.normalize": "normalize",
    "sampler": "sampler",
    "guidance": "guidance",
}
HEARD: Mapping[str, str] = {
    "model.encoder": "encoder",
    "model.connectors.features": "connector",
    "model.feature_positions": "positions",
    "model.feature_attend": "attend",
}
"""Short key → key of the modality that is made, or heard."""
PARTS: Mapping[str, str] = {
    "codec": f"{LATENT}.codec",
    "latent_connector": f"{LATENT}.connector",
    "encoder": f"{FEATURES}.encoder",
    "features_connector": f"{FEATURES}.connector",
}
"""Short name of a part → its name, as model.start_fresh takes them."""
_ORDER = (
    *("backbone", "router", "codec", "connectors", "objective", "encoder", "tokenizer", "prompt", "freeze", "critic"),
    *("latent_positions", "feature_positions", "feature_attend", "normalize", "chat", "start", "start_fresh", "clips"),
)
_NEEDED = ("codec", "connector", "objective", "sampler")
_DISTANT = ("oobleck", f"{OWN}:oobleck")
"""Names of the codec that computed distances itself, before there were critics."""


class Expansion:
    """Writes the short keys of layers out, the lowest layer first."""

    def __init__(self) -> None:
        self._created: set[str] = set()

    def expand(self, layer: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
        """Return a layer, as plain data, with full keys. Anything that does not have the shape of a spec stays as it is.

        Raise SpecError for a short key that may mean several modalities.
        """
        given = dict(layer)
        short = {key: _take(given, key.split(".")) for key in (*MADE, *HEARD) if _has(layer, key.split("."))}
        model = given.get("model")
        if not short:
            return given
        if not isinstance(model, Mapping):
            if "model" in given:
                return dict(layer)
            model = {}
        own = model.get("modalities")
        modalities: dict[str, Any] = dict(own) if isinstance(own, Mapping) else {}
        for table, name_of, part in ((MADE, LATENT, "objective"), (HEARD, FEATURES, "encoder")):
            mine = {key: short[key] for key in table if key in short}
            if mine:
                name = self._name(next(iter(mine)), table, name_of, part, _modalities(below), modalities)
                values = {table[key]: value for key, value in mine.items()}
                absent = values.get("encoder", ...) is None and values.get("connector") is None
                if table is HEARD and absent:
                    modalities[name] = None
                else:
                    there = _mapping(modalities.get(name))
                    for short_key in mine:
                        _check_once(short_key, f"model.modalities.{name}.{table[short_key]}", there.get(table[short_key]))
                    modalities[name] = {**there, **values}
        given["model"] = {**model, "modalities": modalities}
        return given

    def _name(self, key: str, table: Mapping[str, str], name: str, part: str, below: Mapping[str, Any], own: Mapping[str, Any]) -> str:
        """Return the name of the modality that a short key stands for."""
        joined = {**below, **{n: m and {**_mapping(below.get(n)), **_mapping(m)} for n, m in own.items()}}
        there = [n for n, m in joined.items() if isinstance(m, Mapping) and m.get(part) is not None]
        if len(there) > 1:
            full = f"model.modalities.{there[0]}.{table[key]}"
            raise SpecError(f"{key} may mean several modalities: {', '.join(there)}. Write {full} for the first of them")
        if there:
            return there[0]
        if name not in joined:
            self._created.add(name)
        return name

    def finish(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole spec, as plain data in full keys, with the defaults that short keys imply.

        Raise SpecError if the keys of a modality that short keys made are not all there.
        """
        model = tree.get("model")
        if not isinstance(model, Mapping):
            return _of_codec(tree)
        modalities = dict(_modalities(tree))
        latent = modalities.get(LATENT)
        if LATENT in self._created and isinstance(latent, Mapping):
            missing = [short for short, key in MADE.items() if key in _NEEDED and latent.get(key) is None]
            if missing:
                raise _missing([*_required(model), *missing])
            modalities[LATENT] = {"positions": "shared", "normalize": "channel", **latent}
        features = modalities.get(FEATURES)
        if FEATURES in self._created and isinstance(features, Mapping):
            if (features.get("encoder") is None) != (features.get("connector") is None):
                raise SpecError("model.encoder and model.connectors.features go together. Set both, or neither")
            if features.get("encoder") is None:
                modalities.pop(FEATURES)
        if not any(isinstance(one, Mapping) for one in modalities.values()):
            raise _missing([*_required(model), *(short for short, key in MADE.items() if key in _NEEDED)])
        left = {name: one for name, one in modalities.items() if one is not None}
        return _without_windows(_of_codec({**tree, "model": {**model, "modalities": _ordered(left), **_fresh(model)}}))


def expanded(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole spec, as plain data, in full keys. Raise SpecError as `Expansion` does."""
    expansion = Expansion()
    return expansion.finish(expansion.expand(tree, {}))


def contracted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole spec, as plain data in full keys, in short keys if these can say everything."""
    tree = {name: value for name, value in tree.items() if value is not None or name not in ("model", "codec", "stages")}
    if tree.get("stages") is not None:
        return {"stages": tree["stages"]}
    if tree.get("model") is None:
        return tree
    names = {name: one for name, one in tree["model"]["modalities"].items() if one is not None}
    if not _is_short(names):
        return dict(tree)
    latent, features = names[LATENT], names.get(FEATURES) or {"positions": "advance", "attend": "full"}
    full = {"model": {key: value for key, value in tree["model"].items() if key != "modalities"}}
    for table, modality in ((MADE, latent), (HEARD, features)):
        for short, key in table.items():
            _put(full, short.split("."), modality.get(key))
    model = {name: full["model"][name] for name in _ORDER if name in full["model"]}
    if model.get("start_fresh") is not None:
        model["start_fresh"] = [short_part(part) for part in model["start_fresh"]]
    rest = {name: value for name, value in tree.items() if name != "model"}
    return {"model": model, "sampler": full["sampler"], "guidance": full["guidance"], **rest}


def _of_codec(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole spec, as plain data in full keys, of a run that trains a codec: earlier versions wrote a whole model, of
    which `train.target` named the codec."""
    train, modalities = tree.get("train"), _modalities(tree).values()
    if not isinstance(train, Mapping) or "target" not in train:
        return dict(tree)
    result = {**tree, "train": {name: value for name, value in train.items() if name != "target"}}
    made = [one for one in modalities if isinstance(one, Mapping) and one.get("objective") is not None]
    if train["target"] == "codec" and made and tree.get("codec") is None:
        del result["model"]
        result["codec"] = _with_distances(made[0].get("codec"))
    return result


def _with_distances(codec: Any) -> dict[str, Any]:
    """Return the section `codec` for a codec that earlier versions trained; `oobleck` computed two distances itself."""
    slot = {"class_path": codec} if isinstance(codec, str) else dict(_mapping(codec))
    if slot.get("class_path") not in _DISTANT:
        return {"codec": codec}
    arguments = dict(_mapping(slot.get("init_args")))
    windows = {"windows": arguments.pop("stft_windows")} if "stft_windows" in arguments else {}
    critics = {"stft": {"class_path": "multi-stft", "init_args": {**windows, "a_weighting": False}}, "l1": "l1"}
    return {"codec": {**slot, "init_args": arguments}, "critics": critics}


def _without_windows(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole spec, as plain data in full keys, without the argument `stft_windows` of a model's codec `oobleck`.

    Model directories and runs of earlier versions name it. It only ever mattered while the codec itself was trained.
    """

    def rest(slot: Any) -> Any:
        if _mapping(slot).get("class_path") not in _DISTANT or "stft_windows" not in _mapping(slot.get("init_args")):
            return slot
        return {**slot, "init_args": {name: value for name, value in slot["init_args"].items() if name != "stft_windows"}}

    if not isinstance(tree.get("model"), Mapping):
        return dict(tree)
    modalities = {
        name: {**one, "codec": rest(one["codec"])} if _mapping(one).get("codec") is not None else one
        for name, one in _modalities(tree).items()
    }
    return {**tree, "model": {**tree["model"], "modalities": modalities}}


def check_modalities(model: ModelSpec) -> None:
    """Raise SpecError if a modality has neither a codec nor an encoder, or parts that do not go together."""
    for name, one in model.used.items():
        key = f"model.modalities.{name}"
        if (one.codec is None) == (one.encoder is None):
            given = "neither a codec nor an encoder" if one.codec is None else "a codec and an encoder"
            raise SpecError(f"{key} has {given}; expected one of them")
        if one.objective is not None and one.codec is None:
            raise SpecError(f"{key} has an objective, but an encoder only hears. Give it a codec, or leave the objective out")
        if (one.objective is None) != (one.sampler is None):
            has, lacks = ("an objective", "sampler") if one.sampler is None else ("a sampler", "objective")
            raise SpecError(f"{key} has {has} but no {lacks}; expected both, to make it, or neither. Set {key}.{lacks}")
        if one.enters != "prefix" and one.encoder is None:
            raise SpecError(f"{key}.enters is '{one.enters}', but '{name}' has a codec; expected an encoder")
        if "." in name or not name.isidentifier() or name in ("text", "backbone", "critic"):
            raise SpecError(f"the modality '{name}' has a name that is not possible; expected a word such as {LATENT} or codes")
        _check_aligned(name, one, model)
    _check_fresh(model)


def _check_aligned(name: str, one: ModalitySpec, model: ModelSpec) -> None:
    """Raise SpecError if a modality names others to add that it cannot have."""
    for i, other in enumerate(one.aligned):
        key, known = f"model.modalities.{name}.aligned[{i}]", [known for known in model.used if known != name]
        if one.objective is None:
            raise SpecError(f"{key} is '{other}', but clips of '{name}' are never made. Give it an objective, or leave aligned out")
        if other not in known:
            expected = f"expected one of {', '.join(known)}" if known else "the model has no other modality"
            raise SpecError(f"{key} is '{other}'; {expected}.{did_you_mean(other, known)}")
        if other in one.aligned[:i]:
            raise SpecError(f"{key} is '{other}', which is there already. Name each modality once")


def _check_fresh(model: ModelSpec) -> None:
    """Raise SpecError if `start_fresh` names a part that the model does not have."""
    parts = {
        f"{name}.{part}" for name, one in model.used.items() for part in ("codec", "encoder", "connector") if getattr(one, part) is not None
    }
    parts |= {"backbone", "critic"} if model.critic is not None else {"backbone"}
    known = sorted(map(short_part, parts) if short_keys(model) else parts)
    for i, part in enumerate(model.start_fresh or ()):
        if part not in parts:
            given = short_part(part)
            near = did_you_mean(given, known)
            raise SpecError(f"model.start_fresh[{i}] is '{given}'; expected one of {', '.join(known)}.{near}")


def short_keys(model: ModelSpec | None) -> Mapping[str, str]:
    """Return full key → short key for a model that is written in short keys; empty for any other, and without a model."""
    if model is None:
        return {}
    parts = {
        name: {field: getattr(one, field) for field in ("encoder", "objective", "attend", "enters", "normalize", "guidance")}
        for name, one in model.used.items()
    }
    return _SHORT if _is_short(parts) else {}


def written_key(key: str, model: ModelSpec | None) -> str:
    """Return a dotted key of a spec as the model's own spec is written: a full key becomes short if that is.

    Anything below a key stays: model.modalities.latent.codec.init_args is model.codec.init_args.
    """
    for full, short in short_keys(model).items():
        if key == full or key.startswith(f"{full}."):
            return short + key.removeprefix(full)
    return key


def written_model(model: ModelSpec) -> WrittenModel:
    """Return the parts of a model as short keys name them, for formats that hold one modality of each kind.

    Raise SpecError if the model has others.
    """
    used = model.used
    if not short_keys(model):
        raise SpecError(f"the model has the modalities {', '.join(used)}; expected only {LATENT} and {FEATURES}")
    latent, features = used[LATENT], used.get(FEATURES)
    assert latent.codec is not None and latent.objective is not None, "it is written in short keys"
    return WrittenModel(
        backbone=model.backbone,
        router=model.router,
        codec=latent.codec,
        connectors=ConnectorsSpec(latent=latent.connector, features=None if features is None else features.connector),
        objective=latent.objective,
        encoder=None if features is None else features.encoder,
        tokenizer=model.tokenizer,
        prompt=model.prompt,
        freeze=model.freeze,
        critic=model.critic,
        latent_positions=latent.positions,
        feature_positions="advance" if features is None else features.positions,
        feature_attend="full" if features is None else features.attend,
        normalize=latent.normalize,
        chat=model.chat,
        clips=model.clips,
        start=model.start,
        start_fresh=None if model.start_fresh is None else [short_part(part) for part in model.start_fresh],
    )


def model_of(written: WrittenModel, *, sampler: Slot, guidance: GuidanceSpec | None = None) -> ModelSpec:
    """Return the model of one modality that is made, and one that is heard if there is an encoder: for specs built in Python.

    Raise SpecError if only one of encoder and its connector is given.
    """
    latent = ModalitySpec(
        codec=written.codec,
        connector=written.connectors.latent,
        objective=written.objective,
        sampler=sampler,
        guidance=guidance or GuidanceSpec(),
        normalize=written.normalize,
        positions=written.latent_positions,
    )
    modalities: dict[str, ModalitySpec | None] = {LATENT: latent}
    features = written.connectors.features
    if (written.encoder is None) != (features is None):
        raise SpecError("model.encoder and model.connectors.features go together. Set both, or neither")
    if features is not None:
        modalities[FEATURES] = ModalitySpec(
            encoder=written.encoder, connector=features, positions=written.feature_positions, attend=written.feature_attend
        )
    fresh = None if written.start_fresh is None else [PARTS.get(part, part) for part in written.start_fresh]
    return ModelSpec(
        backbone=written.backbone,
        router=written.router,
        modalities=modalities,
        tokenizer=written.tokenizer,
        prompt=written.prompt,
        freeze=written.freeze,
        critic=written.critic,
        chat=written.chat,
        clips=written.clips,
        start=written.start,
        start_fresh=fresh,
    )


def short_part(part: str) -> str:
    """Return the short name of a part, such as "codec" for "latent.codec"; other names stay.

    >>> short_part("latent.connector"), short_part("latent.normalizer"), short_part("codes.codec")
    ('latent_connector', 'normalizer', 'codes.codec')
    """
    known = {full: short for short, full in PARTS.items()} | {f"{LATENT}.normalizer": "normalizer"}
    return known.get(part, part)


def shorten(text: str, model: Any = None) -> str:
    """Return a message in which keys of the modalities `latent` and `features` are short.

    Nothing changes if `model`, as plain data in full keys, has others.
    """
    modalities = _mapping(_mapping(model).get("modalities"))
    if any(one is not None and name not in (LATENT, FEATURES) for name, one in modalities.items()):
        return text
    for full, short in _SHORT.items():
        text = text.replace(full, short)
    return text


_SHORT = {f"model.modalities.{name}.{key}": short for name, table in ((LATENT, MADE), (FEATURES, HEARD)) for short, key in table.items()}


def _is_short(modalities: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether short keys can say everything about these modalities."""
    latent, features = modalities.get(LATENT), modalities.get(FEATURES)
    if not set(modalities) <= {LATENT, FEATURES} or latent is None:
        return False
    if latent.get("objective") is None or latent.get("attend", "full") != "full":
        return False
    if features is None:
        return True
    if features.get("enters", "prefix") != "prefix":
        return False
    plain_guidance = features.get("guidance", GuidanceSpec()) in (GuidanceSpec(), plain(GuidanceSpec()))
    return features.get("encoder") is not None and features.get("normalize", "none") == "none" and plain_guidance


def _fresh(model: Mapping[str, Any]) -> dict[str, Any]:
    fresh = settle(model.get("start_fresh"))
    if not isinstance(fresh, list):
        return {}
    return {"start_fresh": [PARTS.get(part, part) if isinstance(part, str) else part for part in fresh]}


def _ordered(modalities: Mapping[str, Any]) -> dict[str, Any]:
    """Return modalities with `latent` before `features`, whatever layer named them first: the order decides which weights are
    drawn first."""
    names = sorted(modalities, key=lambda name: name == FEATURES)
    return {name: modalities[name] for name in names}


def _modalities(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(_mapping(tree.get("model")).get("modalities"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _required(model: Mapping[str, Any]) -> list[str]:
    return [f"model.{name}" for name in ("backbone", "router") if model.get(name) is None]


def _check_once(short: str, full: str, given: Any) -> None:
    if given is not None:
        raise SpecError(f"{short} and {full} are both given; expected one. Remove one of them")


def _missing(keys: list[str]) -> SpecError:
    verb, them = ("is", "it") if len(keys) == 1 else ("are", "them")
    return SpecError(f"{listed(keys)} {verb} missing. Add {them} to the spec")


def _has(tree: Any, path: list[str]) -> bool:
    if not isinstance(tree, Mapping) or path[0] not in tree:
        return False
    return len(path) == 1 or _has(tree[path[0]], path[1:])


def _take(tree: dict[str, Any], path: list[str]) -> Any:
    """Remove a value from a tree, whose mappings are copied on the way, and return it; empty mappings go too."""
    if len(path) == 1:
        return tree.pop(path[0])
    inner = dict(tree[path[0]])
    value = _take(inner, path[1:])
    tree[path[0]] = inner
    if not inner and path[0] != "model":
        tree.pop(path[0])
    return value


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
