"""The contracts of the plugin kinds.

A plugin is a class registered under an entry-point group of its kind. Its constructor takes typed arguments, given by name. What
the assembly passes (the runtime arguments listed at each contract) can't be set in a spec, and nothing else is passed by the assembly.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, K codebooks, T frames, F feature dimensions, N tokens,
H hidden dimensions, V vocabulary, E expert streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.core.representation import FeatureSpec, Representation, RepresentationSpec
from soundomni.core.sequence import Role

if TYPE_CHECKING:
    from soundomni.core.attention.layout import Layout
    from soundomni.core.spec.schema import OptimizerSpec

LossTerms = dict[str, tuple[Tensor, Tensor]]
"""Name of a loss → (sum over its elements, number of its elements), so that ranks and micro-batches add up exactly."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""(values `[B, D, T]`, timesteps `[B]`) → prediction of the same shape as the target."""


@dataclass(frozen=True)
class ReceptiveField:
    """How far a codec looks, in frames on either side.

    A frame has its own `downsampling_ratio` samples and, with E extra frames of the spec, those of the E frames before it; so decoded
    samples have their own frame and the E frames after it. Counted is what is looked at beyond those, on the side where it is more.

    Args:
        encode: frames whose samples `encode` looks at.
        decode: frames that `decode` looks at.
    """

    encode: int
    decode: int


class Codec(nn.Module, ABC):
    """Waveform to representation and back. Group `soundomni.codecs`; no runtime arguments.

    `spec` must be known from the constructor's arguments alone. An argument named `weights` is a file to start from; a saved model
    holds the weights itself and leaves that argument out. Encoding treats each clip of a batch alone, is random only where
    generators are given, and never depends on `self.training`.
    """

    @property
    @abstractmethod
    def spec(self) -> RepresentationSpec:
        """Rate, channels, ratio and dimensions of what `encode` returns."""

    @abstractmethod
    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]` at `spec.sample_rate`, clips of `lengths` `[B]` samples, into `spec.num_frames(length)` frames each.

        What `waveform` holds beyond the length of a clip does not matter. A codec with a random encoding draws that of clip b from
        `generators[b]`, and returns its mean without generators.
        """

    @abstractmethod
    def decode(self, representation: Representation) -> Tensor:
        """Decode to `[B, C, S]`, with S at least `spec.num_samples(T)`; the caller cuts to the length it wants."""

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """How far `encode` and `decode` look, so that long clips can be cut (see assembly/chunked.py); None takes clips whole."""
        return None

    def training_losses(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator]) -> LossTerms:
        """Losses of the codec's own training. A codec without trainable parameters keeps this default, which raises TypeError."""
        raise TypeError(f"{type(self).__name__} has nothing to train")


class Encoder(nn.Module, ABC):
    """Waveform to features for understanding. Group `soundomni.encoders`; no runtime arguments."""

    @property
    @abstractmethod
    def spec(self) -> FeatureSpec:
        """Rate and dimension, known without weights."""

    @abstractmethod
    def num_tokens(self, num_samples: int) -> int:
        """Return T for a clip of `num_samples` samples at `spec.sample_rate`; at least 1."""

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, clips of `lengths` `[B]` samples, into `[B, T, F]`; clip b has `num_tokens(lengths[b])` valid rows.

        What `waveform` holds beyond the length of a clip does not matter.
        """


class Connector(nn.Module, ABC):
    """Carries tokens into the hidden space and back. Group `soundomni.connectors`.

    Runtime arguments: `token_dim` (D or F), `hidden_dim` (H), and `generates` (whether `leave` is used; tokens then also carry a
    timestep and their place in the clip).
    """

    @property
    def max_frames(self) -> int | None:
        """The longest clip whose frames it tells apart; None for any."""
        return None

    @abstractmethod
    def enter(self, tokens: Tensor, *, timesteps: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Map `[N, token_dim]` to `[N, H]`; with `generates`, `timesteps` `[N]` in [0, 1] and `frames` `[N]`, the index within the clip."""

    @abstractmethod
    def leave(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to `[N, token_dim]`, the prediction. Zero at the start of training."""


class Router(ABC):
    """Sends tokens to experts. Group `soundomni.routers`; no runtime arguments.

    A router decides two things: which expert stream a role belongs to, which is fixed, so that routing is a slice; and how the
    feed-forward network of a stream is built, which may route again by hidden state. `loss_names` names the auxiliary loss that
    such networks add, one at most.
    """

    loss_names: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def streams(self) -> tuple[str, ...]:
        """Names of the expert streams, the first being the one that holds text."""

    @abstractmethod
    def stream_of(self, role: Role) -> int:
        """Return the index of the stream that tokens of this role run through."""

    def feed_forward(self, build: Callable[[], nn.Module], hidden_dim: int) -> nn.Module:
        """Build one layer's feed-forward network of one stream; `build()` makes a plain one, `[N, H]` → `[N, H]`.

        A module returned from here may return `(output, (loss sum, count))` to add an auxiliary loss.
        """
        return build()


class Backbone(nn.Module, ABC):
    """The language model over expert streams. Group `soundomni.backbones`.

    Runtime arguments: `vocab_size` and `router`.
    """

    hidden_dim: int
    num_kv_heads: int
    head_dim: int

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The repeated layers: the units of sharding, activation checkpointing and compilation."""

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """Map `[N]` int64 to `[N, H]`."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to logits `[N, V]`."""

    @abstractmethod
    def forward(self, streams: Sequence[Tensor], layout: Layout) -> tuple[list[Tensor], LossTerms]:
        """Map E streams `[N_e, H]` in stored order to the same after all layers and the final norm, and auxiliary losses.

        Layer i attends by `layout.attend(i, query, key, value)`, which goes through the cache when there is one, and takes positions
        from `layout.position_ids`. The loss that the router's networks add is returned, summed over them, by its name in
        `router.loss_names`.
        """

    def expert_parameters(self, stream: str) -> Iterable[nn.Parameter]:
        """Parameters that only tokens of this stream use, for freezing one expert and for counting. None by default."""
        return ()


@dataclass(frozen=True)
class Query:
    """What an objective asks the model.

    Args:
        inputs: corrupted values, same shape as the representation's.
        timesteps: `[B, T]` in [0, 1]; 1 is all noise, 0 is clean.
        targets: what to predict, same shape as the prediction.
        loss_mask: bool `[B, T]`, frames that count.
    """

    inputs: Tensor
    timesteps: Tensor
    targets: Tensor
    loss_mask: Tensor


class Objective(nn.Module, ABC):
    """Corrupts a representation and measures the prediction. Group `soundomni.objectives`; no runtime arguments.

    No state between calls. `loss_names` names what `loss` returns; each is counted in frames of noise segments that are not known,
    so that ranks can weigh them before anything is computed.

    Samplers follow the prediction from timestep 1 to 0. It must be the velocity of the objective's own path, d noised / dt: `corrupt`
    makes what `noised` makes of standard normal noise, and `loss` is lowest for that velocity.
    """

    loss_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def corrupt(self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Query:
        """Corrupts clips with `noise` `[B]` set, except their `known` `[B, T]` frames; the others stay clean at timestep 0.

        Each clip draws from its own generator only, so that its corruption does not depend on the batch around it.
        """

    def predicted(self, output: Tensor, inputs: Tensor, timesteps: Tensor) -> Tensor:
        """Return the prediction that `loss` and samplers take, made of the network's `output`; the output itself unless overridden.

        Args:
            output, inputs: `[B, D, T]`, what came out of the network and what it was shown.
            timesteps: `[B, T]`.
        """
        return output

    @abstractmethod
    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return (sum, count) of each loss over the frames of `query.loss_mask`."""

    @abstractmethod
    def noised(self, clean: Tensor, start: Tensor, timestep: float) -> Tensor:
        """Return values `[B, D, T]` on the way from clean ones to `start`, what sampling starts from: 0 gives `clean`, 1 gives `start`.

        It is what `corrupt` makes at that timestep of that noise. Varying a clip begins there instead of at timestep 1.
        """


class Sampler(ABC):
    """Turns noise into values by asking for predictions. Group `soundomni.samplers`; no runtime arguments; no state between calls."""

    num_steps: int

    @property
    @abstractmethod
    def num_evaluations(self) -> int:
        """How often one call of `sample` asks for a prediction."""

    @abstractmethod
    def sample(
        self,
        predict: Predict,
        start: Tensor,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Start from values `[B, D, T]` at the timestep `begin`, which are noise at 1, and return values of that shape at timestep 0.

        It takes `num_steps` steps wherever it begins, and asks for predictions at timesteps above 0 alone: at 0 nothing is left to
        predict, and a model takes what it is given there for known. `on_step(index, values)` is called after each step. A stochastic
        sampler draws for clip b from `generators[b]` only.
        """


@dataclass(frozen=True, kw_only=True)
class Item:
    """One clip of a dataset, as far as it is known without decoding it.

    Args:
        key: names the clip: a path, or a recipe; unique within the dataset.
        num_samples: length at `sample_rate`.
        sample_rate: of the file, in Hz.
        captions: what the clip may be called; empty when it has no caption.
        questions: (question, answer) pairs about it.
        attributes: anything else that is known, for evaluation.
    """

    key: str
    num_samples: int
    sample_rate: int
    captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """An item that cannot be used.

    Args:
        key: names it.
        reason: why, in one line.
        kind: "unreadable" when it is there but cannot be read, the only kind that counts against data.skip_limit; "missing" when
            it is named but not there; "no caption"; "unsuitable" for anything else, such as a clip that is too long.
        group: what it shares with others, in words that follow a number: "longer than 5 s for describe"; by default those of its kind.
    """

    key: str
    reason: str
    kind: Literal["unreadable", "missing", "no caption", "unsuitable"] = "unreadable"
    group: str = ""


class Dataset(ABC):
    """Clips by index. Group `soundomni.datasets`; no runtime arguments.

    `item` is cheap and decodes nothing, so that packing can run ahead of reading and is the same on every rank. `skipped` names
    what was found unusable while listing.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """Return what is known of item `index`."""

    @abstractmethod
    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return the waveform, float32 `[C, S]` in [-1, 1], and its sample rate. Raise UnreadableAudioError."""

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return samples `[first, first + num_samples)` of what `load` returns, and the rate. Raise UnreadableAudioError.

        Used for clips of which training takes a part. By default all of the clip is loaded and then cut; a dataset that can decode
        only the part saves the time and the memory of the rest.
        """
        waveform, rate = self.load(index)
        return waveform[:, first : first + num_samples].copy(), rate  # a view would keep all of the clip in memory

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Items found unusable while listing."""
        return ()

    @property
    def generated_from(self) -> str | None:
        """What all items are computed from, for a dataset that computes them when they are asked for; None for one that lists them.

        A run tells by it that it goes on with the same data, where it would otherwise look at every item.
        """
        return None


class Tracker(ABC):
    """Receives what a run measures and makes. Group `soundomni.trackers`; runtime arguments: `run_dir` and `spec` (the resolved spec).

    A tracker whose constructor or `begin` fails stops the run before its first step. From then on a tracker never ends a run: one that
    raises anything in another method is named in a warning, closed, and left out until the run is resumed.
    """

    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of the files that it writes, relative to the run directory: they are removed when the run is overwritten."""

    def begin(self, step: int) -> None:
        """Is called once, before anything is recorded, with the number of finished steps: 0 for a new run.

        Whatever an earlier tracker of this run directory recorded of later steps belongs to an attempt that was lost.
        """

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record scalar metrics at an optimizer step."""

    def log_files(self, step: int, files: Sequence[Path]) -> None:
        """Record WAV and PNG files made at this step. Ignored by default: the files stay in the run directory."""

    def close(self) -> None:
        """Flushes and ends."""


class Optimizer(ABC):
    """Makes the optimizer of a run. Group `soundomni.optimizers`; no runtime arguments.

    A checkpoint keeps what the optimizer keeps for a parameter: tensors of the parameter's shape and of any type, and 0-dim counters
    named "step". Tensors of other shapes only fit an optimizer that refuses sharded parameters.
    """

    shards: ClassVar[bool] = True
    """Whether it updates sharded parameters. One that does not must refuse them in `build`, and runs in one process alone."""

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
        """Return an optimizer that updates each of `parameters` and keep nothing yet.

        The loop clips gradients, sets `lr` of every parameter group before each step and steps.

        Args:
            parameters: every trained parameter by its name in the model, at least one; sharded ones are DTensors.
            settings: rates and decay, as the spec gives them.
        """


KINDS: Mapping[str, type] = {
    "backbone": Backbone,
    "router": Router,
    "connector": Connector,
    "codec": Codec,
    "sampler": Sampler,
    "encoder": Encoder,
    "objective": Objective,
    "dataset": Dataset,
    "tracker": Tracker,
    "optimizer": Optimizer,
}


class Runtime:
    """Names of the runtime arguments of each kind: what the assembly passes and a spec may not set."""

    ARGUMENTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "backbone": ("vocab_size", "router"),
        "connector": ("token_dim", "hidden_dim", "generates"),
        "tracker": ("run_dir", "spec"),
    }
