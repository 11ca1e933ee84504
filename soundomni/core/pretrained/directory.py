"""Model directories: what they hold, and how to write one, whole or not at all.

| name | what it is |
|---|---|
| spec.yaml | what the model is assembled from, without the run |
| config.json | format, training limits, distributions of the plugins, origin of the weights, and a summary |
| model.safetensors | every weight; or several shards with an index, see weights.py |
| tokenizer.json | text tokens |
| README.md | the model card |
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean, one_line, shown
from soundomni.core.files.json_objects import read_object
from soundomni.core.files.names import CARD_FILE, CONFIG_FILE, RUN_FILES, SPEC_FILE
from soundomni.core.files.shipped import shipped_models, shipped_path
from soundomni.core.pretrained.hub import fetch, parse_repository
from soundomni.core.pretrained.renamed_tensors import FORMAT, READ_FORMATS
from soundomni.core.pretrained.stage_paths import STAGES, first_stage, is_chain, read_spec
from soundomni.core.pretrained.weights import is_weight_file, weight_files, write_weights
from soundomni.core.spec import yaml_text
from soundomni.core.spec.clips import clips_of
from soundomni.core.spec.discovery import OWN
from soundomni.core.spec.load import SPEC_SUFFIXES, dump_spec
from soundomni.core.spec.provenance import RECORD_KEY, record
from soundomni.core.spec.schema import ModalitySpec, ModelSpec, Slot, Spec
from soundomni.core.spec.slots import slots
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.core.tokenizer import TextTokenizer

FILES = frozenset({SPEC_FILE, CONFIG_FILE, CARD_FILE, TOKENIZER_FILE})
LICENSES = frozenset(
    ("apache-2.0", "mit", "bsd-3-clause", "openrail", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "unknown")
)
"""Licenses that the Hub knows by name."""
LONGEST_ORIGIN = 300
"""Largest number of characters in a source or a license."""
_HARMLESS = str.maketrans("`|<>", "'/‹›")
"""Replacements for characters that could end a code span or a cell, or act as markup where Markdown is not rendered."""


@dataclass(frozen=True)
class Origin:
    """Origin of weights that were not trained from scratch.

    Args:
        license: license of the original weights, as their owner names it; None if unknown.
        source: what the weights come from; None for a model trained from scratch.
    """

    license: str | None = None
    source: str | None = None


def hub_name(name: str | Path) -> tuple[str, str | None] | None:
    """Return the Hub repository and the revision or None that `name` stands for here; None if it does not name one.

    An existing path does not, and neither does a path into an existing folder: a misspelled path never becomes a
    request.
    """
    parsed = parse_repository(str(name))
    return None if parsed is None or Path(name).exists() or Path(parsed[0]).parent.is_dir() else parsed


def public_name(name: str | Path) -> str:
    """Return a model's name without private parts: a Hub or shipped name as it is, and only the last part of a path."""
    if str(name) in shipped_models() or hub_name(name) is not None:
        return str(name)
    return Path(name).resolve().name


def is_absent(name: str | Path) -> bool:
    """Return whether `name` is neither an existing path, nor a shipped model, nor the name of a Hub repository."""
    return not Path(name).exists() and str(name) not in shipped_models() and hub_name(name) is None


def find_model(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """Return the model directory at the path `name`; if there is none, the shipped model or Hub repository of that
    name.

    Args:
        name: a path, a name, or a Hub repository as owner/name or owner/name@revision.
        revision, cache_dir, offline: for the Hub, see `fetch`.
        weights: whether they are needed; without them, only the files that describe the model have to be there.

    Raises:
        CheckpointError: there is no such model, or the Hub does not provide it.
    """
    path, known = Path(name), shipped_models()
    if str(name) in known and not (path / CONFIG_FILE).is_file():
        path = shipped_path(str(name))
    repository = hub_name(name)
    if repository is not None:
        if revision is not None and repository[1] is not None:
            raise CheckpointError(f"'{name}' names a revision, and '{revision}' was given as well; give only one of them")
        path = fetch(repository[0], revision=revision or repository[1], cache_dir=cache_dir, offline=offline, weights=weights)
    elif revision is not None:
        raise CheckpointError(f"'{name}' is not a Hub repository (owner/name), so it has no revision '{revision}'; leave it out")
    _check_single(name, path)
    if not path.is_dir():
        raise CheckpointError(_absence(name, known))
    if not (path / SPEC_FILE).is_file():
        raise CheckpointError(f"'{path}' is not a model directory: it has no {SPEC_FILE}. Make one with `soundomni export RUN --out DIR`")
    if weights and is_run(path):
        raise CheckpointError(
            f"'{path}' is a run directory, not a model directory. Export it with `soundomni export {path} --out DIR`, and use DIR"
        )
    if weights:
        weight_files(path)
    return path


def _check_single(name: str | Path, path: Path) -> None:
    """Raise CheckpointError if the path that was found for `name` is a chain of models or a spec; SpecError if that spec is wrong."""
    chain = path if path.exists() else name  # a shipped chain has a name, and no path
    if is_chain(chain):
        stage = first_stage(chain)
        raise CheckpointError(f"'{chain}' is a chain of models, and chains can only generate. Use one of its stages, such as '{stage}'")
    if path.is_file() and path.suffix in SPEC_SUFFIXES:
        spec = read_spec(path)
        held = "a codec" if spec.codec is not None else "a model"
        raise CheckpointError(f"'{path}' is the spec of {held}; expected a model directory. Train the spec with `soundomni train`")


def _absence(name: str | Path, known: tuple[str, ...]) -> str:
    if parse_repository(str(name)) is not None and not Path(name).exists():
        folder = Path(name).parts[0]
        return f"'{name}' is not there; it cannot mean a Hub repository, because there is a folder '{folder}' here"
    place = "" if Path(name).is_absolute() else f"; looked for '{Path(name).absolute()}'"
    return f"'{name}' is neither a model directory nor a shipped model ({', '.join(known)}){place}.{did_you_mean(str(name), known)}"


def read_max_tokens(directory: Path) -> int | None:
    """Return the longest sample, in tokens, that the model was trained with, or None if its config.json does not say.

    Raises:
        CheckpointError: config.json is damaged or of another format.
    """
    file = directory / CONFIG_FILE
    limit = _checked_config(directory).get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise CheckpointError(f"'{file}': max_tokens is {shown(limit)}; expected a whole number above 0, or null")
    return limit


def read_origin(directory: Path) -> Origin:
    """Return the origin of a model directory's weights, as its config.json says.

    Raise CheckpointError if that is damaged.
    """
    return origin_of(_checked_config(directory), directory / CONFIG_FILE)


def origin_of(tree: Mapping[str, Any], file: Path) -> Origin:
    """Return the origin in plain data from `file`, which may have other keys too.

    Raise CheckpointError if it is not text.
    """
    values = {name: tree.get(name) for name in ("license", "source")}
    values["license"] = tree.get("licence") if values["license"] is None else values["license"]  # files of earlier versions
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"'{file}': {name} is {shown(value)}; expected text or null")
        if value is not None and (len(value) > LONGEST_ORIGIN or not value.isprintable()):
            told = f"{name} is {shown(value)}; expected one line of at most {LONGEST_ORIGIN} characters"
            raise CheckpointError(f"'{file}': {told}. Shorten it in that file")
    return Origin(**values)


def _checked_config(directory: Path) -> dict[str, Any]:
    """Return the contents of config.json, or nothing if there is none."""
    file = directory / CONFIG_FILE
    if not os.path.lexists(file):
        return {}
    config = read_object(file)
    if config.get("format") not in READ_FORMATS:
        known = " and ".join(map(str, READ_FORMATS))
        raise CheckpointError(f"'{file}' has the format {shown(config.get('format'))}; this version reads the formats {known}")
    return config


def check_target(directory: str | Path, *, for_chain: bool = False) -> None:
    """Raise CheckpointError if a model directory may not be written at `directory`.

    It may be written to a new path, to an empty folder, and in place of an older model directory with nothing else in
    it. Only a chain may be written in place of an older chain, whose stages would be lost.
    """
    path = Path(directory)
    if not path.exists():
        return
    if not path.is_dir():
        raise CheckpointError(f"cannot write the model directory '{path}': it is a file")
    names = {entry.name for entry in path.iterdir()}
    if names & RUN_FILES:
        raise CheckpointError(f"'{path}' is a run directory, which a model would replace; choose another directory")
    if names and not _is_model(path):
        raise CheckpointError(f"'{path}' is neither empty nor a model directory, and would be replaced; choose another directory")
    stages = {name for name in _stages(path) & names if (path / name).is_dir()}
    if stages and not for_chain:
        raise CheckpointError(f"'{path}' is a chain of models, whose stages would be lost; choose another directory")
    for name in stages:
        check_target(path / name)
    others = {name for name in names if name not in FILES | stages and not is_weight_file(name)}
    if others:
        raise CheckpointError(f"'{path}' also holds '{min(others)}', which would be lost; move it, or choose another directory")


def is_run(path: Path) -> bool:
    """Return whether a path is the directory of a run."""
    return any((path / name).exists() for name in RUN_FILES)


def _is_model(path: Path) -> bool:
    try:
        return read_object(path / CONFIG_FILE).get("format") in READ_FORMATS
    except CheckpointError:
        return False


def _stages(path: Path) -> set[str]:
    """Return the folders that hold the stages of a chain; none if a directory is not a chain."""
    found = read_object(path / CONFIG_FILE).get(STAGES) if _is_model(path) else None
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


@contextmanager
def replacing(directory: str | Path, *, for_chain: bool = False) -> Iterator[Path]:
    """Yield an empty folder that replaces `directory` when the block ends; on any error the old contents stay.

    Args:
        directory: the directory to write.
        for_chain: whether a chain is written, which may replace an older one.

    Raises:
        CheckpointError: `directory` may not be replaced, or cannot be written.
    """
    mark = uuid.uuid4().hex[:8]
    try:
        check_target(directory, for_chain=for_chain)
        target = Path(directory).resolve()
        part, old = (target.with_name(f".{target.name}.{mark}.{end}") for end in ("part", "old"))
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        try:
            yield part
            _swap(part, target, old)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = re.sub(rf"\.([^/\\]*)\.{mark}\.part", r"\1", str(error))  # the hidden folder is gone by now
        raise CheckpointError(f"cannot write the model directory '{directory}': {reason}") from error


def _swap(part: Path, target: Path, old: Path) -> None:
    try:
        if target.exists():
            target.rename(old)
        part.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_model(
    folder: Path,
    spec: Spec,
    state: Mapping[str, Tensor],
    tokenizer: TextTokenizer,
    *,
    parameters: int,
    sample_rate: int,
    max_tokens: int | None,
    origin: Origin,
    card: str,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
) -> None:
    """Write everything in a model directory into an empty folder, such as `replacing` yields.

    Args:
        folder: the folder.
        spec, state, tokenizer: those of the model.
        parameters, sample_rate, max_tokens: values for config.json: parameter count, output rate in Hz, and longest
            sample in tokens.
        origin: where the weights come from.
        card: text of the model card.
        dtype: dtype in which floating-point weights are stored; None keeps theirs.
        max_shard_bytes: beyond this, weights are stored in several files with an index.

    Raise CheckpointError if a weight is too large for `dtype`.
    """
    config = {
        "parameters": parameters,
        "sample_rate": sample_rate,
        "max_tokens": max_tokens,
        "plugins": plugins(spec),
        RECORD_KEY: record(portable(spec)),
        **{name: value for name, value in asdict(origin).items() if value is not None},
    }
    write_weights(state, folder, dtype=dtype, max_shard_bytes=max_shard_bytes)
    tokenizer.save(folder)
    write_description(folder, portable(spec), config, card)


def write_description(folder: Path, spec: Spec, config: Mapping[str, Any], card: str) -> None:
    """Write the files that describe a model or a chain: its spec, config.json with the format and `config`, and the card."""
    (folder / SPEC_FILE).write_text(dump_spec(spec), encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def trained_max_tokens(spec: Spec) -> int | None:
    """Return the longest sample, in tokens, of the data that a spec trains on; None without data."""
    if spec.data is None:
        return None
    return spec.data.max_tokens_per_sample if spec.data.max_tokens_per_sample is not None else spec.data.tokens_per_batch


def portable(spec: Spec) -> Spec:
    """Return a spec without what a model directory has no use for: the run, and what model, codec and tokenizer started
    from. How the run prepared its clips stays, as part of the model."""
    model = without_codec_weights(spec.of_model)
    model = replace(model, tokenizer=replace(model.tokenizer, path=None), start=None, start_fresh=None, clips=clips_of(spec))
    return replace(spec, model=model, data=None, train=None)


def without_codec_weights(model: ModelSpec) -> ModelSpec:
    """Return the spec of a model whose codecs name no weight files."""
    modalities: dict[str, ModalitySpec | None] = {
        name: one if one.codec is None else replace(one, codec=without_weights(one.codec)) for name, one in model.used.items()
    }
    return replace(model, modalities=modalities)


def without_weights(codec: Slot) -> Slot:
    """Return the slot of a codec without the weight file that it names, which may be gone: its weights come from
    elsewhere."""
    return replace(codec, init_args={name: value for name, value in codec.init_args.items() if name != "weights"})


def check_portable(spec: Spec) -> None:
    """Raise SpecError if a model directory's spec, or an override of it, names what the model or its codec starts
    from."""
    given = {f"{key}.weights": slot.init_args.get("weights") for key, kind, slot in slots(spec) if kind == "codec"}
    for key, value in {**given, "model.start": spec.of_model.start}.items():
        if value is not None:
            raise SpecError(f"{key} is '{value}', but a model directory holds all weights itself; leave it out")


def plugins(spec: Spec) -> dict[str, str]:
    """Return the plugins that a model is assembled from, apart from connectors: by their kind, or by modality and kind if
    several modalities have a plugin of it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for kind, slot in (("backbone", spec.of_model.backbone), ("router", spec.of_model.router)):
        found[kind] = [("", slot.class_path)]
    if spec.of_model.critic is not None:
        found["critic"] = [("", spec.of_model.critic.class_path)]
    for kind in ("codec", "encoder", "objective", "sampler"):
        parts = ((name, getattr(one, kind)) for name, one in spec.of_model.used.items())
        found[kind] = [(name, slot.class_path) for name, slot in parts if slot is not None]
    return {kind if len(parts) == 1 else f"{name} {kind}": class_path for kind, parts in found.items() for name, class_path in parts}


def card(spec: Spec, parameters: int, origin: Origin) -> str:
    """Return the default model card: the model's parts, its spec, and the origin of its weights."""
    parts = "\n".join(f"- {kind}: `{name}`" for kind, name in plugins(spec).items())
    used = ((entry["distribution"], entry["version"]) for entry in record(portable(spec)))
    needs = "".join(f"\nIt needs plugins of {name} {version}: `pip install {name}`\n" for name, version in used if name != OWN)
    return (
        f"---\n{front_matter(origin, pipeline_tag='text-to-audio')}---\n\n"
        f"# A SoundOmni model\n\n{parameters:,} parameters, assembled from:\n\n{parts}\n{needs}{_origin_lines(origin)}\n"
        '```python\nfrom soundomni import SoundOmni\n\nmodel = SoundOmni.from_pretrained(".")\n'
        'clip = model.generate(["..."], seconds=1.0)[0]\n```\n\n'
        f"{spec_block(spec)}"
    )


def spec_block(spec: Spec) -> str:
    """Return the spec as a section of a card."""
    text = dump_spec(portable(spec))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # texts in the spec cannot end the block
    return f"## Spec\n\n{fence}yaml\n{text}{fence}\n"


def markdown_code(text: str) -> str:
    """Return text as a code span for a card, also for table cells: strangers' file and model names are shown, never
    interpreted.

    >>> markdown_code("a`b|<c>")
    "`a'b/‹c›`"
    """
    return f"`{one_line(text).translate(_HARMLESS)}`"


def markdown_text(text: str) -> str:
    """Return text for a line of a card, with all markup escaped.

    >>> markdown_text("<b>[x](y)")
    '\\\\<b\\\\>\\\\[x\\\\]\\\\(y\\\\)'
    """
    return re.sub(r"[\\`*_{}\[\]<>()#!|~&]", r"\\\g<0>", one_line(text))


def front_matter(origin: Origin, **further: str) -> str:
    """Return the YAML at the head of a card; licenses not on the Hub's list get the key license_name.

    Readers that do not know front matter show it as text, so a name must not contain HTML tags.
    """
    entries = {"library_name": "soundomni", **further}
    if origin.license is not None or origin.source is not None:
        license = origin.license or "unknown"
        known = license.lower() in LICENSES
        entries |= {"license": license.lower()} if known else {"license": "other", "license_name": re.sub("[<>]", "", license)}
    return yaml_text.render(entries)


def shown_license(origin: Origin) -> str:
    """Return the license for a line of a card, or what to do if it is unknown."""
    return "unknown; ask whoever gave them to you" if origin.license is None else markdown_text(origin.license)


def _origin_lines(origin: Origin) -> str:
    source = "" if origin.source is None else f"Weights come from {markdown_code(origin.source)}. "
    license = f"License of the weights: {shown_license(origin)}."
    return f"\n{source}{license}\n" if source or origin.license is not None else ""
