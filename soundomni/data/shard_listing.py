"""Shards of a dataset, found by their names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from soundomni.core.errors import DataError, listed
from soundomni.core.files.paths import local_path, place
from soundomni.data.file_names import suffix_of
from soundomni.data.folder_listing import check_patterns, matches
from soundomni.data.text_files import few

_NUMBERED = re.compile(r"(?P<split>.*?)[-_.]?\d+(-of-\d+)?(-[0-9a-f]{8,})?")
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")


def list_shards(path: str, *, suffix: str, include: list[str] | None) -> tuple[Path, list[str]]:
    """Return a folder and its shards, as sorted POSIX paths relative to it; hidden files and folders are ignored.

    Args:
        path: a shard, or a folder; its subfolders are searched too, but links to folders are not followed.
        suffix: suffix of a shard, such as ".tar".
        include: patterns of shards to include; all by default.

    Raise DataError if there are no shards, or if those of several splits would be mixed without `include`.
    """
    check_patterns("include", include)
    given = local_path(path)
    if given.is_file():
        return given.parent, [given.name]
    if not given.is_dir():
        what = "is not a regular file" if given.exists() else "does not exist"
        raise DataError(f"{place(path)} {what}; expected a {suffix} file, or a folder of them")
    found = sorted(_walk(given, suffix))
    shards = [key for key in found if matches(key, include, default=True)]
    if not shards:
        others = f"; none of {few(found)} fits include {include}" if found else ""
        raise DataError(f"there are no {suffix} files in {place(path)}{others}")
    splits = sorted({split_of(key) for key in shards} - {""})
    if include is None and len(splits) > 1:
        example = next(key for key in shards if split_of(key) == splits[-1])
        pattern = re.sub(r"\d[^/]*$", "*", example) if re.search(r"\d[^/]*$", example) else example
        raise DataError(f"{place(path)} has the splits {listed(splits)}. Choose the shards of one, for instance include: ['{pattern}']")
    return given, shards


def split_of(key: str) -> str:
    """Return the split that a shard belongs to by its name or its folders, or nothing.

    >>> split_of("data/train-00000-of-00002.parquet"), split_of("en/test/0000.tar"), split_of("sounds-001.tar")
    ('train', 'test', '')
    """
    *folders, name = key.lower().split("/")
    stem = name.removesuffix(suffix_of(name))
    numbered = _NUMBERED.fullmatch(stem)
    names = [numbered["split"] if numbered is not None else stem, *(folder.removeprefix("partial-") for folder in reversed(folders))]
    return next((part for part in names if part in _SPLITS), "")


def _walk(root: Path, suffix: str) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = Path(folder).relative_to(root)
        found += [(inner / name).as_posix() for name in files if name.lower().endswith(suffix) and not name.startswith(".")]
    return found
