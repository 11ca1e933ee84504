"""Where the stages of a chain are: a spec with the section `stages`, or a directory with such a spec and the stages in folders of their
own. The name of a shipped spec names a chain too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.files.paths import local_path
from soundomni.core.files.small_files import read_text
from soundomni.core.spec import yaml_text
from soundomni.core.spec.load import load_spec, shipped_file
from soundomni.core.spec.schema import Spec

STAGES = "stages"


def is_chain(name: str | Path) -> bool:
    """Return whether a path is a spec with the section `stages`, or a directory with one, or a shipped spec has this name and section.

    Raise SpecError if the spec is not YAML.
    """
    file = _spec_file(name)
    if file is None:
        return False
    try:
        text = read_text(file)
    except (OSError, ValueError):  # it is not text, such as a file of weights
        return False
    tree = yaml_text.parse(text, str(file))
    return isinstance(tree, dict) and tree.get(STAGES) is not None


def stage_paths(name: str | Path) -> dict[str, Path]:
    """Return the directory of each stage of a chain, in order.

    Those of a spec are relative to its file, or, for a shipped spec, to the working directory. Those of a directory are folders in
    it, and nothing else: a link to another folder is refused.

    Raises:
        CheckpointError: it is not a chain, or a stage is missing.
        SpecError: its spec is wrong.
    """
    path, stages = Path(name), _stages(name)
    found = placed(stages, name)
    for stage, place in found.items():
        if path.is_dir() and (place.name != stages[stage] or stages[stage] in (".", "..")):
            raise CheckpointError(f"'{path / SPEC_FILE}': stages.{stage} is '{stages[stage]}'; expected the name of a folder in '{path}'")
        if path.is_dir() and place.is_symlink():
            raise CheckpointError(f"'{place}' is a link; expected a folder in '{path}'. Copy the stage, or name it in a spec of your own")
        if not place.is_dir():
            raise CheckpointError(f"stages.{stage} is '{stages[stage]}', but there is no directory '{place}'. Train or export it first")
    return found


def placed(stages: Mapping[str, str], name: str | Path) -> dict[str, Path]:
    """Return where the stages of the chain `name` are according to its spec. They do not have to exist."""
    path = Path(name)
    home = path if path.is_dir() else path.parent if path.exists() else Path()
    return {stage: home / local_path(directory) for stage, directory in stages.items()}


def first_stage(name: str | Path) -> Path:
    """Return the path of the first stage of a chain, which does not have to exist yet. Raise as `stage_paths`."""
    return next(iter(placed(_stages(name), name).values()))


def _stages(name: str | Path) -> dict[str, str]:
    """Return what the spec of a chain says: the name of each stage, and its directory."""
    file = _spec_file(name)
    spec = None if file is None else read_spec(file)
    if spec is None or spec.stages is None:
        raise CheckpointError(f"'{name}' is not a chain; expected a spec with the section stages, or a directory with one")
    return spec.used_stages


def read_spec(file: Path) -> Spec:
    """Return the spec in a file, without a look at its plugins. Raise SpecError, which names the file."""
    try:
        return load_spec([file], base={}, validate_plugins=False)
    except SpecError as error:
        raise error if str(file) in str(error) else SpecError(f"'{file}': {error}") from error


def _spec_file(name: str | Path) -> Path | None:
    """Return the file that may have the section `stages`; None if there is no such file."""
    path = Path(name)
    file = path / SPEC_FILE if path.is_dir() else path
    return file if file.is_file() else shipped_file(str(name)) if not path.exists() else None


def overrides_of(stages: Mapping[str, Path], overrides: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the overrides of each stage's own spec, from keys such as `stages.coarse.sampler`. Raise SpecError for any other key."""
    found: dict[str, dict[str, str]] = {name: {} for name in stages}
    for key, text in overrides.items():
        section, _, rest = key.partition(".")
        stage, _, own = rest.partition(".")
        if section != STAGES:
            raise SpecError(f"{key} is not a key of a chain; write stages.STAGE.KEY, such as stages.{next(iter(stages))}.{key}")
        if rest and stage not in found:
            raise SpecError(f"{key} names the stage '{stage}'; expected one of {', '.join(stages)}.{did_you_mean(stage, stages)}")
        if not own:
            example = f"{STAGES}.{stage or next(iter(stages))}.sampler"
            raise SpecError(f"{key} cannot be replaced as a whole; expected one key of a stage, such as {example}")
        found[stage][own] = text
    return found
