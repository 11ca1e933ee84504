"""Errors that a user can cause: one line that says what was given, what was expected and the nearest alternative."""

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

NAMED = 3
"""How many items of a collection an error names."""
LONGEST_REASON = 500
"""Characters of an error that a line quotes: a server may answer with a whole page."""
LONGEST_SHOWN = 80
"""Characters of a value that an error shows."""
MOST_COMPARED = 5000
"""How many known names a name is compared with to find the nearest, if it is at most LONGEST_COMPARED long."""
LONGEST_COMPARED = 200
SHORT_NAME = 6
LONGEST_NUMBER = 60
"""Digits of a whole number in an error."""
LONGEST_LINE = 4000
"""Characters of an error: the text that it quotes may come from a file without end."""

_BREAKS = re.compile(r"[ \t]*[\n\r\v\f\x85\u2028\u2029]+\s*")
_DIGITS = re.compile(rf"(\d{{{LONGEST_NUMBER}}})\d+…?")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys, including those that turn the direction of writing."""


class SoundOmniError(Exception):
    """A mistake in what the user gave. The command line prints one line and exits with status 2."""

    def __str__(self) -> str:
        """Return the message as one line of bounded length that no terminal obeys: it may quote a stranger's text."""
        text = one_line(super().__str__())
        return text if text.endswith("..") else text.removesuffix(".")  # a sentence that may be followed by a suggestion


class SpecError(SoundOmniError):
    """A spec, or an override of it, names something that does not exist or has a wrong value."""


class PluginError(SoundOmniError):
    """A plugin is unknown, ambiguous, or cannot be imported."""


class ConstructionError(PluginError):
    """A plugin's constructor failed unexpectedly, not with an error about a wrong argument."""


class DataError(SoundOmniError):
    """A dataset, an audio file or a caption cannot be used."""


class UnreadableAudioError(DataError):
    """One audio file cannot be decoded. Loaders skip it, name it and count it."""


class RejectedAudioError(UnreadableAudioError):
    """A clip that a filter left out after it was read."""


class CheckpointError(SoundOmniError):
    """A checkpoint or a model directory is missing, incomplete, corrupted or belongs to another model."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of the known names, or an empty string."""
    compared = list(islice(known, MOST_COMPARED)) if len(name) <= LONGEST_COMPARED else []
    alike = 0.5 if len(name) <= SHORT_NAME else 0.6  # two letters that changed places are half of a short name
    near = difflib.get_close_matches(name, compared, n=1, cutoff=alike)
    return f" Did you mean '{near[0]}'?" if near else ""


def amount(count: int, noun: str) -> str:
    """Return a number of things in words.

    >>> amount(1, "step"), amount(2, "step")
    ('1 step', '2 steps')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def none_of(count: int, noun: str) -> str:
    """Return the subject of a sentence that is true of no thing among a number of them.

    >>> none_of(1, "clip"), none_of(2, "clip")
    ('no clip', 'none of the 2 clips')
    """
    return f"no {noun}" if count == 1 else f"none of the {amount(count, noun)}"


def describe(error: BaseException, *, whole: bool = False) -> str:
    """Return type and message of an unexpected error on one line; for SystemExit, what was called.

    Args:
        error: any error, even one whose message cannot be made.
        whole: keep the line breaks of the message, and the traceback that errors from other processes have in it.
    """
    try:
        if isinstance(error, SystemExit):
            return f"sys.exit({error.code!r}) was called"
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as broken:  # it is a plugin's code, which may even call sys.exit()
        text = f"its message cannot be made: {type(broken).__name__}"
    if whole:
        return f"{type(error).__name__}: {text}"
    _, traceback, lines = text.rpartition("Traceback (most recent call last)")
    if traceback:  # its last lines, which are not indented, say what happened
        text = "\n".join(line for line in lines.splitlines()[1:] if not line.startswith(" "))
    text = " ".join(text.split())
    return text if text.startswith(f"{type(error).__name__}: ") else f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException) -> str:
    """Return the message of an error with single spaces for all white space, or the name of its type if it has no
    message; for bytes that are not UTF-8, words instead of Python's message.

    >>> message_of(ValueError("a\\n  b"))
    'a b'
    """
    if isinstance(error, UnicodeDecodeError):
        return f"it is not text in UTF-8 (byte {error.start:,} is 0x{error.object[error.start]:02x})"
    return " ".join(str(error).split()) or type(error).__name__


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)


def some(names: Collection[str]) -> str:
    """Return the first names of a collection, with dots at the end if there are more."""
    return ", ".join(islice(names, NAMED)) + (", ..." if len(names) > NAMED else "")


def reason(error: BaseException) -> str:
    """Return `describe(error)` as part of one line that any stream takes and no terminal obeys, of bounded length."""
    line = one_line(printable(describe(error)))
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


def printable(text: str) -> str:
    """Return a text in which anything that UTF-8 cannot encode is escaped, such as the bytes of other file names."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str) -> str:
    """Return a text as one line: line breaks become spaces, control characters are escaped, long numbers and a long
    text are cut.

    >>> one_line("a\\n b \\x1b[2J")
    'a b \\\\x1b[2J'
    """
    text = _DIGITS.sub(r"\1…", text)
    line = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), _BREAKS.sub(" ", line))


def shown(value: object) -> str:
    """Return how an error shows a value from a file: its repr, cut if it is long.

    >>> shown("x" * 200)[-4:]
    'xxx…'
    """
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python converts
        text = hex(value) if isinstance(value, int) else f"a {type(value).__name__} with a number of too many digits"
    except RecursionError as error:
        return f"a value that cannot be shown ({error})"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
