"""Errors that a user can cause: one line that says what was given, what was expected and the nearest alternative."""

import difflib
from collections.abc import Collection, Iterable
from itertools import islice

NAMED = 3
"""How many of a collection an error names."""
LONGEST_REASON = 500
"""Characters of an error that a line quotes: a server may answer with a whole page."""


class SoundOmniError(Exception):
    """A mistake in what the user gave. The command line prints it as one line and exits with status 2."""


class SpecError(SoundOmniError):
    """A spec, or an override of it, names something that does not exist or has a wrong value."""


class PluginError(SoundOmniError):
    """A plugin is unknown, ambiguous, or does not import."""


class ConstructionError(PluginError):
    """A plugin's constructor failed with an error of its own, not one that says what it was given and expected."""


class DataError(SoundOmniError):
    """A dataset, an audio file or a caption cannot be used."""


class UnreadableAudioError(DataError):
    """One audio file cannot be decoded. Loaders skip it, name it and count it."""


class CheckpointError(SoundOmniError):
    """A checkpoint or a model directory is missing, incomplete, corrupted or of another model."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of the known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def describe(error: BaseException, *, whole: bool = False) -> str:
    """Returns type and message of an unexpected error on one line; of SystemExit, what was called.

    Args:
        error: of any kind, even one whose message cannot be made.
        whole: keep the lines of the message, and the traceback that errors from other processes have in it.
    """
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r}) was called"
    try:
        text = str(error)
    except Exception as broken:
        text = f"its message cannot be made: {type(broken).__name__}"
    if whole:
        return f"{type(error).__name__}: {text}"
    _, traceback, lines = text.rpartition("Traceback (most recent call last)")
    if traceback:  # its last lines, which are not indented, say what happened
        text = "\n".join(line for line in lines.splitlines()[1:] if not line.startswith(" "))
    text = " ".join(text.split())
    return text if text.startswith(f"{type(error).__name__}: ") else f"{type(error).__name__}: {text}" if text else type(error).__name__


def some(names: Collection[str]) -> str:
    """Returns the first names of a collection, and dots where there are more."""
    return ", ".join(islice(names, NAMED)) + (", ..." if len(names) > NAMED else "")


def reason(error: BaseException) -> str:
    """Return `describe(error)` as part of one line that any stream takes, at most LONGEST_REASON characters."""
    line = printable(describe(error))
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def printable(text: str) -> str:
    """Return a text with whatever UTF-8 cannot encode escaped, such as the bytes of a file name that is not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
