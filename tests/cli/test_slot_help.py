"""`--KEY.help NAME` shows a plugin's arguments as options, and --print-config what a command line would train."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from soundomni.cli import main as cli

COUNTER = '''
from typing import Any
from soundomni.core.interfaces import Tracker

class Counter(Tracker):
    """Counts 100% of the steps."""
    def __init__(self, *, run_dir: Any, spec: Any, every: int, label: str | None = None) -> None:
        pass
    def log(self, step, metrics): ...
'''


@pytest.fixture
def run(capsys):
    """Returns a function that runs a command and returns (status, stdout in one line, stderr)."""

    def command(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        return status, " ".join(out.split()), err

    return command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["train", "--model.codec.help", "mdct"],
            ["train ... --model.codec=mdct [--model.codec.ARGUMENT=VALUE ...]", "--model.codec.frame_size"],
        ),
        (["train", "--config", "absent.yaml", "--sampler.help=heun"], ["--sampler.num_steps VALUE number of steps (int; default: 50)"]),
        (["spec", "print", "nano", "--model.connectors.latent.help", "mlp"], ["--model.connectors.latent.multiple"]),
        (["doctor", "--train.optimizer.rule.help", "muon"], ["arguments of optimizer 'muon'"]),
        (["train", "--data.datasets.mine.source.help", "audio-folder"], ["--data.datasets.mine.source.path VALUE"]),
        (["train", "--model.router.help", "dense"], ["usage: soundomni train ... --model.router=dense Sends", "It does not have any."]),
        (["train", "--sampler=heun", "--sampler", "euler", "--sampler.help"], ["arguments of sampler 'euler'"]),
        (["train", "--sampler={class_path: heun, init_args: {num_steps: 2}}", "--sampler.help"], ["arguments of sampler 'heun'"]),
        (["train", "--sampler.class_path=heun", "--sampler.help"], ["arguments of sampler 'heun'"]),
        (["train", "--config", "demo", "--model.codec.help"], ["arguments of codec 'mdct-shape-gain'"]),
        (["train", "--config=demo", "--data.datasets.toys.source.help"], ["arguments of dataset 'toy-sounds'"]),
        (["train", "--config", "demo", "--sampler=rk4", "--sampler.help"], ["arguments of sampler 'rk4'"]),
        (["train", "--config", "demo", "--model.encoder=null", "--train.trackers.help"], ["Installed: tensorboard, wandb"]),
        (
            ["train", "--sampler.help"],
            ["`--sampler.help NAME` shows the arguments of a sampler. Installed: ddim, ddim-cfgpp, dpmpp, dpmpp-2m,"],
        ),
        (
            ["train", "--model.codec.help", "mdct-shape-gain"],
            ["--model.codec.window VALUE as in MDCTCodec (one of sine, kbd;"],
        ),
    ],
)
def test_a_plugin_is_explained_where_it_is_chosen(run, arguments, expected):
    status, out, err = run(*arguments)
    assert (status, err) == (0, "") and all(text in out for text in expected), out


def test_plugins_of_a_list_are_explained_as_they_are_written(run, install):
    install("cli-counter", groups={"soundomni.trackers": {"counter": "cli_counter:Counter"}}, modules={"cli_counter": COUNTER})
    status, out, _ = run("train", "--train.trackers.help", "counter")
    assert status == 0 and "'--train.trackers=[{class_path: counter, init_args: {ARGUMENT: VALUE}}]'" in out
    assert "Counts 100% of the steps." in out and "every (int; required)" in out and "label (str or null; default: None)" in out


def test_help_is_data_with_json(run):
    assert json.loads(run("train", "--json", "--sampler.help", "heun")[1])["init_args"][0]["name"] == "num_steps"
    assert "heun" in json.loads(run("train", "--json", "--sampler.help")[1])["names"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--model.codec.help", "mdtc"], "unknown codec 'mdtc'. Did you mean 'mdct'?"),
        (
            ["train", "--model.codek.help", "mdct"],
            "--model.codek.help: 'model.codek' does not take a plugin; expected one of model.backbone, ",
        ),
        (["train", "--train.optimizer.help"], "data.datasets.NAME.source. Did you mean 'train.optimizer.rule'?"),
        (["train", "--data.datasets.help", "x"], "'data.datasets' does not take a plugin; expected one of"),
        (["spec", "print", "nano", "--sampler.init_args.help=3"], "sampler: sampler 'euler' has no argument 'help'."),
        (
            ["train", "--config", "absent.yaml", "--sampler.help"],
            "there is no spec 'absent.yaml': it is neither a file nor a shipped spec.",
        ),
        (["plugins", "list", "--modle.codec.help"], "unknown option '--modle.codec.help'."),
        (
            ["generate", "--print_config"],
            "`soundomni generate` does not take --print_config. Use `soundomni spec print` with the same spec",
        ),
        (["doctor", "--print-config=x"], "`soundomni doctor` does not take --print-config."),
    ],
)
def test_mistakes_end_in_one_line(run, arguments, expected):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and err.count("\n") == 1 and expected in err


@pytest.mark.parametrize("option", ["--print-config", "--print_config"])
def test_train_prints_its_spec_and_trains_nothing(capsys, tmp_path, option):
    line = ["--config", "nano", "--sampler=heun", f"--train.run_dir={tmp_path / 'run'}"]
    assert cli.main(["train", *line, option]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["spec", "print", *line]) == 0
    assert capsys.readouterr().out == printed and "class_path: heun" in printed
    assert not (tmp_path / "run").exists()


def test_names_are_listed_without_torch():
    script = "import sys\nfrom soundomni.cli.main import main\nassert main(['train', '--sampler.help']) == 0\n"
    script += "sys.exit(bool({'torch', 'numpy', 'jsonargparse'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL).returncode == 0
