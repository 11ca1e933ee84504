"""Training: one loop for any module, sharded over any number of processes, and whole runs from a spec."""

from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.ema import EMA
from soundomni.train.learning_rate import learning_rate
from soundomni.train.loop import Hooks, Progress, fit
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.parallel import World, open_world, parallelize
from soundomni.train.run import RunResult, run_training
from soundomni.train.signals import STOPPED_STATUS, StopRequest
from soundomni.train.state import RunState, load_trained_weights
from soundomni.train.trainable import Batch, Step, Trainable

__all__ = [
    "EMA",
    "STOPPED_STATUS",
    "Batch",
    "Checkpointer",
    "Hooks",
    "Progress",
    "RunResult",
    "RunState",
    "Step",
    "StopRequest",
    "Trainable",
    "World",
    "build_optimizer",
    "find_latest",
    "fit",
    "learning_rate",
    "load_trained_weights",
    "open_world",
    "parallelize",
    "run_training",
]
