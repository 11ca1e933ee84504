"""The pages of docs/ hold: their code runs, the site builds without a warning, and nothing of the library is left out."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from soundomni.cli.main import COMMANDS
from soundomni.core.spec import registry
from soundomni.core.spec.load import shipped_specs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

SMALL = [
    "--train.steps=2",
    "--train.threads=1",
    "--train.validation.every=0",
    "--train.save_every=0",
    "--data.tokens_per_batch=512",
    "--model.backbone.hidden_dim=64",
    "--model.backbone.num_layers=1",
    "--model.tokenizer.vocab_size=261",
]
TOYS = "--data.datasets.toys.source.size=200"


def module(name: str) -> ModuleType:
    """Imports a module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


blocks = module("blocks")


def pages() -> list[str]:
    """Return the paths of all pages."""
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def runs(page: str) -> bool:
    return any(block.language in ("bash", "python") for block in blocks.blocks(text_of(page)))


def cheap(arguments: list[str]) -> list[str]:
    """Makes a command do the same with less."""
    words = set(arguments)
    if "tune.yaml" in words:
        return [*arguments, "--train.steps=2", "--train.validation.every=1", "--train.validation.num_held_out=4"]
    if "stable-audio-toy" in words and arguments[0] == "train":
        return [*arguments, "--train.steps=2", "--train.threads=1"]  # its connectors fix its width
    if "train" in arguments and any(word.startswith("--model.start=") for word in words):
        return arguments  # sizes are those of the model that it starts from
    if "train" in arguments and not words & {*shipped_specs()}:
        return arguments  # the page itself makes its specs small
    if "soundstream-toy" in words:
        return arguments  # the page makes it small itself
    if "codec.yaml" in words:
        return [*arguments, SMALL[0], TOYS]  # there is no model
    if "train" in arguments:
        toys = [] if "mine.yaml" in words else [TOYS]
        steps = [] if any(word.startswith("--train.steps") for word in words) else SMALL[:1]
        return [*arguments, *steps, *SMALL[1:], *toys]
    if arguments[0] == "demo":
        return [*arguments, "--measure", "2", "--compare", "none", *SMALL, TOYS]
    if arguments[0] == "evaluate":
        return [*arguments, "--limit", "2"]
    return arguments


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in pages() if runs(page)])
def test_what_a_page_shows_runs(page: str, tmp_path: Path) -> None:
    workspace = blocks.Workspace(tmp_path, adapt=cheap)
    with workspace.entered():
        for block in blocks.blocks(text_of(page)):
            workspace.run(block)


def lines_of_examples(page: str) -> dict[str, tuple[int, int, int]]:
    """Return, for each row of a page's table of examples, the lines there and here that it says, and those that the example has."""
    text = text_of(page)
    rows = re.findall(r"^\| \[(.+?)\]\(#.*?\) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    return {name: (int(there), int(here), _lines_below(f"### {name}\n", text)) for name, there, here in rows}


def _lines_below(heading: str, text: str) -> int:
    section = re.split(r"^##+ ", text[text.index(heading) + len(heading) :], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.strip() for block in blocks.blocks(section) for line in block.code.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(("page", "examples"), [("soundstorm-pytorch", 3), ("audiolm-pytorch", 10)])
def test_an_example_of_another_project_has_no_more_lines_here(page: str, examples: int) -> None:
    found = lines_of_examples(f"coming-from/{page}.md")
    assert len(found) == examples
    for name, (there, here, counted) in found.items():
        assert here == counted <= there, name


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning as an error: links and anchors within it, the navigation, references and directives."""
    folder = tmp_path_factory.mktemp("site")
    command = [str(Path(sys.executable).with_name("mkdocs")), "build", "--strict", "--site-dir", str(folder)]
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    built = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.long
def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert (site / "index.html").is_file() and (site / "search" / "search_index.json").is_file()


@pytest.mark.long
def test_the_site_asks_no_other_host_for_anything(site: Path) -> None:
    for path in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", path.read_text(encoding="utf-8"))
        outside = [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)]
        assert not outside, f"{path.relative_to(site)}: {outside}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path


@pytest.mark.long
def test_every_reference_to_the_code_is_a_link(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert "</code>][" not in path.read_text(encoding="utf-8"), path.relative_to(site)


@pytest.mark.long
def test_every_builtin_plugin_is_on_the_page_of_its_kind(site: Path) -> None:
    for kind in registry.KINDS:
        html = (site / "plugins" / f"{kind}.html").read_text(encoding="utf-8")
        for entry in registry.entries(kind):
            if entry.distribution == "soundomni":
                assert f'<h3 id="{entry.name}">' in html, f"{kind} {entry.name}"


@pytest.mark.long
def test_every_option_of_a_command_is_on_its_page(site: Path) -> None:
    hooks = module("hooks")
    for command in COMMANDS:
        html = (site / "commands" / f"{command}.html").read_text(encoding="utf-8")
        known = set(re.findall(r"`(--[a-z-]+)", hooks.options(command)))
        for option in known:
            assert f"<code>{option}" in html, f"{command} {option}"
        assert f"# soundomni {command}\n" in text_of(f"commands/{command}.md")


@pytest.mark.long
def test_every_shipped_spec_and_package_is_there(site: Path) -> None:
    specs = (site / "concepts" / "specs.html").read_text(encoding="utf-8")
    assert all(f'<h3 id="{name}">' in specs for name in shipped_specs())
    for package in module("hooks").packages():
        assert f"soundomni.{package}" in (site / "api" / f"{package}.html").read_text(encoding="utf-8")


def test_every_command_and_kind_has_a_page() -> None:
    assert {Path(page).stem for page in pages() if page.startswith("commands/")} == {*COMMANDS, "index"}
    assert {Path(page).stem for page in pages() if page.startswith("plugins/")} == {*registry.KINDS, "index"}
    for kind in registry.KINDS:
        assert all(f"{{{{ {name} {kind} }}}}" in text_of(f"plugins/{kind}.md") for name in ("plugins", "runtime", "clauses"))
    for command in COMMANDS:
        assert f"{{{{ options {command} }}}}" in text_of(f"commands/{command}.md")


@pytest.mark.parametrize("line", ["no-such", "plugins codecs", "options trian", "spec-keys modle", "file-table re"])
def test_a_directive_that_the_code_does_not_know_stops_the_build(line: str) -> None:
    with pytest.raises(Exception, match=r"\S"):
        module("hooks").expand(f"before\n\n{{{{ {line} }}}}\n")


def test_what_the_tables_say_is_written_for_readers() -> None:
    hooks = module("hooks")
    assert "plugin | `adamw` |" in hooks.spec_keys("train.optimizer")
    data = hooks.spec_keys("data")
    assert "| [a mapping of mappings](#data-datasets-name) |" in data and "| [a mapping of lists of mappings](#data-tasks-name) |" in data
    assert "a gap of 0.1 to 0.6 of it" in hooks.tasks()
    assert not any("[-h]" in hooks.options(command) for command in COMMANDS)


def test_an_output_is_that_of_the_block_before_it() -> None:
    page = "```python\nx = 1\nprint(x)\n```\n\n{{ output }}\n\n```python\nprint(x + 1)\n```\n\n```py\nx = 9\n```\n\n{{ output }}\n"
    shown = [line for line in module("hooks").expand(page).splitlines() if line.isdigit()]
    assert shown == ["1"]
    page = page.replace("```py\nx = 9\n```\n\n", "")
    assert [line for line in module("hooks").expand(page).splitlines() if line.isdigit()] == ["1", "2"]


@pytest.mark.parametrize("page", pages())
def test_a_page_can_be_read_in_the_repository(page: str) -> None:
    text = text_of(page)
    module("hooks")
    assert module("fill").fill(text, Path(page), run=False) == text, f"`make pages` writes what the code says now into {page}"
    for line in re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        assert not re.match(r"\{\{|:::|!!!|\?\?\?|=== ", line) and not re.search(r"\{ ?[.#:][\w-]", line), line


def test_what_a_page_was_filled_with_is_made_anew(tmp_path: Path) -> None:
    hooks, fill = module("hooks"), module("fill")
    page = "before\n\n{{ runtime connector }}\n\n```python\nprint(1)\n```\n\n{{ output }}\n\nsee [this][soundomni.core.errors.SpecError]\n"
    filled = fill.fill(page, Path("concepts/x.md"), run=True)
    assert "The assembly passes `tokens`" in filled and "```text\n1\n```" in filled
    assert "[soundomni.core.errors.SpecError]: ../../soundomni/core/errors.py" in filled
    assert hooks.expand(filled).startswith(hooks.expand(page).rstrip("\n"))
    stale = filled.replace("tokens", "size").replace("\n1\n", "\n2\n")
    assert fill.fill(stale, Path("concepts/x.md"), run=True) == filled
    assert fill.fill(stale, Path("concepts/x.md"), run=False) == filled.replace("\n1\n", "\n2\n")


def test_headings_that_are_linked_keep_their_places() -> None:
    fill = module("fill")
    text = fill._readable("### mdct { #mdct }\n\n## `data.tasks[]` { #data-tasks }\n\n``` { .text .output }\nx { #y }\n```")
    assert text == '### mdct\n\n<a id="data-tasks"></a>\n\n## `data.tasks[]`\n\n```text\nx { #y }\n```'


def test_a_contract_is_shown_without_its_bodies() -> None:
    text = module("fill").contract("dataset")
    assert "class Dataset(ABC):" in text and "def load(self, index: int)" in text and "raise" not in text
    assert max(map(len, module("fill").contract("sampler").splitlines())) < 145


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    (block,) = blocks.blocks("```bash\nsoundomni plugins show codec mdtc\n```\n")
    with pytest.raises(RuntimeError, match="Did you mean 'mdct'"):
        blocks.Workspace(tmp_path).run(block)


def test_titled_blocks_are_files_and_installed_packages_are_found(tmp_path: Path) -> None:
    project = '[project]\nname = "acme-x"\nversion = "1.0"\n[project.entry-points."soundomni.codecs"]\nx = "acme_x:X"\n'
    page = f'```toml title="acme/pyproject.toml"\n{project}```\n\n```bash\npip install -e acme\n```\n'
    workspace = blocks.Workspace(tmp_path)
    with workspace.entered():
        for block in blocks.blocks(page):
            workspace.run(block)
        assert registry.find("codec", "x").target == "acme_x:X"
    assert "x" not in {entry.name for entry in registry.entries("codec")}
