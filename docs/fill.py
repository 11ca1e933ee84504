"""Writes into the pages what the site shows there, so that they can be read in the repository too: `make pages`.

A line `{{ name argument ... }}` of a page (see hooks.py) becomes a block between two comments, which the site's build takes for the line
again. A test compares the blocks with the code; outputs are those of the last time that this ran.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import hooks

DOCS = Path(__file__).parent
ROOT = DOCS.parent
WIDTH = 100
"""Columns beyond which a signature is broken into lines."""

_REFERENCE = re.compile(r"\]\[(soundomni[\w.]*)\]")
_HEADING = re.compile(r"^(#+) (.*?) \{ #([\w-]+) \}$", re.MULTILINE)


def fill(markdown: str, page: Path, *, run: bool) -> str:
    """Returns a page with its blocks filled.

    Args:
        markdown: the page.
        page: where it lies below docs/, which links to the sources start from.
        run: run the examples to show what they print; otherwise outputs stay as they are.
    """
    bare = hooks.bare(markdown)
    shown = iter([text for _, text in sorted(hooks.outputs(bare).items())]) if run else None

    def block(match: re.Match[str]) -> str:
        name, arguments, before = match[1], match[2].split(), match[3] or ""
        if name == "links":
            return ""
        if name == "output":
            text = before if shown is None else next(shown)
        else:
            text = contract(*arguments) if name == "contract" else hooks.DIRECTIVES[name](*arguments)
        return _block(" ".join([name, *arguments]), _readable(text))

    filled = hooks.PLACE.sub(block, markdown).rstrip("\n") + "\n"
    names = sorted(set(_REFERENCE.findall(filled)))
    links = "\n".join(f"[{name}]: {os.path.relpath(source_of(name), (DOCS / page).parent)}" for name in names)
    return f"{filled}\n{_block('links', links)}\n" if names else filled


def contract(kind: str) -> str:
    """The abstract class of a kind as source, without the bodies of its methods."""
    from soundomni.core.interfaces import KINDS

    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(KINDS[kind]))).body
    assert isinstance(tree, ast.ClassDef)
    tree.body = [statement for statement in tree.body if not getattr(statement, "name", "").startswith("_")]
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            statement.body = [*statement.body[: 1 if ast.get_docstring(statement) else 0], ast.Expr(ast.Constant(...))]
    lines = "\n".join(map(_wrapped, ast.unparse(tree).splitlines()))
    # As the formatter has it, which reads Markdown too.
    lines = re.sub(r'"""\n(?=    \w+:)', '"""\n\n', lines, count=1)
    lines = re.sub(r"^( +|    \w+: .* = )'([^'\"]*)'$", r'\1"\2"', lines, flags=re.MULTILINE)
    return f"```py\n{lines}\n```"


def _wrapped(line: str) -> str:
    """Gives each argument of a long signature a line of its own, and defaults spaces, as the formatter does."""
    match = re.match(r"( *)def \w+\((.*)\)( -> .*)?:$", line)
    if match is None:
        return line
    indent, arguments, _ = match.groups()
    if len(line) <= WIDTH:
        return line.replace(arguments, arguments.replace("=", " = "))
    below = "".join(f"\n{indent}    {one.replace('=', ' = ', 1)}," for one in re.split(r", (?=\w+: |\*)", arguments))
    return line.replace(arguments, f"{below}\n{indent}")


def source_of(name: str) -> Path:
    """Returns the file of the module that a dotted name begins with."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    raise ValueError(f"no module has the name '{name}'")


def _block(directive: str, text: str) -> str:
    inner = f"\n{text.strip()}\n\n" if text.strip() else ""
    return f"<!-- {{{{ {directive} }}}} -->\n{inner}<!-- {{{{ end }}}} -->"


def _readable(text: str) -> str:
    """Returns Markdown without what only the site understands."""
    text = re.sub(r"( passed) in [\d.]+s$", r"\1", text, flags=re.MULTILINE)  # another time each time
    text = re.sub(r"^``` \{ \.(\w+)[^}]*\}$", r"```\1", text, flags=re.MULTILINE)
    return _HEADING.sub(_heading, text)


def _heading(match: re.Match[str]) -> str:
    level, title, anchor = match.groups()
    by_title = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    return f"{level} {title}" if by_title == anchor else f'<a id="{anchor}"></a>\n\n{level} {title}'


def pages() -> Iterator[Path]:
    """Gives the pages, as paths below docs/."""
    yield from sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))


def main() -> int:
    """Fills the pages that are named, or all of them."""
    for page in [Path(name) for name in sys.argv[1:]] or pages():
        before = (DOCS / page).read_text(encoding="utf-8")
        after = fill(before, page, run=True)
        if after != before:
            (DOCS / page).write_text(after, encoding="utf-8")
            sys.stderr.write(f"{page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
