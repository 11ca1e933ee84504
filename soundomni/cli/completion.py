"""`soundomni completion`: print a script that completes commands, options, spec keys and plugin names in a shell."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from importlib import resources
from typing import Literal, get_args, get_origin

from soundomni.cli.parsing import reads_no_spec, takes_overrides

HELP = "print a script that completes commands, options, spec keys and plugin names in bash or zsh"

SHELLS = {
    "bash": "complete -o default -o bashdefault -F _soundomni soundomni",
    "zsh": "(( $+functions[compdef] )) || { autoload -U compinit && compinit; }\n"
    "autoload -U +X bashcompinit && bashcompinit\n"
    "complete -o default -o nospace -F _soundomni soundomni",
}
"""Shell → the lines that register the function there; zsh does not have `compopt`."""

_WORD = re.compile(r"[\w.+-]+")
"""Plugin names that a shell accepts without quotes; others are not offered."""

_Named = tuple[str, argparse.ArgumentParser]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    reads_no_spec(parser)
    parser.add_argument(
        "shell",
        metavar="SHELL",
        choices=tuple(SHELLS),
        help="shell to write the script for: bash or zsh",
    )
    parser.epilog = (
        "For bash, add `source <(soundomni completion bash)` to ~/.bashrc; for zsh, add `source <(soundomni completion zsh)` to ~/.zshrc."
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Print the script."""
    from soundomni.cli.console import emit

    text = script(args.shell)
    emit(args, {"shell": args.shell, "script": text}, text=text)
    return 0


def script(shell: str) -> str:
    """Return the script for a shell, with the plugins that are installed now. No plugin is imported."""
    from soundomni.cli.main import COMMANDS, GLOBAL_OPTIONS, command_parser

    parsers = dict(_with_actions((name, command_parser(name)) for name in COMMANDS))
    flags = {"--version"}.union(*(_options(parser, flags=True) for parser in parsers.values()))
    words = {
        "SHELL": shell,
        "COMMANDS": " ".join(COMMANDS),
        "FLAGS": " ".join(sorted(flags)),
        "KEYS": " ".join(_keys()),
        "SHARED": " ".join(("--help", *GLOBAL_OPTIONS)),
        "OPTIONS": _cases((name, _options(parser, without=GLOBAL_OPTIONS)) for name, parser in parsers.items()),
        "VALUES": _cases([*_values_of_keys(), *_values_of_parsers(parsers)]),
        "PLAIN": " | ".join(f"{shlex.quote(name)}*" for name, parser in parsers.items() if not takes_overrides(parser)),
        "START": SHELLS[shell],
    }
    text = (resources.files("soundomni.cli") / "templates" / "completion.txt").read_text(encoding="utf-8")
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


def _with_actions(parsers: Iterable[_Named]) -> Iterator[_Named]:
    """Yield the parsers of commands by name, and those of their actions by "command action"."""
    for name, parser in parsers:
        yield name, parser
        for action in parser._actions:  # argparse has no public list of a parser's options
            if isinstance(action, argparse._SubParsersAction):
                yield from _with_actions((f"{name} {chosen}", below) for chosen, below in action.choices.items())


def _options(parser: argparse.ArgumentParser, *, flags: bool = False, without: Collection[str] = ()) -> list[str]:
    """Return the long options of a parser; with `flags`, only those that take no value."""
    actions = [action for action in parser._actions if action.nargs == 0 or not flags]
    names = [name for action in actions for name in action.option_strings]
    return [name for name in names if name.startswith("--") and name not in without]


def _keys() -> Iterator[str]:
    """Yield the keys of a spec as options, and the help of each slot."""
    from soundomni.core.spec.keys import spec_keys

    keys = list(spec_keys())
    for key in keys:
        if not any(other.name.startswith(f"{key.name}.") for other in keys):
            yield f"--{key.name}"
        if key.kind is not None:
            yield f"--{key.name}.help"


def _values_of_keys() -> Iterator[tuple[str, list[str]]]:
    from soundomni.core.spec import registry
    from soundomni.core.spec.keys import spec_keys
    from soundomni.core.spec.values import without_none

    names: dict[str, list[str]] = {}
    for kind in registry.KINDS:
        registered = dict.fromkeys(entry.name for entry in registry.entries(kind))
        names[kind] = [name for name in registered if _WORD.fullmatch(name)]
    for key in spec_keys():
        annotation = without_none(key.annotation)
        if key.kind is not None:
            yield f"option --{key.name}", [] if key.many else names[key.kind]
            yield f"option --{key.name}.help", names[key.kind]
        elif get_origin(annotation) is Literal:
            yield f"option --{key.name}", [str(choice) for choice in get_args(annotation)]
        elif annotation is bool:
            yield f"option --{key.name}", ["true", "false"]
    yield from ((f"names {kind}", of_kind) for kind, of_kind in names.items())


def _values_of_parsers(parsers: dict[str, argparse.ArgumentParser]) -> Iterator[tuple[str, list[str]]]:
    """Yield the known words that may follow options and commands."""
    for name, parser in parsers.items():
        positionals = [action for action in parser._actions if not action.option_strings]
        for place, action in enumerate(positionals):
            more = action.nargs in ("*", "+")
            yield f"place {name}" if more else f"place {name} {place}", _choices(action)
        for action in parser._actions:
            yield from ((f"option {name} {option}", _choices(action)) for option in action.option_strings)


def _choices(action: argparse.Action) -> list[str]:
    """Return the possible values of an argument: its choices, or those that its metavar stands for."""
    from soundomni.core.files.shipped import shipped_models
    from soundomni.core.spec import registry
    from soundomni.core.spec.load import shipped_specs

    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.metavar == "SPEC":
        return list(shipped_specs())
    if action.metavar in ("MODEL", "RUN"):
        return list(shipped_models())
    return list(registry.KINDS) if action.metavar == "KIND" else []


def _cases(words: Iterable[tuple[str, list[str]]]) -> str:
    """Return a line of a shell's `case` for each name that has words."""
    lines = ((shlex.quote(name), shlex.quote(" ".join(of_name))) for name, of_name in words if of_name)
    return "\n".join(f"    {name}) echo {of_name} ;;" for name, of_name in lines)
