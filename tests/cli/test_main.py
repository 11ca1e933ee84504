"""The command line as a user meets it: commands, options, overrides, errors, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from soundomni import __version__
from soundomni.cli import main as cli
from soundomni.cli.console import table, to_json
from soundomni.cli.parsing import Parser, UsageError, split_overrides

SOURCE = '''
from soundomni.core.interfaces import Codec

class Tiny(Codec):
    """A codec of a third party.

    Args:
        frame_size: samples per frame.
    """
    spec = None
    def __init__(self, *, frame_size: int, gain: float = 1.0) -> None:
        super().__init__()
    def encode(self, waveform, lengths): ...
    def decode(self, representation): ...
'''

SPEC = """
model:
  backbone: mot
  router: dense
  codec: {class_path: tiny, init_args: {frame_size: 32}}
  connectors: {latent: linear}
  objective: flow-matching
sampler: euler
"""


@pytest.fixture
def spec(install, tmp_path):
    points = {"soundomni.codecs": {"tiny": "cli_codec:Tiny", "lost": "cli_codec:Lost"}}
    install("cli-codec", groups=points, modules={"cli_codec": SOURCE})
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return str(path)


@pytest.fixture
def run(capsys):
    """Returns a function that runs a command and returns (status, stdout, stderr)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return command


def error_of(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("soundomni: error: ") and err.count("\n") == 1
    return err.removeprefix("soundomni: error: ").rstrip("\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_list_exists_and_says_the_same(name):
    module = cli.command_module(name)
    assert cli.COMMANDS[name] == module.HELP
    module.configure(Parser(prog=name))


def test_help_lists_every_command(run):
    for arguments in ([], ["--help"], ["-h"]):
        status, out, err = run(*arguments)
        assert (status, err) == (0, "")
        assert all(f"  {name} " in out and text in out for name, text in cli.COMMANDS.items())


def test_help_of_an_action_keeps_its_capitals(run):
    assert "Print a spec as YAML, with all defaults filled in. Overrides:" in " ".join(run("spec", "print", "--help")[1].split())


def test_version(run):
    assert run("--version") == (0, f"soundomni {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'? Commands: train, "),
        (["--jsn", "plugins", "list"], "unknown option '--jsn'. Did you mean '--json'? See `soundomni --help`"),
        (["plugins", "list", "--chek"], "unknown option '--chek'. Did you mean '--check'? See `soundomni plugins list --help`"),
        (["spec", "print", "x", "--confg=y"], "unknown option '--confg'. Did you mean '--config'?"),
        (["spec", "print", "x", "--modle.codec=mdct"], "unknown option '--modle.codec'. Did you mean '--model.codec'?"),
        (["spec", "print", "x", "--conf", "y"], "unknown option '--conf'. Did you mean '--config'?"),
        (["spec", "print", "x", "--sampler"], "--sampler needs a value; use --sampler=VALUE"),
        (["spec", "print", "x", "--sampler", "--json.x"], "--sampler needs a value; use --sampler=VALUE"),
        (["spec", "print"], "`soundomni spec print` needs a spec"),
        (["spec", "schema", "--sampler=x"], "`soundomni spec schema` does not read a spec; remove --sampler"),
        (["plugins", "list", "--model.codec=x"], "`soundomni plugins` does not read a spec; remove --model.codec"),
        (["plugins", "lst"], "the action is 'lst'; expected one of list, show, new. Did you mean 'list'?"),
        (["plugins", "show", "codek", "x"], "unknown kind of plugin 'codek'. Did you mean 'codec'?"),
        (["plugins", "show", "sampler", "eulr"], "unknown sampler 'eulr'. Did you mean 'euler'? Installed: "),
        (["plugins", "list", "a", "b"], "unexpected argument 'b'. See `soundomni plugins --help`"),
        (["--foo"], "unknown option '--foo'. See `soundomni --help`"),
        (["spec", "schema", "--out", "x"], "unknown option '--out'. See `soundomni spec schema --help`"),
        (["spec", "schema", "--config", "x"], "unknown option '--config'. See `soundomni spec schema --help`"),
        (["spec", "print", "demo", "--no-data"], "unknown option '--no-data'. Did you mean '--data'? See `soundomni spec print --help`"),
        (["plugins", "list", "--trian.steps"], "unknown option '--trian.steps'. See `soundomni plugins list --help`"),
        (["spec", "validat"], "the action is 'validat'; expected one of validate, print, schema. Did you mean 'validate'? See `"),
        (["plugins", "show"], "KIND and NAME are missing. See `soundomni plugins show --help`"),
        (["import", "stable-audio-vae"], "SRC and --out are missing. See `"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(run, arguments, expected):
    assert error_of(run(*arguments)).startswith(expected)


def test_errors_as_json(run):
    status, out, err = run("plugins", "show", "sampler", "eulr", "--json")
    assert status == 2 and json.loads(out)["error"].startswith("unknown sampler 'eulr'.")
    assert err.startswith("soundomni: error: unknown sampler")


def test_debug_shows_the_traceback_and_the_line(run):
    status, out, err = run("--debug", "plugins", "show", "sampler", "eulr")
    assert (status, out) == (2, "")
    assert "Traceback" in err and err.splitlines()[-1].startswith("soundomni: error: unknown sampler")


def test_overrides_are_taken_in_order_and_own_options_come_first():
    parser = Parser(prog="x")
    parser.add_argument("--guidance")
    parser.add_argument("--model")
    parser.add_argument("file")
    arguments = [
        "--model",
        "dir",
        "--sampler",
        "heun",
        "f",
        "--guidance.scale=2",
        "--guidance=3",
        "--train.optimizer.lr",
        "-1",
        "--",
        "--x.y",
    ]
    rest, overrides = split_overrides(arguments, parser)
    assert rest == ["--model", "dir", "f", "--guidance=3", "--", "--x.y"]
    assert overrides == [("sampler", "heun"), ("guidance.scale", "2"), ("train.optimizer.lr", "-1")]
    with pytest.raises(UsageError, match="unknown option '--mod'"):
        split_overrides(["--mod", "x"], parser)  # no abbreviations


def test_plugins_list_and_check(run, spec):
    status, out, err = run("plugins", "list", "codec", "--json")
    plugins = {entry["name"]: entry for entry in json.loads(out)["plugins"]}
    assert (status, err) == (0, "")
    assert plugins["tiny"] == {
        "kind": "codec",
        "name": "tiny",
        "distribution": "cli-codec",
        "version": "1.2.3",
        "target": "cli_codec:Tiny",
    }
    assert "lost" in plugins and "cli_codec" not in sys.modules
    status, out, _ = run("plugins", "list")
    assert status == 0
    assert ["sampler", "euler", "soundomni", __version__, "soundomni.flow.euler:EulerSampler"] in [
        line.split() for line in out.splitlines()
    ]
    status, out, _ = run("plugins", "list", "codec", "--check")
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert status == 1
    assert lines["tiny"].endswith(" ok") and "cannot be imported" in lines["lost"]


def test_plugins_show(run, spec):
    status, out, _ = run("plugins", "show", "codec", "tiny")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["codec", "tiny:", "cli_codec.Tiny"] and lines[1] == ["A", "codec", "of", "a", "third", "party."]
    assert ["frame_size", "int", "required", "samples", "per", "frame"] in lines and ["gain", "float", "1.0"] in lines
    _, out, _ = run("plugins", "show", "connector", "linear", "--json")
    assert json.loads(out)["runtime_args"] == ["tokens", "hidden_dim", "generates"]
    assert "cannot be imported" in error_of(run("plugins", "show", "codec", "lost"))


def test_plugins_show_describes_inherited_arguments(run):
    for kind, name in (("sampler", "heun"), ("objective", "x-prediction")):
        shown = json.loads(run("--json", "plugins", "show", kind, name)[1])["init_args"]
        assert len(shown) >= 2 and all(argument["description"] for argument in shown), name


def test_spec_validate(run, spec):
    status, out, err = run("spec", "validate", spec, "--sampler=heun")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["ok"] and ["sampler", "sampler", "heun"] in lines and ["model.codec", "codec", "tiny"] in lines
    result = json.loads(run("spec", "validate", "--config", spec, "--json")[1])
    assert result["ok"] is True and {"distribution": "cli-codec", "version": "1.2.3"} in result["lock"]
    assert error_of(run("spec", "validate", spec, "--model.codec.frame_size=x")).startswith("model.codec: codec 'tiny': frame_size is 'x'")


def test_spec_print_resolves_and_reads_back(run, spec, tmp_path):
    status, out, _ = run("spec", "print", spec, "--model.codec.frame_size", "8", "--guidance.scale", "2")
    assert status == 0
    again = tmp_path / "printed.yaml"
    again.write_text(out)
    assert run("spec", "print", str(again)) == (0, out, "")
    tree = json.loads(run("spec", "print", str(again), "--json")[1])
    assert tree["model"]["codec"] == {"class_path": "tiny", "init_args": {"frame_size": 8, "gain": 1.0}}
    assert tree["guidance"]["scale"] == 2.0


def test_spec_files_and_config_are_layers(run, spec, tmp_path):
    layer = tmp_path / "layer.yaml"
    layer.write_text("sampler: heun")
    for arguments in ([spec, str(layer)], [spec, "--config", str(layer)], ["--config", spec, "--config", str(layer)]):
        assert json.loads(run("spec", "print", *arguments, "--json")[1])["sampler"]["class_path"] == "heun"


def test_spec_schema(run):
    status, out, _ = run("spec", "schema")
    assert status == 0 and json.loads(out)["$defs"]["sampler"]


def test_class_paths_need_trust(run, spec):
    override = "--model.codec={class_path: cli_codec.Tiny, init_args: {frame_size: 1}}"
    assert "Use --trust-class-paths to allow import paths" in error_of(run("spec", "validate", spec, override))
    assert run("--trust-class-paths", "spec", "validate", spec, override)[0] == 0


COMMAND = """
import os
HELP = "a command that fails"
def configure(parser):
    parser.add_argument("how")
def run(args, overrides):
    if args.how == "interrupt":
        raise KeyboardInterrupt
    if args.how == "disk":
        raise OSError(28, "No space left on device", "run/model.safetensors")
    if args.how == "bug":
        raise RuntimeError("first line\\nsecond line")
    return int(args.how)
"""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A command beside the shipped ones that fails as asked."""
    import soundomni.cli

    (tmp_path / "fail.py").write_text(COMMAND)
    monkeypatch.setattr(soundomni.cli, "__path__", [*soundomni.cli.__path__, str(tmp_path)])
    monkeypatch.setitem(cli.COMMANDS, "fail", "a command that fails")
    yield
    sys.modules.pop("soundomni.cli.fail", None)


def test_failures_of_other_kinds(run, failing, monkeypatch):
    monkeypatch.setattr("soundomni.core.spec.culprit.loaded", dict)  # other tests of this process may have loaded plugins
    assert run("fail", "interrupt")[0] == 130
    assert error_of(run("fail", "disk")) == "[Errno 28] No space left on device: 'run/model.safetensors'"
    status, out, err = run("fail", "bug")
    assert (status, out) == (1, "")
    assert err == "soundomni: internal error: RuntimeError: first line second line (run with --debug for the traceback)\n"
    status, _, err = run("fail", "bug", "--debug")
    assert status == 1 and "Traceback" in err and "run with --debug" not in err
    assert run("fail", "3")[0] == 3


def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "soundomni.cli.main", "plugins", "list"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">/dev/full", ">&-"])
def test_a_mistake_keeps_its_status_where_nothing_can_be_written(redirection):
    command = f"{sys.executable} -m soundomni.cli.main plugins show codec mdtc --json {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_what_stdout_cannot_encode_is_escaped():
    command = [sys.executable, "-m", "soundomni.cli.main", "plugins", "show", "codec", "m\u00e9"]
    done = subprocess.run([*command, "--json"], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"})
    assert done.returncode == 2 and b"m\\xe9" in done.stdout


def test_tables_and_json():
    assert table(["a", "long"], [["xyz", 1]]) == "a    long\nxyz  1"
    assert table(["a"], []) == "a"
    assert json.loads(to_json({"x": float("nan"), "y": [float("inf"), 1.5], "z": True})) == {"x": None, "y": [None, 1.5], "z": True}
