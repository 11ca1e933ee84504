"""Drive 20 runs that train a codec to failure on purpose: `python tools/diverge_codecs.py [--only PATTERN]`.

Each run first trains well and saves. Then it continues with one thing that is wrong: a learning rate 100 times too high, data that kill a
codebook, samples that are not numbers, a critic that explodes. It must end in one line that names what failed, and the checkpoint that
the line names, or else the newest one, must load with finite weights. A table is printed; the exit status is 1 if a run misbehaves.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soundomni.core.errors import SoundOmniError
from soundomni.core.interfaces import Critic, LossTerms
from soundomni.core.spec.load import load_spec
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.train.checkpoint import list_checkpoints
from soundomni.train.export import load_run_codec
from soundomni.train.run import run_training

GOOD_STEPS = 12
OOBLECK = "{class_path: oobleck, init_args: {sample_rate: 8000, channels: 1, base_channels: 4, channel_multiples: [1, 2], \
strides: [4, 4], latent_dim: 4}}"
SOUNDSTREAM = "{class_path: soundstream, init_args: {sample_rate: 8000, base_channels: 4, channel_multiples: [2, 4], strides: [4, 4], \
latent_dim: 16, warmup_steps: 4, quantizer: {method: METHOD, num_levels: 3, codebook_size: 64, decay: 0.5DEAD}}}"
SPEC = """
codec:
  codec: CODEC
  critics:
    l1: l1
    mel: {class_path: multi-mel, init_args: {windows: [64, 256], num_mels: [20]}}
    waves: {class_path: multi-scale-waveform, init_args: {num_scales: 1, widths: [8, 16, 16]}}
    loud: __main__.Loud
data:
  datasets: {toys: {source: {class_path: __main__.Clips, init_args: {size: 4096, seconds: 0.4, events: [1, 1]}}}}
  tokens_per_batch: 832
  workers: 1
train:
  run_dir: RUN
  steps: 200
  optimizer: {lr: 1.0e-3, eps: 1.0e-8}
  phases: {critics: {optimizer: {lr: 1.0e-3, eps: 1.0e-8}}}
  loss_weights: {l1: 10.0, waves.adversarial: 0.1, loud.adversarial: 0.0}
  schedule: {warmup_steps: 0}
  ema_decay: 0.9
  log_every: 1
  save_every: 4
  threads: 1
"""


class Clips(ToySounds):
    """Toy sounds, of which every clip of one kind may be broken."""

    broken = ""

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return the clip, or what `broken` says."""
        waveform, rate = super().load(index)
        if self.broken in ("nan", "inf"):
            waveform = np.full_like(waveform, float(self.broken))
        elif self.broken == "same":
            waveform = super().load(0)[0]
        elif self.broken == "silence":
            waveform = np.zeros_like(waveform)
        return waveform, rate


class Loud(Critic):
    """A critic of one number, which may grow without bounds."""

    judged, learned = ("adversarial",), ("hinge",)
    growth = 1.0

    def __init__(self, *, sample_rate: int, channels: int) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))
        self.register_buffer("factor", torch.tensor(1.0))

    def judge(self, target: Tensor, estimate: Tensor) -> LossTerms:
        """Return the mean of the estimate, scaled."""
        return {"adversarial": (-(self.scale * self.factor * estimate).sum(), torch.tensor(float(len(estimate))))}

    def learn(self, target: Tensor, estimate: Tensor, generators: Sequence[torch.Generator]) -> LossTerms:
        """Return a hinge loss."""
        self.factor.mul_(self.growth)
        real, made = (self.scale * self.factor * clips.square().mean((1, 2)) for clips in (target, estimate))
        return {"hinge": ((1 - real).clamp(min=0).sum() + (1 + made).clamp(min=0).sum(), torch.tensor(float(len(target))))}


@dataclass(frozen=True)
class Case:
    """A run.

    Args:
        name: what is wrong.
        expected: pattern of the line that ends it.
        changes: keys of the spec that are wrong.
        broken: what is wrong with the clips.
        growth: factor by which the critic `loud` grows in each step.
        codec: the codec.
        is_loud: whether the critic `loud` takes part.
    """

    name: str
    expected: str
    changes: tuple[tuple[str, str], ...] = ()
    broken: str = ""
    growth: float = 1.0
    codec: str = OOBLECK
    is_loud: bool = True


NOT_FINITE = r"10 steps in a row were not finite"
WORSE = r"(times what it was at first|root mean square of the latents|codes of level \d are in use|not finite|has exploded)"
EMA = SOUNDSTREAM.replace("METHOD", "ema").replace("DEAD", ", dead_code_share: 0.0")
LARGE = EMA.replace("codebook_size: 64", "codebook_size: 1024")
GRADIENT = SOUNDSTREAM.replace("METHOD", "gradient").replace("DEAD", "")


def rate(value: float, *phases: str) -> tuple[tuple[str, str], ...]:
    """Return learning rates without clipping."""
    keys = [f"train.phases.{phase}.optimizer" if phase else "train.optimizer" for phase in phases or ("",)]
    return tuple((f"{key}.{name}", str(number)) for key in keys for name, number in (("lr", value), ("clip", 0.0)))


CASES = (
    *(Case(f"learning rate × {factor}, oobleck", WORSE, rate(factor * 1e-3)) for factor in (200, 300, 1000, 10000)),
    *(Case(f"learning rate × {factor}, soundstream", WORSE, rate(factor * 1e-3), codec=GRADIENT) for factor in (100, 1000)),
    Case("learning rate × 1000, soundstream of averages", WORSE, rate(1.0), codec=EMA),
    *(
        Case(
            f"critics' learning rate × {factor}", r"the critic 'waves'|the critic 'loud'|times what it was", rate(factor * 1e-3, "critics")
        )
        for factor in (10000, 30000, 100000)
    ),
    Case("both learning rates × 1000", r"the critic '|times what it was|not finite|latents", rate(1.0, "", "critics")),
    *(
        Case(f"samples that are {kind}, {name}", NOT_FINITE, broken=kind, codec=codec)
        for kind in ("nan", "inf")
        for name, codec in (("oobleck", OOBLECK), ("soundstream", EMA))
    ),
    Case("the same clip again and again", r"codes of level \d are in use", broken="same", codec=LARGE, is_loud=False),
    Case("silence only", r"codes of level \d are in use", broken="silence", codec=LARGE, is_loud=False),
    Case("a critic that doubles in every step", r"the critic 'loud' has exploded", growth=2.0),
    Case("a critic that grows tenfold in every step", r"the critic '(loud)' has exploded|not finite", growth=10.0),
    Case("a critic that shrinks to nothing", r"the critic 'loud' has collapsed: loud.hinge is always", growth=0.01),
)


def run(case: Case) -> tuple[bool, str]:
    """Run a case. Return whether it ended as it must, and its line."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, path = Path(folder) / "run", Path(folder) / "spec.yaml"
        spec = SPEC if case.is_loud else SPEC.replace("    loud: __main__.Loud\n", "").replace(", loud.adversarial: 0.0", "")
        path.write_text(spec.replace("CODEC", case.codec).replace("RUN", str(run_dir)))
        Clips.broken, Loud.growth = "", 1.0
        good = load_spec([path], [("train.steps", str(GOOD_STEPS))], trust_class_paths=True)
        run_training(good, trust_class_paths=True)
        Clips.broken, Loud.growth = case.broken, case.growth
        bad = load_spec([path], case.changes, trust_class_paths=True)
        try:
            run_training(bad, trust_class_paths=True, allow_change=["train.optimizer", "train.phases"])
            return False, "it finished"
        except SoundOmniError as error:
            line = str(error)
        named = re.search(r"--from-step (\d+)$", line)
        newest = list_checkpoints(run_dir / "checkpoints")[0]
        step = int(named[1]) if named else int(newest.name.removeprefix("step-"))
        found = load_run_codec(run_dir, step=step, trust_class_paths=True)
        loads = found is not None and all(p.isfinite().all() for p in found[1].parameters())
        return loads and "\n" not in line and re.search(case.expected, line) is not None, f"{line} [loads {step}]"


def main() -> int:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="only cases whose name matches")
    pattern = parser.parse_args().only
    wrong = 0
    for case in CASES:
        if re.search(pattern, case.name):
            right, line = run(case)
            wrong += not right
            print(f"{'ok   ' if right else 'WRONG'} {case.name}: {line}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
