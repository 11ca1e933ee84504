"""What the pages show of the code is written by the code: a line `{{ name argument ... }}` of a page becomes what a function here returns.

In the repository such a line is a comment, with what it becomes below it up to a comment `{{ end }}`: see fill.py.
An unknown name, or an argument that the code no longer knows, stops the build. The API pages have no source file at all: there is one for
each package, made from the modules that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from blocks import Workspace, blocks
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from soundomni.cli import main as command_line
from soundomni.cli.parsing import Parser
from soundomni.core.spec import registry
from soundomni.core.spec.arguments import argument_texts
from soundomni.core.spec.load import shipped_specs
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import field_types, type_name, without_none
from soundomni.core.spec.written import WrittenSpec
from soundomni.evaluation import shipped_lists

DIRECTIVE = re.compile(r"^\{\{ ([a-z-]+)((?: [^\s{}]+)*) \}\}$", re.MULTILINE)
PLACE = re.compile(r"^(?:<!-- )?\{\{ ([a-z-]+)((?: [^\s{}]+)*) \}\}(?: -->\n(.*?)^<!-- \{\{ end \}\} -->)?$", re.MULTILINE | re.DOTALL)
"""A directive, and what it was last filled with."""
NOT_DOCUMENTED = ("cli", "specs")
"""Subpackages without an API page: commands have pages of their own."""


def on_config(config: MkDocsConfig) -> None:
    """Adds the API pages to the navigation."""
    pages = [{name: f"api/{name}.md"} for name in packages()]
    for entry in config.nav or ():
        if isinstance(entry, dict) and "API" in entry:
            entry["API"].extend(pages)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Makes the API pages."""
    for name in packages():
        files.append(File.generated(config, f"api/{name}.md", content=api_page(f"soundomni.{name}")))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replaces the directives of a page."""
    try:
        return expand(markdown)
    except Exception as error:
        raise PluginError(f"{page.file.src_path}: {type(error).__name__}: {error}") from error


def expand(markdown: str) -> str:
    """Returns a page with its directives replaced. Raises ValueError for an unknown one."""
    markdown = bare(markdown)
    shown = outputs(markdown)

    def replace(match: re.Match[str]) -> str:
        name, arguments = match[1], match[2].split()
        if name == "output":
            return shown[match.start()]
        if name not in DIRECTIVES:
            raise ValueError(f"unknown directive '{name}'; known: output, {', '.join(DIRECTIVES)}")
        return DIRECTIVES[name](*arguments)

    return DIRECTIVE.sub(replace, markdown)


def bare(markdown: str) -> str:
    """Returns a page without what its directives were last filled with."""
    return PLACE.sub(lambda match: f"{{{{ {' '.join([match[1], *match[2].split()])} }}}}", markdown)


def outputs(markdown: str) -> dict[int, str]:
    """Runs the blocks of a page that shows an output, and returns what each `{{ output }}` becomes, by its place in the text.

    Blocks that train are left to the tests: their outputs are empty. A block that needs what such a one would have made fails, and so
    does the build.
    """
    places = [match.start() for match in DIRECTIVE.finditer(markdown) if match[1] == "output"]
    shown: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder).resolve())
        with workspace.entered():
            text = ""
            for block in blocks(markdown) if places else ():
                while places and places[0] < block.end:
                    shown[places.pop(0)] = _shown(text)
                if not places:
                    break
                text = "" if block.trains else workspace.run(block)
    return shown | {place: _shown(text) for place in places}


def _shown(text: str) -> str:
    return f"``` {{ .text .output .no-copy }}\n{text.rstrip()}\n```" if text.strip() else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a Markdown table; a column without any text is left out."""
    kept = [i for i in range(len(columns)) if not rows or any(row[i] for row in rows)]
    columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
    lines = [columns, ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(`[^`]*`)|\|", lambda match: match[1] or "\\|", " ".join(str(text).split()))


def literal(value: object) -> str:
    """Writes a default as YAML has it."""
    if isinstance(value, Slot) and not value.init_args:
        return code(value.class_path)
    return code(value if isinstance(value, str) else json.dumps(value, default=_plain))


def _plain(value: object) -> object:
    """Returns a default as plain data: of a mapping, the keys that are not at their own defaults."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    given = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    return {one.name: given[one.name] for one in dataclasses.fields(value) if given[one.name] != one.default}


def code(value: object) -> str:
    """Writes a value as code."""
    return f"`{value}`"


# Commands


def parser_of(command: str) -> argparse.ArgumentParser:
    """Returns the parser of a command, as the command line builds it."""
    module = command_line.command_module(command)
    parser = Parser(prog=f"soundomni {command}")
    module.configure(parser)
    return parser


def commands() -> str:
    """A table of the commands, each linked to its page."""
    return table(["command", "what for"], [[f"[`{name}`]({name}.md)", text] for name, text in command_line.COMMANDS.items()])


def global_options() -> str:
    """A table of the options that every command takes."""
    return table(["option", "what it does"], [[code(option), text] for option, text in command_line.GLOBAL_OPTIONS.items()])


def options(command: str) -> str:
    """Usage and tables of the options of a command and of its actions."""
    return "\n\n".join(_parser_options(parser_of(command), level=3))


def _parser_options(parser: argparse.ArgumentParser, *, level: int) -> Iterator[str]:
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        parser.formatter_class = partial(argparse.HelpFormatter, width=84)  # type: ignore[assignment]
        usage = parser.format_usage().removeprefix("usage: ").replace(" [-h]", "").rstrip()
        yield f"```text\n{usage}\n```"
        rows = [row for action in parser._actions if (row := _option(parser, action)) is not None]
        yield table(["option", "what it does"], rows) if rows else "There are no other options."
    for action in nested:
        for name, chosen in action.choices.items():
            yield f"{'#' * level} {chosen.prog.removeprefix('soundomni ')} {{ #{name} }}"
            yield next(f"{choice.help[0].upper()}{choice.help[1:]}." for choice in action._choices_actions if choice.dest == name)
            yield from _parser_options(chosen, level=level + 1)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str] | None:
    if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
        return None
    formatter = argparse.HelpFormatter(parser.prog)
    value = "" if action.nargs == 0 else formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    names = " ".join([*action.option_strings[:1], value]).strip() if action.option_strings else formatter._format_args(action, action.dest)
    text = formatter._expand_help(action) if action.help else ""
    needed = action.required and bool(action.option_strings)
    return [code(names), f"{text} **Required.**" if needed else text]


def statuses(*also: str) -> str:
    """A table of the exit statuses of a command; `also` names those that not every command has."""
    from soundomni.train.signals import STOPPED_STATUS

    every = {
        0: "done",
        1: "the program or a plugin failed; `--debug` shows the traceback",
        2: "the input was wrong; one line on stderr says what was expected",
        command_line.INTERRUPTED: "interrupted",
        command_line.PIPE_CLOSED: "stdout was closed by its reader",
    }
    more = {
        "stopped": {STOPPED_STATUS: "stopped on request and saved; the same command resumes"},
        "check": {1: "a plugin is broken or a distribution cannot be read (`--check`)"},
        "partly": {1: "some files could not be used or some pictures not drawn; stderr names them, and everything else is done"},
    }
    found = dict(every)
    for name in reversed(also):
        for number, text in more[name].items():
            found[number] = f"{text}; or {found[number]}" if number in found else text
    return table(["status", "meaning"], [[code(number), found[number]] for number in sorted(found)])


# Plugins


def kinds() -> str:
    """A table of the kinds of plugin: contract, group, built-ins."""
    from soundomni.core.interfaces import KINDS

    rows = []
    for kind in registry.KINDS:
        names = ", ".join(code(entry.name) for entry in built_in(kind))
        summary = re.split(r"\.\s", inspect.cleandoc(KINDS[kind].__doc__ or ""))[0]
        rows.append([f"[{kind}]({kind}.md)", summary, f"`soundomni.{kind}s`", names])
    return table(["kind", "what it is", "entry-point group", "built in"], rows)


def built_in(kind: str) -> list[registry.PluginEntry]:
    """Returns the plugins of a kind that come with the library."""
    return [entry for entry in registry.entries(kind) if entry.distribution == "soundomni"]


def plugins(kind: str) -> str:
    """A section for each built-in plugin of a kind: summary, arguments, and the keys of arguments that are mappings."""
    parts = []
    for entry in built_in(kind):
        cls = registry.load(kind, entry.name)
        path = f"{cls.__module__}.{cls.__qualname__}"
        texts = argument_texts(cls)
        rows = [
            [code(a.name), type_name(a.annotation), "required" if a.required else literal(a.default), texts.get(a.name, "")]
            for a in registry.arguments(kind, cls)
        ]
        arguments = table(["argument", "type", "default", "meaning"], rows) if rows else "No arguments."
        parts += [f"### {entry.name} {{ #{entry.name} }}", f"[`{path}`][{path}]", _summary(cls), arguments]
        for a in registry.arguments(kind, cls):
            nested = _nested(a.annotation)
            if nested is not None:
                parts += [f"Keys of {code(a.name)}: {_summary(nested)}", _keys(nested, a.name)]
    return "\n\n".join(parts)


def runtime(kind: str) -> str:
    """Says what the assembly passes to plugins of a kind."""
    names = registry.runtime_arguments(kind)
    if not names:
        return "The assembly passes no arguments; a spec may set all of them."
    return f"The assembly passes {', '.join(code(name) for name in names)}; a spec cannot set these. It may set all other arguments."


def contract(kind: str) -> str:
    """The reference of the abstract class of a kind."""
    from soundomni.core.interfaces import KINDS

    cls = KINDS[kind]
    return f"::: {cls.__module__}.{cls.__qualname__}\n    options:\n      heading_level: 3\n      skip_local_inventory: true"


def links() -> str:
    """Nothing: the site knows where names are described, and does not need the links to their sources."""
    return ""


def clauses(kind: str) -> str:
    """A table of the clauses of a kind's conformance suite."""
    suite = suite_of(kind)
    methods = [(name.removeprefix("test_"), getattr(suite, name)) for name in dir(suite) if name.startswith("test_")]
    rows = [[code(name), inspect.cleandoc(method.__doc__ or "")] for name, method in methods]
    path = f"{suite.__module__}.{suite.__qualname__}"
    return f"[`soundomni.testing.{suite.__name__}`][{path}] checks:\n\n{table(['clause', 'what must hold'], rows)}"


def suite_of(kind: str) -> type:
    """Returns the conformance suite of a kind, or of a kind of a kind, such as `next_token_sampler`."""
    suite: type = getattr(importlib.import_module("soundomni.testing"), "".join(part.capitalize() for part in kind.split("_")) + "Suite")
    return suite


def template(kind: str, name: str) -> str:
    """The source that `soundomni plugins new KIND NAME` writes."""
    from soundomni.cli.plugins_new import write_package

    with tempfile.TemporaryDirectory() as folder:
        package = write_package(kind, name, Path(folder) / "package")
        source = next(package.glob(f"src/*/{kind}.py"))
        return f"```py\n{source.read_text(encoding='utf-8').rstrip()}\n```"


# Specs


def spec_reference() -> str:
    """A section for each mapping of a spec, with its keys."""
    return "\n\n".join(_section(WrittenSpec, ""))


def spec_keys(key: str) -> str:
    """The table of the keys of one mapping of a spec."""
    of: Any = WrittenSpec
    for name in key.split("."):
        of = _nested(field_types(of)[name])
    return f"{_summary(of)}\n\n{_keys(of, key)}"


def _summary(of: type) -> str:
    """The docstring of a class without its arguments."""
    return inspect.cleandoc(of.__doc__ or "").partition("\nArgs:\n")[0].strip()


def _section(of: type, key: str) -> Iterator[str]:
    title = f"`{key}`" if key else "A spec"
    yield f"## {title} {{ #{_anchor(key)} }}"
    yield _summary(of)
    yield _keys(of, key)
    types = field_types(of)
    for one in dataclasses.fields(of):
        nested = _nested(types[one.name]) if "kind" not in one.metadata else None
        if nested is not None:
            yield from _section(nested, _nested_key(types[one.name], f"{key}.{one.name}".lstrip(".")))


def _keys(of: Any, key: str) -> str:
    texts, types = argument_texts(of), field_types(of)
    rows = []
    for one in dataclasses.fields(of):
        place = f"{key}.{one.name}".lstrip(".")
        rows.append([code(one.name), _key_type(one, types[one.name], place), _default(one), _meaning(one, types[one.name], texts)])
    return table(["key", "type", "default", "meaning"], rows)


def _meaning(one: dataclasses.Field[Any], annotation: Any, texts: dict[str, str]) -> str:
    """Return the meaning of a key from the schema, of a plugin from the contract of its kind, of a mapping from its class."""
    from soundomni.core.interfaces import KINDS

    kind = one.metadata.get("kind")
    described = KINDS[kind] if kind else without_none(annotation)
    text = re.split(r"\.\s", _summary(described))[0] if kind or dataclasses.is_dataclass(described) else texts.get(one.name, "")
    return text if not text or text.endswith(".") else f"{text}."


def _nested(annotation: Any) -> type | None:
    """Returns the dataclass of a field, or of what it holds; None where it holds none."""
    annotation = without_none(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return None if annotation is Slot else annotation
    return next((found for inner in get_args(annotation) if (found := _nested(inner)) is not None), None)


def _nested_key(annotation: Any, place: str) -> str:
    """Returns where the keys of a field's dataclass stand: below a name in a mapping, in each item of a list."""
    annotation = without_none(annotation)
    if dataclasses.is_dataclass(annotation):
        return place
    below = f"{place}.NAME" if get_origin(annotation) is dict else f"{place}[]"
    return _nested_key(get_args(annotation)[-1], below)


def _key_type(one: dataclasses.Field[Any], annotation: Any, place: str) -> str:
    kind = one.metadata.get("kind")
    if kind is not None:
        link = f"[{kind}](../plugins/{kind}.md)"
        return f"{link} plugins" if one.metadata["many"] else f"{link} plugin" + (" or null" if one.metadata["optional"] else "")
    if _nested(annotation) is None:
        return type_name(annotation)
    return f"[a {_shape(annotation)}](#{_anchor(_nested_key(annotation, place))})"


def _shape(annotation: Any) -> str:
    """Says what holds the mappings of a field, outermost first, such as "mapping of lists of mappings"."""
    annotation = without_none(annotation)
    if dataclasses.is_dataclass(annotation):
        return "mapping"
    outer, (first, *rest) = "mapping" if get_origin(annotation) is dict else "list", _shape(get_args(annotation)[-1]).split(" ", 1)
    return " ".join([outer, "of", f"{first}s", *rest])


def _default(one: dataclasses.Field[Any]) -> str:
    if one.default is not dataclasses.MISSING:
        return literal(one.default)
    if one.default_factory is dataclasses.MISSING:
        return "required"
    made = one.default_factory()
    return "" if dataclasses.is_dataclass(made) else literal(made)


def _anchor(key: str) -> str:
    return "spec" if not key else re.sub(r"[^a-z_]+", "-", key.lower()).strip("-")


def specs() -> str:
    """A section for each shipped spec, whole."""
    parts = []
    for name in shipped_specs():
        text = (resources.files("soundomni") / "specs" / f"{name}.yaml").read_text(encoding="utf-8")
        parts.append(f"### {name} {{ #{name} }}\n\n```yaml\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def lists() -> str:
    """A table of the shipped lists of clips to measure on."""
    rows = []
    for name in shipped_lists():
        tree = yaml.safe_load((resources.files("soundomni") / "lists" / f"{name}.yaml").read_text(encoding="utf-8"))
        rows.append([code(name), tree["description"], ", ".join(tree["tasks"])])
    return table(["list", "what it is", "tasks"], rows)


def tasks() -> str:
    """A table of the built-in tasks as segments."""
    from soundomni.core.writing.tasks import BUILT_IN

    def written(part: Any) -> str:
        if part.text is not None:
            return f"text `{part.text}`" + (" **(loss)**" if part.loss else "")
        known = f", {part.known[0]:g} to {part.known[1]:g} of it known" if part.known else ""
        gap = f", a gap of {part.gap[0]:g} to {part.gap[1]:g} of it" if part.gap else ""
        return f"audio {part.audio}{known}{gap}" + (" **(loss)**" if part.audio == "target" else "")

    return table(["task", "segments"], [[code(name), " → ".join(map(written, parts))] for name, parts in BUILT_IN.items()])


def members(path: str) -> str:
    """A table of an enumeration's members, or of the names that a tuple or mapping of the code holds."""
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return ", ".join(code(getattr(one, "name", one)) for one in found)


def doc(path: str) -> str:
    """The docstring of a module."""
    return inspect.cleandoc(importlib.import_module(path).__doc__ or "")


def file_tree(path: str) -> str:
    """The indented listing in the docstring of a module."""
    lines = [line[4:] for line in doc(path).splitlines() if line.startswith("    ")]
    if not lines:
        raise ValueError(f"the docstring of {path} has no listing")
    return "\n".join(["```text", *lines, "```"])


def file_table(path: str) -> str:
    """The table in the docstring of a module."""
    lines = [line for line in doc(path).splitlines() if line.startswith("|")]
    if not lines:
        raise ValueError(f"the docstring of {path} has no table")
    return "\n".join(lines)


# API


def packages() -> list[str]:
    """Returns the documented subpackages."""
    import soundomni

    return [m.name for m in pkgutil.iter_modules(soundomni.__path__) if m.ispkg and m.name not in NOT_DOCUMENTED]


def api_page(package: str) -> str:
    """A package's docstring, and its modules with all public names."""
    root = importlib.import_module(package)
    found = [module for module in pkgutil.walk_packages(root.__path__, f"{package}.") if not module.name.rpartition(".")[2].startswith("_")]
    parts = [f"# {package}", inspect.cleandoc(root.__doc__ or "")]
    for module in found:
        if not module.ispkg:
            short = module.name.removeprefix(f"{package}.")
            parts.append(f"## {short}\n\n::: {module.name}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false")
    return "\n\n".join(parts) + "\n"


DIRECTIVES: dict[str, Callable[..., str]] = {
    "clauses": clauses,
    "commands": commands,
    "contract": contract,
    "doc": doc,
    "file-table": file_table,
    "file-tree": file_tree,
    "global-options": global_options,
    "kinds": kinds,
    "links": links,
    "lists": lists,
    "members": members,
    "options": options,
    "plugins": plugins,
    "runtime": runtime,
    "spec-keys": spec_keys,
    "spec-reference": spec_reference,
    "specs": specs,
    "statuses": statuses,
    "tasks": tasks,
    "template": template,
}
