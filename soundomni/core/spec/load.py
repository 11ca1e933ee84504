"""Specs: read in layers, checked, resolved, written.

A spec consists of YAML files laid over each other, then dotted overrides. `core.spec.schema` defines its shape; its
plugin slots are short names or {class_path, init_args}. Checking plugins imports them; reading and merging import
nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from soundomni.core.errors import PluginError, SoundOmniError, SpecError, did_you_mean, message_of
from soundomni.core.files.paths import at_home
from soundomni.core.files.small_files import read_piped_text
from soundomni.core.spec import registry, yaml_text
from soundomni.core.spec.discovery import OWN
from soundomni.core.spec.merge import merge, override_layer
from soundomni.core.spec.provenance import Record, Source, check_installed, own_names, record_beside, settle_names, settled_name
from soundomni.core.spec.renamed import current_key, current_names
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.sections import check_sections, check_untrained
from soundomni.core.spec.shorthand import Expansion, contracted, expanded, short_keys, shorten
from soundomni.core.spec.slots import map_names, map_slots
from soundomni.core.spec.values import Text, convert, join, plain, settle
from soundomni.core.spec.written import ConnectorsSpec, WrittenSpec

SPEC_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class SpecLayers:
    """The layers of a spec as read, before they are laid over each other.

    Args:
        trees: plain data, the lowest layer first.
        recorded: which distributions the plugins of the layers came from, according to records next to their files.
    """

    trees: tuple[dict[str, Any], ...]
    recorded: Mapping[str, Source]

    def last(self, section: str, name: str) -> Any:
        """Return what the highest layer with the key `section.name` says there, or None if none has it."""
        return settle(self._last(section, name))

    def last_text(self, section: str, name: str) -> str | None:
        """Return the text of the highest layer with the key `section.name`; None if none has it, or if it is not text.

        Unlike `last`, this reads what was typed as text: `--model.start=5` names the directory 5.
        """
        value = self._last(section, name)
        text = convert(value, str | None, f"{section}.{name}") if isinstance(value, Text) else value
        return text if isinstance(text, str) else None

    def _last(self, section: str, name: str) -> Any:
        sections = [tree[section] for tree in self.trees if section in tree]
        inner = [settle(found) if isinstance(found, Text) else found for found in sections]
        named = [found[name] for found in inner if isinstance(found, Mapping) and name in found]
        return named[-1] if named else None


def load_spec(
    configs: Sequence[Path | str | Mapping[str, Any]],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    base: Mapping[str, Any] | None = None,
    trust_class_paths: bool = False,
    validate_plugins: bool = True,
) -> Spec:
    """Read a spec from layers.

    If a spec has `model.start`, the spec of that model completes it:
    `core.pretrained.spec_with_start.load_spec_with_start` reads the model. This function only takes its arguments.

    Args:
        configs: YAML files, names of shipped specs (`nano`, `nano.yaml`), or plain data as in a file; later ones are
            laid over earlier ones.
        overrides: (dotted key, text) pairs, laid over the files in order. `model.codec=mdct` chooses a plugin and, if
            it is another one, drops the arguments of the one before; `model.codec.frame_size=64` sets one argument of
            the chosen plugin.
        base: the lowest layer, as plain data. Give `{}` for a spec that names `model.start` but is complete, such as
            the spec of a run.
        trust_class_paths: whether slots may name classes by import path.
        validate_plugins: whether to import the plugins and check their arguments.

    Raise SpecError, in one line with the dotted key, if a file, a key, a value or an argument is wrong, or if
    `model.start` is named and no base is given; PluginError if a plugin is unknown, ambiguous, not trusted or broken.
    Paths within the spec stay as written, except for a leading `~` of `model.start`, `model.tokenizer.path` and
    `train.run_dir`; plugins expand it in their own.
    """
    layers = read_layers(configs, overrides)
    if base is None and (name := layers.last_text("model", "start")) is not None:
        alternatives = "Use load_spec_with_start, or give base={} if the spec is complete"
        raise SpecError(f"model.start is '{name}', whose spec load_spec does not read. {alternatives}")
    return join_layers(layers, base=base or {}, trust_class_paths=trust_class_paths, validate_plugins=validate_plugins)


def read_layers(configs: Sequence[Path | str | Mapping[str, Any]], overrides: Sequence[tuple[str, str]] = ()) -> SpecLayers:
    """Read the layers of a spec, with the arguments of `load_spec`.

    Raise SpecError if a file or an override is wrong.
    """
    if not configs and not overrides:
        raise SpecError(f"no spec is given. Name a YAML file or a shipped spec ({', '.join(shipped_specs()) or 'none is shipped'})")
    known: dict[str, Source] = {}
    trees: list[dict[str, Any]] = []
    for config in configs:
        tree, recorded = (dict(config), {}) if isinstance(config, Mapping) else _read(config)
        trees.append(current_names(tree))
        known |= recorded
    for key, text in overrides:
        if key == "train.target":
            raise SpecError(
                f"train.target is '{text}', but no longer exists: a spec with the section codec trains a codec. Write codec.codec in "
                "place of model.codec, and set model to null if another layer has one"
            )
    trees += [current_names(override_layer(current_key(key), text, WrittenSpec)) for key, text in overrides]
    return SpecLayers(tuple(trees), known)


def join_layers(layers: SpecLayers, *, base: Mapping[str, Any], trust_class_paths: bool = False, validate_plugins: bool = True) -> Spec:
    """Lay the layers of a spec over each other and over `base`, and check the result. Raise as `load_spec`."""
    tree = _joined([current_names(base), *layers.trees])
    given = _with_home(_converted(tree))
    spec = map_slots(given, _default_names(tree))
    return map_slots(spec, _checker(_given, trust_class_paths, layers.recorded) if validate_plugins else _settled)


def parse_slot(kind: str, text: str) -> Slot:
    """Read a plugin slot from the text of an option: a name, or YAML with class_path and init_args. Raise SpecError."""
    value = yaml_text.parse(text, kind)
    slot: Slot = convert(value if isinstance(value, dict) else text, Slot, kind)
    return slot


def resolve(spec: Spec, *, trust_class_paths: bool = False) -> Spec:
    """Return the spec with all arguments of all plugins filled in, and with portable plugin names.

    Raise as `load_spec`.
    """
    return map_slots(spec, _checker(_resolved, trust_class_paths, {}))


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """Return the spec as plain data: every slot as {class_path, init_args}, nulls included, in short keys if these can say
    everything (see shorthand.py).
    """
    return contracted(plain(spec))


def comparable(old: Spec, new: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two specs as plain data with the same keys: in short keys if both can be written in these."""
    if short_keys(old.model) and short_keys(new.model):
        return contracted(plain(old)), contracted(plain(new))
    return plain(old), plain(new)


def spec_of(tree: Mapping[str, Any]) -> Spec:
    """Return the spec of plain data, in short or full keys. Plugins are not checked. Raise SpecError as `load_spec`."""
    return _converted(expanded(tree))


def _joined(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lay layers over each other, the lowest first, and return plain data in full keys."""
    tree: dict[str, Any] = {}
    expansion = Expansion()
    for layer in layers:
        expanded_layer = expansion.expand(layer, tree)
        try:
            tree = merge(tree, expanded_layer, Spec)
        except SpecError as error:
            raise SpecError(shorten(str(error), expanded_layer.get("model"))) from error
    return expansion.finish(tree)


def _converted(tree: Mapping[str, Any]) -> Spec:
    model = tree.get("model")
    check_untrained(tree)
    if isinstance(model, Mapping) and "connectors" in model:  # keys that are not short for anything
        convert(model["connectors"], ConnectorsSpec, "model.connectors")
    try:
        spec: Spec = convert(tree, Spec, "")
        check_sections(spec)
    except SpecError as error:
        raise SpecError(shorten(str(error), model)) from error
    return spec


def dump_spec(spec: Spec) -> str:
    """Return the spec as YAML that `load_spec` reads back as the same spec."""
    return yaml_text.render(spec_to_dict(spec))


def spec_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a spec with the arguments of the installed plugins.

    Import every plugin.
    """
    from soundomni.core.spec import json_schema

    return json_schema.spec_schema()


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, may_change: Collection[str] = ()) -> list[str]:
    """Return "key: old -> new" for each dotted key in which two specs, as plain data, differ.

    Args:
        old, new: results of `spec_to_dict`, preferably of resolved specs.
        may_change: dotted keys to leave out, with everything below them, such as "train.steps" or "train.validation".
    """
    allowed = [(key, f"{key}.") for key in may_change]
    lines = []
    for key, before, after in _differences(old, new, ""):
        if not any(key == exact or key.startswith(below) for exact, below in allowed):
            lines.append(f"{key}: {_shown(before)} -> {_shown(after)}")
    return lines


def shipped_specs() -> tuple[str, ...]:
    """Return the names of the specs that come with the library."""
    folder = resources.files("soundomni") / "specs"
    files = [Path(file.name) for file in folder.iterdir()] if folder.is_dir() else []
    return tuple(sorted(file.stem for file in files if file.suffix in SPEC_SUFFIXES))


def shipped_file(name: str) -> Path | None:
    """Return the file of a shipped spec; None if there is no such spec."""
    return Path(str(resources.files("soundomni"))) / "specs" / f"{name}.yaml" if name in shipped_specs() else None


def _with_home(spec: Spec) -> Spec:
    """Return the spec with `~` expanded in the paths of its own sections."""
    model, train = spec.model, spec.train
    if model is not None:
        tokenizer = model.tokenizer
        if tokenizer.path is not None:
            tokenizer = replace(tokenizer, path=at_home(tokenizer.path))
        model = replace(model, start=None if model.start is None else at_home(model.start), tokenizer=tokenizer)
    return replace(spec, model=model, train=None if train is None else replace(train, run_dir=at_home(train.run_dir)))


def _default_names(tree: Mapping[str, Any]) -> Callable[[str, str, Slot], Slot]:
    """Return a change of slots that lets the schema's defaults mean soundomni's own plugins, even if others use their
    names.
    """
    given: set[str] = set()

    def note(key: str, kind: str, name: str) -> str:
        given.add(shorten(key.partition("[")[0]))
        return name

    def settle(key: str, kind: str, slot: Slot) -> Slot:
        return slot if shorten(key.partition("[")[0]) in given else Slot(settled_name(kind, slot.class_path, OWN), slot.init_args)

    map_names(tree, note)
    return settle


def _read(config: Path | str) -> tuple[dict[str, Any], Record]:
    """Return a layer and its record. Names in shipped specs, runs and model directories mean what they meant there."""
    path = Path(config)
    if path.is_dir() and str(config) not in shipped_specs():
        raise SpecError(f"'{config}' is a directory, not a spec. Give the YAML file in it")
    name = path.name.removesuffix(path.suffix) if path.suffix in SPEC_SUFFIXES else path.name
    if path.exists() and not path.is_dir():
        source: Any = path
    elif path.name == str(config) and name in shipped_specs():
        source = resources.files("soundomni") / "specs" / f"{name}.yaml"
    else:
        shipped = shipped_specs()
        hint = f"{did_you_mean(name, shipped)} Shipped specs: {', '.join(shipped) or 'none'}"
        raise SpecError(f"there is no spec '{config}': it is neither a file nor a shipped spec.{hint}")
    try:
        text = read_piped_text(source) if isinstance(source, Path) else source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"'{config}' cannot be read: {message_of(error)}") from error
    tree = yaml_text.parse(text, str(config))
    if tree is not None and not isinstance(tree, dict):
        raise SpecError(f"{config} is a {type(tree).__name__}; expected a mapping with keys such as model, codec, data and train")
    if source is not path:
        return own_names(tree or {}), {}
    recorded = record_beside(path)
    return (tree or {}, {}) if recorded is None else (settle_names(tree or {}, recorded), recorded)


def _checker(check: Callable[[str, Slot, bool], Slot], trust: bool, known: Record) -> Callable[[str, str, Slot], Slot]:
    """Return a change of slots whose errors name the key: the same plugin may be in several slots."""

    def checked(key: str, kind: str, slot: Slot) -> Slot:
        try:
            check_installed(kind, slot.class_path, known.get(key))
            return check(kind, slot, trust)
        except (SpecError, PluginError) as error:
            raise _at(key, error) from error

    return checked


def _at(key: str, error: SoundOmniError) -> SoundOmniError:
    return type(error)(f"{key}: {error}")


def _given(kind: str, slot: Slot, trust: bool) -> Slot:
    """Return a slot with only the spec's own arguments: defaults belong to the plugin until the spec is resolved."""
    full = registry.validate_init_args(kind, slot, trust_class_paths=trust)
    return Slot(slot.class_path, {name: full[name] for name in slot.init_args})


def _resolved(kind: str, slot: Slot, trust: bool) -> Slot:
    full = registry.validate_init_args(kind, slot, trust_class_paths=trust)
    cls = registry.load(kind, slot.class_path, trust_class_paths=trust)
    return Slot(registry.portable_name(kind, slot.class_path, cls), full)


def _settled(key: str, kind: str, slot: Slot) -> Slot:
    return Slot(slot.class_path, settle(slot.init_args))


_ABSENT = object()


def _differences(old: Any, new: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = list(dict.fromkeys([*old, *new]))
        return [d for n in names for d in _differences(old.get(n, _ABSENT), new.get(n, _ABSENT), join(key, str(n)))]
    if all(value is None or value is _ABSENT for value in (old, new)):  # a key that a later version added, and that is not set
        return []
    # Not `!=`: it takes 1 for True, and nan differs from itself.
    return [] if _shown(old) == _shown(new) else [(key, old, new)]


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
