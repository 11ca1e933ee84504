"""What users read is plain English: phrases that nobody would say aloud are found, with a better wording."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from soundomni.cli.main import COMMANDS, command_module, main
from soundomni.cli.parsing import Parser

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "soundomni"

MOST_IN_CODE = 0
"""Findings in the strings of soundomni/. Lower it whenever there are fewer; never raise it."""
MOST_IN_HELP = 0
"""Findings in the texts of `--help`. Lower it whenever there are fewer; never raise it."""


class Rule(NamedTuple):
    """A phrase to avoid, what to write instead, and examples that it finds and that it leaves in peace."""

    phrase: re.Pattern[str]
    better: str
    bad: tuple[str, ...]
    good: tuple[str, ...]


def rule(phrase: str, better: str, *, bad: tuple[str, ...], good: tuple[str, ...]) -> Rule:
    return Rule(re.compile(phrase, re.IGNORECASE), better, bad, good)


RULES = (
    rule(
        r"\balone\b",
        "only, on its own",
        bad=("adapters alone are written", "from metadata alone", "A codec alone."),
        good=("only adapters are written", "the loan was paid"),
    ),
    rule(
        r"\bbeside\b",
        "next to, besides",
        bad=("the config beside the weights", "Beside it lie the clips"),
        good=("the config next to the weights", "besides the clips"),
    ),
    rule(
        r"\b(?:has|have|had) not\b(?=\s*(?:[.,;:)]|$|an?\b|any\b|the\b))",
        "does not have",
        bad=("3 tensors that a BAGEL model has not", "keys that it has not, and others", "it has not a head"),
        good=("it has not run on a GPU", "the spec has not changed", "it does not have a head"),
    ),
    rule(
        r"(?:^|[|(]\s*|\n\s*[`\w]+: )of (?:the|an?|what|which|each|all|every|its|this|those|one)\b",
        "start with the noun: 'the dtype of the parameters'",
        bad=(
            "Of the parameters.",
            "of the first clip; each next one counts up",
            "Args:\n    name: of a shipped list",
            "| `x` | of the matrices |",
        ),
        good=("Dtype of the parameters.", "seed: the seed of the first clip", "most of the clips"),
    ),
    rule(
        r"(?<!there )\b(?:is|are|was|were) (?:(?-i:none)\b|no (?!longer|more|less|fewer|need|way|different|better|worse|one\b))",
        "is not a, does not have any",
        bad=("'x' is no name of a repository", "'nano' is none", "these are no files"),
        good=("there is no template", "when that is None", "it is no longer there", "'x' is not a name", "there are none"),
    ),
    rule(
        r"\b(?:is|are|was|were) (?:told|said)\b",
        "says, prints, reports: name who does it",
        bad=("and that is said", "a mistake is told once", "what was told before"),
        good=("the error says so", "stderr names the file"),
    ),
    rule(
        r"(?<!there )\b(?:is|are|was|were) of (?!(?:\w+ ){0,2}(?:kind|type|shape|order|size|interest|use|help|course)\b)",
        "only applies to, belongs to, has",
        bad=("--last is of runs", "dtype is of models", "the numbers are of one machine"),
        good=("the method is of second order", "the path is of the wrong type", "--last only applies to runs"),
    ),
    rule(
        r"\bof (?:the Hub\b(?!')|one's own\b|others\b)",
        "the Hub's, your own, other people's",
        bad=("a repository of the Hub", "a network of one's own", "weights of others"),
        good=("a repository on the Hub", "your own network", "weights of other projects"),
    ),
    rule(
        r"(?<!stay )(?<!stays )\bwhere (?:there (?:is|are)|nothing|none|neither|one is|it is not|they are not)\b",
        "if",
        bad=("where there is no GPU", "where nothing can be written", "where one is given"),
        good=("if there is no GPU", "files stay where they are", "say where it looked"),
    ),
    rule(
        r"\b(?:anew|thereof|wherein|whereof|whence|thereby|hereby|therein|herein|whither)\b",
        "use the everyday word: again, from scratch, in it, so",
        bad=("train it anew", "the folder and the files therein"),
        good=("train it again", "a new model"),
    ),
    rule(
        r"\bsays? (?:\w+ )?of\b(?! (?:the time|course))|\btakes? of (?:each|every|it|the|an?)\b|\bknows? (?:nothing|more|little) of\b",
        "say about, need from, know about",
        bad=("says more of each", "training takes of each GPU", "what the code says of itself", "knows nothing of guidance"),
        good=("says more about each", "takes care of the rest", "the GPU memory that training needs"),
    ),
    rule(
        r"\bas ever\b|\bsuch as is\b|\bas (?:it|they) (?:was|were) to\b",
        "finish the comparison",
        bad=("the rest is trained as ever", "as they were to be"),
        good=("as before", "whatever happens, wherever"),
    ),
    rule(r"\bmend(?:ed|s|ing)?\b", "fix", bad=("mends the file", "it was mended"), good=("fixes the file", "recommended", "amendment")),
    rule(
        r"\bnoised\b",
        "with noise added",
        bad=("a clip that is noised in part",),
        good=("a clip with noise added", "a noisy clip"),
    ),
    rule(
        r"\blearnt\b|\b(?:licences?|colours?|neighbours?|behaviours?|favou?rite|centred?|centring)\b(?!:)"
        r"|(?<!\.)\b(?:de|un|re)?(?:normal|initial|recogn|optim|serial|organ|summar|general|capital)is(?:e|es|ed|er|ers|ing|ation|ations)\b(?!:)",
        "US spelling: learned, license, color, normalize, center",
        bad=("what it learnt", "latents are normalised", "an optimiser", "its licence", "centred at x"),
        good=("what it learned", "normalized latents", "an optimizer", "a precise exercise", "the center", "model.normalise"),
    ),
    rule(
        r"\b(?:is|are|was|were) due\b(?! (?:to|after|every|when)\b)",
        "is expected",
        bad=("where floating point is due",),
        good=("expected floating point", "the error is due to rounding"),
    ),
    rule(
        r"\bthe (?:first|last) so many\b|\beach next\b",
        "the first N, later ones",
        bad=("the first so many clips", "seed of the first clip; each next one counts up"),
        good=("so many clips that", "the first clips", "the next one"),
    ),
    rule(
        r"\bgo(?:es|ing)? on (?:from|where|with)\b|\bgoes on\b(?=[.,;:)]|$)",
        "resume, continue",
        bad=("goes on where it stopped", "the same command goes on.", "go on from there"),
        good=("resumes where it stopped", "what is going on"),
    ),
    rule(
        r"\bwhatever (?:it|they|that|this) (?:is|are|was|were|may be)\b",
        "any, all of them",
        bad=("an error, whatever it is", "files, whatever they are"),
        good=("any error", "whatever the number of ranks"),
    ),
)


def findings(text: str) -> list[str]:
    """Return the phrases of a text that break a rule, with a better wording; code in backticks does not count."""
    text = re.sub(r"``?[^`\n]+``?", "`x`", text)
    return [
        f"'{found[0].strip()}' (better: {each.better}) in: {_around(text, found)}" for each in RULES for found in each.phrase.finditer(text)
    ]


def _around(text: str, found: re.Match[str]) -> str:
    return " ".join(text[max(found.start() - 40, 0) : found.end() + 40].split())


@pytest.mark.parametrize("each", RULES, ids=lambda each: each.better)
def test_a_rule_finds_its_examples_and_leaves_plain_english(each: Rule) -> None:
    for text in each.bad:
        assert each.phrase.search(text), text
    for text in each.good:
        assert not findings(text), text


# Documents


def documents() -> list[str]:
    names = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    cards = [*(ROOT / "examples").glob("*/README.md"), *(PACKAGE / "models").glob("*/README.md")]
    return [path.relative_to(ROOT).as_posix() for path in (*names, *cards, *sorted((ROOT / "docs").rglob("*.md")))]


def prose(markdown: str) -> str:
    """Return the text of a page: no code, no blocks that the code writes, one line per paragraph, list item or row."""
    markdown = re.sub(r"^<!-- \{\{ .*? \}\} -->\n.*?^<!-- \{\{ end \}\} -->$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    markdown = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\n(?!\n|[|#>*-]|\s*(?:[-*]|\d+\.) )[ ]*", " ", markdown)


@pytest.mark.parametrize("name", documents())
def test_a_document_is_plain_english(name: str) -> None:
    lines = prose((ROOT / name).read_text(encoding="utf-8")).splitlines()
    found = [finding for line in lines for finding in findings(line.strip(" -*>"))]
    assert not found, "\n".join(found)


def test_code_and_generated_blocks_of_a_page_do_not_count() -> None:
    page = "plain\n\n```sh\nalone\n```\n\n<!-- {{ output }} -->\n\nalone\n\n<!-- {{ end }} -->\n\n`alone`\n"
    assert not findings(prose(page))
    assert len(findings(prose(f"{page}\na model\nalone\n"))) == 1


# Code


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Give the docstrings of a module and its other strings of at least three words, with their lines; values in f-strings are `x`."""
    tree = ast.parse(source)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "`x`" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if len(text.split()) >= 3:
            yield node.lineno, inspect.cleandoc(text)


def joined(text: str) -> str:
    """Return a docstring with its wrapped lines joined; arguments and paragraphs keep lines of their own."""
    return re.sub(r"\n(?!\n|\s*[`\w]+: |\s*- )\s*", " ", text)


def findings_in_code() -> list[str]:
    return [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {finding}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in strings(path.read_text(encoding="utf-8"))
        for finding in findings(joined(text))
    ]


def test_errors_and_docstrings_hold_no_more_of_the_phrases_than_before() -> None:
    found = findings_in_code()
    assert len(found) <= MOST_IN_CODE, f"{len(found)} findings, at most {MOST_IN_CODE} allowed:\n" + "\n".join(found)


def test_strings_are_read_as_people_read_them() -> None:
    source = '''
"""Module alone here."""
def f(a):
    """Return a.

    Args:
        a: of the first clip; goes
            alone.
    """
    raise ValueError(f"'{a}' is no name " "of the Hub" if a else "key alone")
x = "alone"
'''
    found = [finding for _, text in strings(source) for finding in findings(joined(text))]
    assert sorted(finding.split("'")[1] for finding in found) == ["a: of the", "alone", "alone", "is no", "of the Hub"]


def scripts() -> list[str]:
    folders = ("benchmarks", "docs", "examples", "tools")
    return [path.relative_to(ROOT).as_posix() for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("name", scripts())
def test_a_script_is_plain_english(name: str) -> None:
    found = [finding for _, text in strings((ROOT / name).read_text(encoding="utf-8")) for finding in findings(joined(text))]
    assert not found, "\n".join(found)


# Help


def parsers() -> Iterator[tuple[str, ArgumentParser]]:
    """Give the parser of each command and of each of its actions."""
    for name in COMMANDS:
        parser = Parser(prog=f"soundomni {name}")
        command_module(name).configure(parser)
        waiting: list[ArgumentParser] = [parser]
        while waiting:
            one = waiting.pop()
            yield one.prog, one
            waiting += [sub for action in one._actions if isinstance(action, _SubParsersAction) for sub in action.choices.values()]


def help_texts() -> Iterator[tuple[str, str]]:
    """Give what `--help` prints, wrapped lines joined: one text per option and paragraph."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["--help"]) == 0
    pages = [("soundomni", printed.getvalue()), *((name, parser.format_help()) for name, parser in parsers())]
    for name, page in pages:
        for text in re.split(r"\n\n|\n  (?=[^ ])", page):
            words = " ".join(re.sub(r"^ *(?:-\S.*?|\S+)(?:  +|\n +)", "", text, count=1).split())
            if not words.startswith("usage:"):
                yield name, words


def test_help_holds_no_more_of_the_phrases_than_before() -> None:
    found = [f"{name} --help: {finding}" for name, text in help_texts() for finding in findings(text)]
    assert len(found) <= MOST_IN_HELP, f"{len(found)} findings, at most {MOST_IN_HELP} allowed:\n" + "\n".join(found)


def test_help_is_read_option_by_option() -> None:
    texts = {text for name, text in help_texts() if name == "soundomni evaluate"}
    assert any(text.startswith("measure only the first LIMIT clips") for text in texts)
    assert not any(text.startswith("--") and "  " in text for text in texts)
