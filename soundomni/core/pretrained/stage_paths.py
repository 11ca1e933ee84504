"""Where the stages of a chain are: a spec with the section `stages`, or a directory with such a spec and the stages in folders of their
own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.files.paths import local_path
from soundomni.core.files.small_files import read_text
from soundomni.core.spec import yaml_text
from soundomni.core.spec.load import load_spec

STAGES = "stages"


def is_chain(name: str | Path) -> bool:
    """Return whether a path is a spec with the section `stages`, or a directory with one."""
    path = Path(name)
    file = path / SPEC_FILE if path.is_dir() else path
    if not file.is_file():
        return False
    try:
        tree = yaml_text.parse(read_text(file), str(file))
    except (OSError, ValueError, SpecError):  # what is wrong with it is said by whoever reads it
        return False
    return isinstance(tree, dict) and tree.get(STAGES) is not None


def stage_paths(name: str | Path) -> dict[str, Path]:
    """Return the directory of each stage of a chain, in order.

    Those of a spec are relative to its file. Those of a directory are folders in it, and nothing else.

    Raises:
        CheckpointError: it is not a chain, or a stage is missing.
        SpecError: its spec is wrong.
    """
    path = Path(name)
    if not is_chain(path):
        raise CheckpointError(f"'{name}' is not a chain; expected a spec with the section stages, or a directory with one")
    file = path / SPEC_FILE if path.is_dir() else path
    found = {}
    for stage, directory in load_spec([file], base={}).used_stages.items():
        place = local_path(directory)
        if path.is_dir() and (place.name != directory or directory in (".", "..")):
            raise CheckpointError(f"'{file}': stages.{stage} is '{directory}'; expected the name of a folder in '{path}'")
        found[stage] = file.parent / place
        if not found[stage].is_dir():
            raise CheckpointError(f"stages.{stage} is '{directory}', but there is no directory '{found[stage]}'. Train or export it first")
    return found


def overrides_of(stages: Mapping[str, Path], overrides: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the overrides of each stage's own spec, from keys such as `stages.coarse.sampler`. Raise SpecError for any other key."""
    found: dict[str, dict[str, str]] = {name: {} for name in stages}
    for key, text in overrides.items():
        section, _, rest = key.partition(".")
        stage, _, own = rest.partition(".")
        if section != STAGES or not own:
            raise SpecError(f"{key} is not a key of a chain; write stages.STAGE.KEY, such as stages.{next(iter(stages))}.{key}")
        if stage not in found:
            raise SpecError(f"{key} names the stage '{stage}'; expected one of {', '.join(stages)}.{did_you_mean(stage, stages)}")
        found[stage][own] = text
    return found
