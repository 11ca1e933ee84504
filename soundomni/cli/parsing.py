"""The command line's grammar: fixed options by argparse, and next to them spec overrides `--a.b.c=value` or `--a.b.c
value`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from soundomni.core.errors import SoundOmniError, did_you_mean

Overrides = list[tuple[str, str]]
"""(dotted key, text) pairs in the order in which they were given."""


class UsageError(SoundOmniError):
    """The command line contains something that the command does not accept."""


class ParserExit(SystemExit):
    """A parser has printed what it was asked for, such as --help. Any other SystemExit comes from somebody else."""


class Parser(argparse.ArgumentParser):
    """An argument parser that accepts no abbreviations and raises UsageError instead of ending the process."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        from soundomni.cli.usage_messages import in_our_form

        told = in_our_form(message).removesuffix(".")
        raise UsageError(f"{told}{'' if told.endswith('?') else '.'} See `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Raise ParserExit."""
        if message:
            self._print_message(message, sys.stderr)
        raise ParserExit(status)


def split_overrides(
    arguments: Sequence[str], parser: argparse.ArgumentParser, named: Callable[[Sequence[str]], Sequence[str]] | None = None
) -> tuple[list[str], Overrides]:
    """Separate the spec overrides from a command's arguments; an option of the parser takes precedence over a spec key
    of that name.

    Args:
        arguments: the arguments of the command.
        parser: its parser.
        named: returns, from the arguments, the NAMEs for which `--NAME VALUE` stands for `--given NAME=VALUE`, as the
            command's model has them. It is only called for an option that the parser and specs do not have.

    Raise UsageError, with the nearest alternative, for an option that is neither.
    """
    helped, allowed = _chosen(parser, arguments)
    rest: list[str] = []
    overrides: Overrides = []
    given: Sequence[str] = ()
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        if token == "--":
            return [*rest, token, *queue], overrides
        option, equals, value = token.partition("=")
        key = option.removeprefix("--")
        if not option.startswith("--") or option in allowed:
            rest.append(token)
        elif key.partition(".")[0] in _spec_roots():
            overrides.append((key, value if equals else _next_value(option, queue)))
        elif key.isidentifier() and key in (given := given or (named(arguments) if named else ())):
            rest += ["--given", f"{key}={value if equals else _next_value(option, queue)}"]
        else:
            from soundomni.core.spec.keys import spec_keys

            if key.replace("_", "-") == "print-config":
                other = "Use `soundomni spec print` with the same spec and keys"
                raise UsageError(f"`{parser.prog}` does not take {option}. {other}")
            keys = [of_spec.name for of_spec in spec_keys()] if takes_overrides(parser) and takes_overrides(helped) else []
            names = [*(name.removeprefix("--") for name in allowed if name.startswith("--")), *given]
            near = did_you_mean(key, [*names, *keys]).replace(" '", " '--")  # dashes would make any two options similar
            raise UsageError(f"unknown option '{option}'.{near} See `{helped.prog} --help`")
    return rest, overrides


def _next_value(option: str, queue: list[str]) -> str:
    """Take the value of an option from the arguments after it. Raise UsageError if there is none."""
    if not queue or queue[0].startswith("--"):
        raise UsageError(f"{option} needs a value; use {option}=VALUE")
    return queue.pop(0)


def reads_no_spec(parser: argparse.ArgumentParser) -> None:
    """Declare that a command or one of its actions does not read a spec, so that it takes no spec overrides."""
    parser.set_defaults(without_spec=parser.prog)


def takes_overrides(parser: argparse.ArgumentParser) -> bool:
    """Return whether a command or one of its actions takes spec overrides, unless the command above it does not."""
    return parser.get_default("without_spec") is None


def refuse_overrides(overrides: Overrides, args: argparse.Namespace) -> None:
    """Raise UsageError if a command that reads no spec is given spec overrides."""
    command = getattr(args, "without_spec", None)
    if overrides and command is not None:
        raise UsageError(f"`{command}` does not read a spec; remove --{overrides[0][0]}")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # argparse has no public list of a parser's options
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for chosen in action.choices.values():
                yield from _options(chosen)


def _chosen(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, set[str]]:
    """Return the parser of the action that the arguments choose, or `parser` without one, and the options that apply to it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for token in arguments:
                if token in action.choices:
                    chosen = action.choices[token]
                    own = {name for one in parser._actions for name in one.option_strings}
                    return chosen, own | set(_options(chosen))
    return parser, set(_options(parser))


@functools.cache
def _spec_roots() -> set[str]:
    from soundomni.core.spec.written import WrittenSpec

    return {field.name for field in dataclasses.fields(WrittenSpec)}
