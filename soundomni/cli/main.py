"""The command line: finds the command, imports only its file, and turns every failure into one line.

Exit status: 0 success; 1 an error of the program or of a plugin in use, a check that failed, or some files that could
not be used; 2 a mistake of the user, or a plugin that cannot be imported or constructed; 130 interrupted.

Under torchrun, every process of a node finds the same mistake of the user, and only the first reports it. A process
reports its own errors itself: those with a note (World.own_errors), and those that are not mistakes of the user.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import importlib
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path, PurePath
from types import ModuleType
from typing import TextIO

from soundomni import __version__
from soundomni.cli.parsing import Parser, ParserExit, UsageError, refuse_overrides, split_overrides
from soundomni.cli.progress import Progress
from soundomni.cli.slot_help import find_request, show
from soundomni.core.errors import SoundOmniError, did_you_mean, one_line, reason

COMMANDS = {
    "train": "train a model or a codec from a spec",
    "generate": "make audio from prompts",
    "describe": "describe audio files, or answer a question about them",
    "reconstruct": "send audio files through the codec and back, and measure the difference",
    "encode": "encode the clips of a dataset with a codec, for faster training",
    "export": "write a run or model as a model directory, or in the layout of another project",
    "import": "convert published weights into parts that a spec can name",
    "fit-kmeans": "fit the centroids of semantic tokens on a dataset",
    "evaluate": "measure what a model generates, describes and reconstructs",
    "plugins": "list installed plugins, show one, or create a new one",
    "spec": "validate or print a spec, or write the JSON schema of specs",
    "demo": "train a small model on this machine, then hear and see what it learned",
    "doctor": "estimate the GPU memory that training a spec needs, and what would fit",
    "completion": "print a script that completes commands, options, spec keys and plugin names in bash or zsh",
}
"""Command → its HELP, so the list can be printed without importing any module of a command, see `command_module`."""

TRAINS = ("train", "demo")
"""Commands that show the progress of training themselves."""

COMPUTES = (*TRAINS, "generate", "describe", "reconstruct", "encode", "fit-kmeans", "evaluate")
"""Commands that run models, so that it pays to set up memory for them."""

REPORTING_SECONDS = 5.0
"""How long a silent process gives the first one to report the same error."""
GLOBAL_OPTIONS = {
    "--json": "print one machine-readable result on stdout, everything else on stderr",
    "--debug": "show tracebacks of errors",
    "--trust-class-paths": "let a spec name classes by import path, which runs their code",
}

LONGEST_NAME = 255
"""Most bytes of a file's name on usual file systems."""
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. Without --debug, no traceback is ever shown.

    Args:
        argv: the arguments; None for those of this process, which then ends with the command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    status = _status(arguments)
    _end_process_group()
    if argv is not None:
        gc.unfreeze()  # see start_up.importing
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
        _silence(sys.stdout)  # its reader is gone
        return PIPE_CLOSED
    except SoundOmniError as error:
        if _is_reported_elsewhere(error):
            time.sleep(REPORTING_SECONDS)  # torchrun ends all processes when one ends, also the one that is about to say why
            return 2
        return _fail(arguments, f"error: {' '.join([str(error), *_notes(error), *_origin(error)])}", status=2)
    except OSError as error:
        if (plugin := _raised_by(error)) is not None:
            return _fail(arguments, f"error: {plugin} failed: {reason(error)}", status=1)
        return _fail(arguments, f"error: {' '.join([_described(error), *_notes(error)])}", status=2)
    except BaseException as error:  # a plugin may raise anything, even SystemExit
        return _fail(arguments, _unexpected(arguments, error), status=1)


def _end_process_group() -> None:
    """End the threads of a process group that only garbage refers to, such as the frames of an error.

    A thread of gloo may still hold the last tensor that it has sent. If it dropped that as the interpreter ends, it would
    abort the process, whatever its exit status.
    """
    if "RANK" in os.environ and "torch.distributed" in sys.modules:
        gc.collect()


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
    module = command_module(name)
    parser = command_parser(name)
    asked = find_request(after)
    if asked is None:
        rest, overrides = split_overrides([*given, *after], parser, getattr(module, "names_of_clips", None))
        args, overrides = parser.parse_args(rest), [*early, *overrides]
        refuse_overrides(overrides, args)
        _check_out(args)
    else:  # the help of a plugin was requested; as with --help, the rest of the line does not matter
        args, overrides = argparse.Namespace(json="--json" in given, trust_class_paths="--trust-class-paths" in given), []
    from soundomni.cli.console import results_only
    from soundomni.core.spec.discovery import only_readable

    shows_itself = name in TRAINS and asked is None
    progress = contextlib.nullcontext() if shows_itself else Progress(f"soundomni {name} is working")
    results = results_only() if args.json else contextlib.nullcontext()
    with only_readable(), results, progress:  # plugins may print what they like
        if asked is not None:
            return show(asked, args, prog=parser.prog)
        if name in COMPUTES:
            from soundomni.core.cpu_memory import reuse_cpu_memory

            reuse_cpu_memory()
        return int(module.run(args, overrides))


def command_module(name: str) -> ModuleType:
    """Import the module of a command, which has HELP, `configure` and `run`; `names_of_clips` is the `named` of
    `split_overrides`."""
    return importlib.import_module(f"soundomni.cli.{name.replace('-', '_')}")


def command_parser(name: str) -> Parser:
    """Return the parser of a command, with the global options."""
    module = command_module(name)
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
        epilog="Run `soundomni COMMAND --help` for details.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"soundomni {__version__}")
    _add_global_options(parser)
    return parser


def _add_global_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("global options (accepted anywhere)")
    for option, text in GLOBAL_OPTIONS.items():
        group.add_argument(option, action="store_true", help=text)


def _check_out(args: argparse.Namespace) -> None:
    """Raise UsageError if --out is empty, which would mean the working directory, or has a name that is too long.

    This comes before any folder is made.
    """
    out = getattr(args, "out", None)
    if not isinstance(out, str):
        return
    if not out.strip():
        raise UsageError(f"--out is {out!r}; expected the name of a file or folder")
    if (told := _too_long(out)) is not None:
        raise UsageError(told)


def _described(error: OSError) -> str:
    """Return what went wrong with a file, in words if its name is too long."""
    told = None if error.errno != errno.ENAMETOOLONG or error.filename is None else _too_long(os.fsdecode(error.filename))
    return str(error) if told is None else told


def _too_long(path: str) -> str | None:
    """Return a sentence about the longest part of a path if no file system takes it, or None."""
    longest = max(PurePath(path).parts, key=lambda part: len(os.fsencode(part)), default="")
    size = len(os.fsencode(longest))
    if size <= LONGEST_NAME:
        return None
    return f"the name '{longest[:40]}…' has {size:,} bytes; expected at most {LONGEST_NAME}. Use a shorter name"


def _is_reported_elsewhere(error: SoundOmniError) -> bool:
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))
    # a leftover variable does not start other processes
    launched = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    return launched and local_rank != "0" and not _notes(error)


def _raised_by(error: BaseException) -> str | None:
    """Return the third-party plugin that raised an error, if any."""
    from soundomni.core.spec.culprit import culprit

    return culprit(error, raised=True)


def _origin(error: SoundOmniError) -> list[str]:
    """Return the third-party plugin that raised an error for the user, unless the message names it."""
    plugin = _raised_by(error)
    return [] if plugin is None or plugin.partition(" of ")[0] in str(error) else [f"({plugin})"]


def _unexpected(arguments: list[str], error: BaseException) -> str:
    """Return what happened, with the third-party plugin that caused it, or else as an error of this program."""
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
    """Make every text writable: escape characters that a stream cannot encode; drop text for a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            devnull = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  it stays open until the process ends
            setattr(sys, name, devnull)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say(stream: TextIO, text: str) -> None:
    """Write how a command failed. If even that fails, as on a full disk, only the exit status shows it."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Discard buffered text, so that it does not raise again when the interpreter ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
