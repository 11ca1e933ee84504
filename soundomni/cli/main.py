"""The command line: finds the command, imports its file alone, and turns every failure into one line.

Exit status: 0 done, 1 an error of the program or of a plugin in use, a check that failed or files that could not be used among others
that were, 2 a mistake of the user or a plugin that cannot be imported or constructed, 130 interrupted.

Under torchrun every process of a node finds the same mistake of the user, and the first one tells it. What one process met alone, which
has a note that says so (World.own_errors), and what is no mistake of the user is told by whichever process it happens to.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from soundomni import __version__
from soundomni.cli.parsing import Parser, ParserExit, UsageError, split_overrides
from soundomni.cli.progress import Progress
from soundomni.cli.slot_help import find_request, show
from soundomni.core.errors import SoundOmniError, did_you_mean, one_line, reason

COMMANDS = {
    "train": "train a model or a codec from a spec",
    "generate": "make audio from prompts",
    "describe": "say what is heard in audio files, or answer a question about them",
    "reconstruct": "send audio files through the codec and back, and measure the difference",
    "export": "write a run's weights as a model directory, or weights in the layout of another project",
    "import": "convert published weights into parts that a spec can name",
    "evaluate": "measure what a model generates, describes and reconstructs",
    "plugins": "list installed plugins, show one, or create a new one",
    "spec": "validate or print a spec, or write its JSON schema",
    "demo": "train a small model on this machine, then hear and see what it learned",
    "doctor": "estimate the GPU memory that training a spec needs, and what would fit",
    "completion": "print a script that completes commands, options, spec keys and plugin names in bash or zsh",
}
"""Command → its HELP, so that the list is printed without importing any of the files `soundomni/cli/<command>.py`."""

TRAINS = ("train", "demo")
"""Commands that show how far training is themselves."""

GLOBAL_OPTIONS = {
    "--json": "print one machine-readable result on stdout, all else on stderr",
    "--debug": "show tracebacks",
    "--trust-class-paths": "let a spec name classes by import path, which runs their code",
}

INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status. Without --debug no traceback is ever shown.

    Args:
        argv: the arguments; None takes those of this process, which then ends with the command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    status = _status(arguments)
    if argv is None and "--json" in arguments:
        from soundomni.cli.console import end_stdout

        end_stdout()
    return status


def _status(arguments: list[str]) -> int:
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except ParserExit as end:  # after --help and --version
        return int(end.code or 0)
    except KeyboardInterrupt:
        _say(sys.stderr, "soundomni: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError as error:
        if (plugin := _raised_by(error)) is not None:
            return _fail(arguments, f"error: {plugin} failed: {reason(error)}", status=1)
        _silence(sys.stdout)  # its reader has left
        return PIPE_CLOSED
    except SoundOmniError as error:
        if _is_told_by_another(error):
            return 2
        return _fail(arguments, f"error: {' '.join([str(error), *_notes(error), *_origin(error)])}", status=2)
    except OSError as error:
        if (plugin := _raised_by(error)) is not None:
            return _fail(arguments, f"error: {plugin} failed: {reason(error)}", status=1)
        return _fail(arguments, f"error: {' '.join([str(error), *_notes(error)])}", status=2)
    except BaseException as error:  # a plugin may raise anything, SystemExit too
        return _fail(arguments, _unexpected(arguments, error), status=1)


def _dispatch(arguments: list[str]) -> int:
    given = [argument for argument in arguments if argument in GLOBAL_OPTIONS]
    arguments = [argument for argument in arguments if argument not in GLOBAL_OPTIONS]
    place = next((i for i, argument in enumerate(arguments) if not argument.startswith("-")), len(arguments))
    before, command, after = arguments[:place], arguments[place : place + 1], arguments[place + 1 :]
    top = _top_parser()
    before, early = split_overrides(before, top)
    top.parse_args(before)
    if not command:
        top.print_help()
        return 0
    name = command[0]
    if name not in COMMANDS:
        raise UsageError(f"unknown command '{name}'.{did_you_mean(name, COMMANDS)} Commands: {', '.join(COMMANDS)}")
    module = importlib.import_module(f"soundomni.cli.{name}")
    parser = command_parser(name)
    asked = find_request(after)
    if asked is None:
        rest, overrides = split_overrides([*given, *after], parser)
        args = parser.parse_args(rest)
    else:  # of a plugin; nothing else on the line matters, as with --help
        args = argparse.Namespace(json="--json" in given, trust_class_paths="--trust-class-paths" in given)
    from soundomni.cli.console import results_only
    from soundomni.core.spec.discovery import only_readable

    shows_itself = name in TRAINS and asked is None
    progress = contextlib.nullcontext() if shows_itself else Progress(f"soundomni {name} is working")
    results = results_only() if args.json else contextlib.nullcontext()
    with only_readable(), results, progress:  # plugins may print what they like
        if asked is not None:
            return show(asked, args, prog=parser.prog)
        return int(module.run(args, [*early, *overrides]))


def command_parser(name: str) -> Parser:
    """Return the parser of a command, with the options of every command."""
    module = importlib.import_module(f"soundomni.cli.{name}")
    parser = Parser(prog=f"soundomni {name}", description=f"{module.HELP[0].upper()}{module.HELP[1:]}.")
    module.configure(parser)
    _add_global_options(parser)
    return parser


def _top_parser() -> Parser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="soundomni",
        usage="soundomni [options] COMMAND ...",
        description=f"Models that make and understand audio, assembled from plugins.\n\ncommands:\n{commands}",
        epilog="`soundomni COMMAND --help` says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"soundomni {__version__}")
    _add_global_options(parser)
    return parser


def _add_global_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of every command, at any place")
    for option, text in GLOBAL_OPTIONS.items():
        group.add_argument(option, action="store_true", help=text)


def _is_told_by_another(error: SoundOmniError) -> bool:
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))
    launched = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"  # a variable left over starts no other process
    return launched and local_rank != "0" and not _notes(error)


def _raised_by(error: BaseException) -> str | None:
    """Returns the third-party plugin that raised an error, if one did."""
    from soundomni.core.spec.culprit import culprit

    return culprit(error, raised=True)


def _origin(error: SoundOmniError) -> list[str]:
    """Names the third-party plugin that raised an error for the user, unless its message does."""
    plugin = _raised_by(error)
    return [] if plugin is None or plugin.partition(" of ")[0] in str(error) else [f"({plugin})"]


def _unexpected(arguments: list[str], error: BaseException) -> str:
    """Says what happened, and in which third-party plugin where it was in one; otherwise it is an error of this program."""
    from soundomni.core.spec.culprit import culprit, named

    hint = "" if "--debug" in arguments else " (run with --debug for the traceback)"
    return f"{'internal error' if culprit(error) is None else 'error'}: {named(error)}{hint}"


def _notes(error: Exception) -> list[str]:
    return [f"({note})" for note in getattr(error, "__notes__", ())]


def _fail(arguments: list[str], message: str, *, status: int) -> int:
    line = one_line(" ".join(message.split()))
    if "--debug" in arguments:
        traceback.print_exc()
    _say(sys.stderr, f"soundomni: {line}\n")
    if "--json" in arguments:
        from soundomni.cli.console import to_json

        _say(sys.stdout, to_json({"error": line.removeprefix("error: ")}) + "\n")
    return status


def _prepare_streams() -> None:
    """Lets every text be written: to nowhere where a stream is closed, and escaped where its encoding has no such character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  it stays open as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(stream: TextIO, text: str) -> None:
    """Writes how a command failed. Where even that fails, as on a full disk, its status has to tell."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Sends what is still buffered to nowhere: it must not raise again when the interpreter ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
