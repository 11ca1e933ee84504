"""The script of `soundomni completion` completes what the command line takes, in bash itself."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from soundomni.cli import completion
from soundomni.cli import main as cli
from soundomni.core.spec import registry

BASH = shutil.which("bash")

CODE_SAMPLERS = {"maskgit", "maskgit-critic", "next-token", "speculative"}
DIFFUSION_SAMPLERS = {"ddim", "ddim-cfgpp", "dpmpp-2m", "dpmpp-2m-sde", "dpmpp-3m-sde", "pingpong"}
SAMPLERS = {"dpmpp", "euler", "heun", "midpoint", "rk4", *CODE_SAMPLERS, *DIFFUSION_SAMPLERS}
CASES = {
    "soundomni tr|": {"train"},
    "soundomni |": set(cli.COMMANDS),
    "soundomni --json pl|": {"plugins"},
    "soundomni plugins |": {"list", "show", "new"},
    "soundomni plugins sh|": {"show"},
    "soundomni plugins show |": set(registry.KINDS),
    "soundomni plugins show sampler |": SAMPLERS,
    "soundomni plugins show codec mdct-|": {"mdct-shape-gain"},
    "soundomni plugins list --check rou|": {"router"},
    "soundomni train --exi|": {"--existing"},
    "soundomni train --existing |": {"resume", "refuse", "overwrite"},
    "soundomni train --existing = re|": {"resume", "refuse"},
    "soundomni train --existing=ov|": {"--existing=overwrite"},
    "soundomni train --config na|": {"nano", "nano-codes"},
    "soundomni train --config nano --sampler |": SAMPLERS,
    "soundomni train --sampler = he|": {"heun"},
    "soundomni train --sampler=|": {f"--sampler={name}" for name in SAMPLERS},
    "soundomni train --sampler = |": SAMPLERS,
    "soundomni train --model.co|": {"--model.codec", "--model.codec.", "--model.connectors."},
    "soundomni train --model.connectors.|": {"--model.connectors.latent", "--model.connectors.features"}
    | {"--model.connectors.latent.", "--model.connectors.features."},
    "soundomni train --model.codec.|": {"--model.codec.help"},
    "soundomni train --model.codec.help md|": {"mdct", "mdct-shape-gain"},
    "soundomni spec print demo --model.normalize g|": {"global"},
    "soundomni spec print --train.compile |": {"true", "false"},
    "soundomni spec validate soundo|": {"soundomni-7b", "soundomni-7b-full"},
    "soundomni spec validate demo na|": {"nano", "nano-codes"},
    "soundomni generate --model |": {"nano", "nano-codes"},
    "soundomni generate --model nano --no-p|": {"--no-pictures"},
    "soundomni export na|": {"nano", "nano-codes"},
    "soundomni export run --format st|": {"stable-audio-vae", "stable-audio-tools", "stable-audio-3"},
    "soundomni import |": {
        "stable-audio",
        "stable-audio-vae",
        "same",
        "stable-audio-lora",
        "sat-config",
        "dac",
        "encodec",
        "mimi",
        "hubert-kmeans",
        "qwen2-audio",
        "bagel",
        "soundomni",
    },
    "soundomni import bagel --ll|": {"--llm"},
    "soundomni plugins --mod|": set(),
    "soundomni plugins list --sam|": set(),
    "soundomni spec schema --sam|": set(),
    "soundomni import stable-audio-vae x --sam|": set(),
    "soundomni import bagel --sam|": {"--sampler", "--sampler."},
    "soundomni import soundomni x --model.normalize g|": {"global"},
    "soundomni train --model.codec mdct --model.encoder lo|": {"log-mel", "lookup"},
    "soundomni train --train.steps |": set(),
    "soundomni completion |": {"bash", "zsh"},
}
"""A line, with the cursor where `|` is and words as bash splits them, and what is offered there."""


def offered(script: str, lines: list[str], folder: Path) -> list[set[str]]:
    """Returns what the script offers for each line, in one bash."""
    (folder / "completion.bash").write_text(script, encoding="utf-8")
    calls = ["source completion.bash"]
    for line in lines:
        words = line.removesuffix("|").split(" ")
        calls.append(f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; COMPREPLY=()")
        calls.append('_soundomni && echo "${COMPREPLY[*]}"')
    assert BASH is not None
    done = subprocess.run([BASH, "--norc", "-c", "\n".join(calls)], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [set(line.split()) for line in done.stdout.split("\n")[:-1]]


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_offers_what_the_command_line_takes(tmp_path: Path) -> None:
    found = offered(completion.script("bash"), list(CASES), tmp_path)
    assert dict(zip(CASES, found, strict=True)) == CASES


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_options_keys_and_plugins_are_all_there(tmp_path: Path, install: object) -> None:
    points = {"soundomni.codecs": {"acme-fold": "acme_fold:Fold", "$(touch x)": "acme_fold:Fold", "a;b": "acme_fold:Fold"}}
    install("acme-fold", groups=points, modules={"acme_fold": "raise RuntimeError('it was imported')"})  # type: ignore[operator]
    codecs, options, roots = offered(
        completion.script("bash"), ["soundomni train --model.codec |", "soundomni train --|", "soundomni plugins list --|"], tmp_path
    )
    assert "acme-fold" in codecs and not any(set(name) & set("$;") for name in codecs)
    assert {"--config", "--existing", "--print-config", "--json", "--help", "--model.", "--train.", "--data.", "--sampler"} <= options
    assert roots == {"--check", "--json", "--debug", "--help", "--trust-class-paths"}
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize(("words", "expected"), [("train --sampler=he", "--sampler=heun"), ("plugins show router t", "top-k")])
def test_zsh_offers_the_same(tmp_path: Path, words: str, expected: str) -> None:
    functions, start = completion.script("zsh").rsplit("\n\n", 1)
    assert "compdef" in start
    count = len(words.split())
    call = f"emulate sh; COMP_WORDS=(soundomni {words}); COMP_CWORD={count}; _soundomni; echo ${{COMPREPLY[*]}}"  # as bashcompinit calls it
    done = subprocess.run(["zsh", "-f", "-c", f"{functions}\n{call}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fish"]) == 2
    assert "SHELL is 'fish'; expected one of bash, zsh" in capsys.readouterr().err
    assert cli.main(["completion", "bash", "--sampler=heun"]) == 2
    assert "`soundomni completion` does not read a spec" in capsys.readouterr().err


def test_the_script_is_made_without_anything_heavy() -> None:
    code = "import sys\nfrom soundomni.cli.main import main\nassert main(['completion', 'zsh']) == 0\n"
    code += "sys.exit(bool({'torch', 'numpy', 'jsonargparse', 'soundfile', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
