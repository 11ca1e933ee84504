"""The acme-plugin example as a user meets it: installed into an environment of its own, found, tested, trained with and heard."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parents[2]

SPEC = """
model:
  backbone: {class_path: mot, init_args: {hidden_dim: 32, num_layers: 2, num_heads: 2}}
  router: modality
  codec: mdct
  encoder: {class_path: log-mel, init_args: {sample_rate: 8000, n_fft: 128, hop_length: 100, num_mels: 16, feature_dim: 16}}
  connectors: {latent: linear, features: linear}
  objective: flow-matching
  tokenizer: {vocab_size: 300}
  normalize: global
data:
  datasets:
    toys:
      source: {class_path: toy-sounds, init_args: {size: 60, sample_rate: 8000, seconds: 0.5, events: [1, 1]}}
      tasks: {generate: 1.0, describe: 1.0}
  tokens_per_batch: 256
train: {run_dir: run, steps: 2, log_every: 1, threads: 1}
"""

SWAPS = [
    "--model.codec={class_path: acme-fold, init_args: {sample_rate: 8000}}",
    "--sampler={class_path: acme-ralston, init_args: {num_steps: 2}}",
    "--model.router=acme-split",
]


class Environment:
    """A virtual environment that also sees the packages of this one, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        purelib = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        # Adding it as a site folder reads the .pth files there too, by which an editable install of SoundOmni is found.
        (Path(purelib) / "parent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    def run(self, *arguments: object) -> str:
        """Runs its Python in the work folder and returns what was printed; a failure shows what was said."""
        settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [self.python, *map(str, arguments)], cwd=self.work, env=settings, capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 0, f"{arguments} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def soundomni(self, *arguments: object) -> str:
        """Runs a command of SoundOmni."""
        return self.run("-m", "soundomni", *arguments)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the example installed from a copy of it, for building leaves files behind; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("acme")
    source = shutil.copytree(ROOT / "examples" / "acme-plugin", folder / "acme-plugin")
    made = Environment(folder)
    made.run("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", source)
    return made


@pytest.mark.long
def test_the_three_plugins_are_registered_by_their_own_distribution(environment: Environment) -> None:
    rows = json.loads(environment.soundomni("--json", "plugins", "list", "--check"))["plugins"]
    acme = {(row["kind"], row["name"]): row for row in rows if row["distribution"] == "acme-sounds"}
    assert set(acme) == {("codec", "acme-fold"), ("sampler", "acme-ralston"), ("router", "acme-split")}
    assert all(row["error"] is None and row["version"] == "0.1.0" for row in acme.values())
    assert any(row["distribution"] == "soundomni" for row in rows)
    where = environment.run("-c", "import acme_sounds; print(acme_sounds.__file__)")
    assert where.startswith(str(environment.python.parents[1])), "imported from the environment, not from the checkout"


@pytest.mark.long
def test_its_own_tests_pass(environment: Environment) -> None:
    tests = shutil.copytree(ROOT / "examples" / "acme-plugin" / "tests", environment.work / "tests")
    said = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", tests)
    assert " passed" in said and "failed" not in said


@pytest.mark.long
def test_a_model_of_the_three_trains_exports_and_generates(environment: Environment) -> None:
    (environment.work / "spec.yaml").write_text(SPEC)
    environment.soundomni("train", "--config", "spec.yaml", *SWAPS)
    losses = [json.loads(line)["loss"] for line in (environment.work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    environment.soundomni("export", "run", "--out", "model")
    environment.soundomni("generate", "--model", "model", "--prompt", "a beep", "--seconds", "0.25", "--out", "sounds")
    (made,) = (environment.work / "sounds").glob("*.wav")
    assert (soundfile.info(made).samplerate, soundfile.info(made).frames) == (8000, 2000)
    used = (environment.work / "model" / "spec.yaml").read_text()
    assert all(name in used for name in ("acme-fold", "acme-ralston", "acme-split"))
