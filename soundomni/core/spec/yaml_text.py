"""Safe YAML, read and written by the core rules of YAML 1.2 (section 10.3.2): `no` is a word, `1e-4` is a number,
`1:30` is not.

Reader and writer share these rules, so that written data reads back unchanged. Duplicate keys and tags are errors.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from soundomni.core.errors import SpecError, message_of

_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+0123456789."),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
MOST_CHARACTERS = 1_000_000
MOST_NODES = 100_000
"""Largest number of values in a document, counting each reference: a few lines of references can stand for billions."""
DEEPEST = 100
"""Largest number of lists and mappings within each other."""
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")


class _Reader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (declared this way in the base class; filled below)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._extents: dict[yaml.Node, tuple[int, int]] = {}
        self._begun = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse tags, aliases within the node that they stand for (such data has no end), and documents that are too
        large or deep.

        Values are counted as they begin, so that a long list is refused before it is completely read, and again with
        references.
        """
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            node = self.anchors.get(event.anchor)
            if node is not None and node.end_mark is None:
                raise yaml.composer.ComposerError(None, None, f"'*{event.anchor}' refers to a value that contains it", mark)
        elif event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.composer.ComposerError(None, None, f"the tag '{tag}' is not supported; expected none", mark)
        self._begun += 1
        self._depth += 1
        self._check_extent(self._begun, self._depth, mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None, "it is composed where a value begins"
        if node not in self._extents:
            self._extents[node] = self._extent(node)
        self._check_extent(*self._extents[node], mark)
        return node

    def _check_extent(self, count: int, depth: int, mark: yaml.Mark) -> None:
        if count > MOST_NODES or depth > DEEPEST:
            limit = f"more than {MOST_NODES:,} values" if count > MOST_NODES else f"values within more than {DEEPEST} others"
            raise yaml.composer.ComposerError(None, None, f"it has {limit}, references counted", mark)

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        """Return how many values a node has, including itself, and how deeply they are nested; its children are
        known."""
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        extents = [self._extents[child] for child in children]
        return 1 + sum(count for count, _ in extents), 1 + max((depth for _, depth in extents), default=0)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Writer(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice in full both times, so that readers of a spec need not know anchors."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists under their key."""
        super().increase_indent(flow, False)


def _write_text(writer: _Writer, text: str) -> yaml.ScalarNode:
    """Quote text with line breaks other than a newline, so that they are escaped: unquoted, readers take them for a
    space."""
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _LINE_BREAKS.search(text) else None)


_Writer.add_representer(str, _write_text)
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Reader, _Writer):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse(text: str, source: str) -> Any:
    """Read one YAML document.

    Raise SpecError, one line with `source:line:column`, if it is not well-formed or too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise SpecError(f"{source}: it has {len(text):,} characters; expected at most {MOST_CHARACTERS:,}. Split it into several files")
    try:
        return yaml.load(text, Loader=_Reader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise SpecError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML: {message_of(error)}") from error
    except RecursionError as error:
        raise SpecError(f"{source}: nested too deeply") from error
    except ValueError as error:  # which Python explains with a setting of its own
        raise SpecError(f"{source}: not valid YAML: it has a whole number of too many digits") from error


def render(tree: Any) -> str:
    """Return plain data (dicts, lists, text, numbers, None) as YAML, with keys in their order."""
    text: str = yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)
    return text
