"""Hugging Face Hub repositories: model directories that are fetched and pushed.

Only the files of a model directory are ever fetched, into the cache that other libraries share. Nothing in them is run
or unpickled.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

from soundomni.core.errors import CheckpointError, describe
from soundomni.core.files.names import CARD_FILE, CONFIG_FILE, SPEC_FILE

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
DESCRIBING = (SPEC_FILE, CONFIG_FILE, "tokenizer.json")
"""Files of a model directory that describe the model, all of them small."""
FETCHED = (*DESCRIBING, CARD_FILE, *WEIGHTS)
"""Files of a model directory."""
_FOLDERS = "*/*"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([^@\s]+))?", re.ASCII)


def parse_repository(name: str) -> tuple[str, str | None] | None:
    """Return (repository, revision or None) for `owner/name` or `owner/name@revision`, or None for anything else."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2])


def fetch(
    repository: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """Return the cache folder with a model directory from the Hub; missing files are fetched.

    Say on stderr which commit it is.

    Args:
        repository: owner/name.
        revision: a branch, a tag or a commit; None for the main branch.
        cache_dir: where files are stored; None leaves that to HF_HUB_CACHE and HF_HOME.
        offline: look only in the cache, as with HF_HUB_OFFLINE=1.
        weights: whether they are needed; otherwise only the files that describe the model are fetched.

    Returns:
        The folder, which is named after the commit.

    Raises:
        CheckpointError: there is no such repository or revision, it is gated or holds something else, or the Hub cannot
            be reached and the cache does not have it.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=offline,
                allow_patterns=list(FETCHED if weights else DESCRIBING),
                ignore_patterns=_FOLDERS,
                library_name="soundomni",
            )
        )
    except Exception as error:  # from the library, its HTTP client, which differs between versions, or the disk
        raise CheckpointError(_reason(repository, revision, error)) from error
    if not (folder / SPEC_FILE).is_file():
        raise CheckpointError(f"the Hub repository '{repository}' is not a model directory: it has no {SPEC_FILE}")
    if weights and not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):  # the cache may only have the other files
        raise CheckpointError(
            f"'{repository}' at {folder.name} has no weights: it holds none, or the Hub was not reached and the cache lacks them"
        )
    tell_once(f"{repository} at {folder.name}")
    return folder


def push(folder: Path, repository: str, *, private: bool = False, token: str | None = None, message: str | None = None) -> str:
    """Commit a model directory to a repository, which is created if there is none, and return the commit's address.

    Weights of an older commit that the directory does not have are removed; other files stay.

    Args:
        folder: a model directory.
        repository: owner/name.
        private: whether a new repository is only for its owner.
        token: token of the account; None leaves that to HF_TOKEN or the stored login.
        message: commit message.

    Raises:
        CheckpointError: the name is not a valid repository name, the Hub cannot be reached, or it refuses.
    """
    from huggingface_hub import HfApi

    check_pushable(repository)
    api = HfApi(token=token, library_name="soundomni")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message or "Upload a SoundOmni model",
            delete_patterns=list(WEIGHTS),
        )
    except Exception as error:  # as in fetch
        raise CheckpointError(_reason(repository, None, error)) from error
    return str(commit.commit_url)


def check_pushable(repository: str) -> None:
    """Raise CheckpointError if `repository` is not owner/name."""
    parsed = parse_repository(repository)
    if parsed is None or parsed[1] is not None:
        raise CheckpointError(f"'{repository}' is not a valid Hub repository name; expected owner/name")


def _reason(repository: str, revision: str | None, error: Exception) -> str:
    """Return in one line why a repository cannot be used."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return f"'{repository}' is gated: ask for access at {hub}/{repository}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"'{repository}' is neither a directory here nor a repository at {hub} that this account may read; "
            "for a private one, log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"'{repository}' has no revision '{revision}'; give a branch, a tag or a commit"
    if isinstance(error, LocalEntryNotFoundError):
        at = "" if revision is None else f" at '{revision}'"
        cause = error.__cause__
        why = "offline" if cause is None or "Offline" in type(cause).__name__ else f"{hub} cannot be reached ({type(cause).__name__})"
        return f"'{repository}'{at} is not a local directory, and the Hub cache does not have all of its files ({why})"
    return f"'{repository}' at {hub}: {describe(error)}"


@functools.cache
def tell_once(text: str) -> None:
    """Write a line to stderr, but each text only once, and only on the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"{text}\n")
