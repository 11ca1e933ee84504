"""The contracts of the plugin kinds.

A plugin is a class registered under the entry-point group of its kind. Its constructor takes typed arguments by name.
The assembly passes only the runtime arguments listed at each contract; a spec cannot set those.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, K codebooks, T frames, F feature dimensions, N
tokens, H hidden dimensions, V vocabulary, E expert streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.representation import FeatureSpec, Representation, RepresentationSpec, TokenSpec, frame_noise
from soundomni.core.sequence import Attend, Role

if TYPE_CHECKING:
    from soundomni.core.attention.layout import Layout
    from soundomni.core.spec.schema import OptimizerSpec

LossTerms = dict[str, tuple[Tensor, Tensor]]
"""Name of a loss → (sum over its elements, number of its elements), so that ranks and micro-batches add up exactly."""

Prediction = Literal["velocity", "logits", "next-token"]
"""What an objective predicts and a sampler takes: velocities, logits of hidden codes, or logits of the next token."""


First = int | Tensor
"""Index of a token: one for all clips, or one for each of them, int64 `[B]` on the CPU."""


class Predict(Protocol):
    """What a sampler asks for predictions."""

    def __call__(self, values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return the prediction `[B, P, T]` for values `[B, D, T]` or codes `[B, K, T]` at timesteps `[B]`.

        Tokens before `first` are settled: they were asked for in earlier calls, stay as they were then, and are not in
        `values`. Samplers that change all tokens in every step leave it at 0. For the next token, place n holds token n − 1,
        or HIDDEN at the beginning, and gives the logits of token n. Tokens from `first` on may be asked for again, with others
        before them; what they gave then is forgotten.
        """
        ...


@runtime_checkable
class PredictLevels(Predict, Protocol):
    """A prediction of tokens whose levels depend on those below them, so that codes are drawn level by level."""

    def level(self, ids: Tensor, level: int) -> Tensor:
        """Return the logits `[B, V]` of a level of the last token that was asked for, given its codes below that level.

        Args:
            ids: `[B, K]`, the token's ids; those from `level` on do not count, and HIDDEN stands for no code.
            level: index of the level.
        """
        ...


class Draft(Protocol):
    """Guesses tokens ahead of a model, for samplers that then ask the model about several of them at once."""

    def __call__(self, values: Tensor, tokens: Tensor) -> Tensor:
        """Return logits `[B, P]` of token `tokens[b]` of each clip, from the tokens before it.

        A level whose logits are all -inf is not guessed. Logits that are all -inf but one are a guess that is certain.

        Args:
            values: ids `[B, K, N]` on the CPU, as in `Tokens`. Those from `tokens[b]` on may be HIDDEN, and say nothing.
            tokens: int64 `[B]` on the CPU. Clips that have ended may have any.
        """
        ...


class LevelPredict(Protocol):
    """What a sampler of codes asks for the logits of one level.

    A function that takes `level` may leave out the work for all other levels; of any other `Predict`, a sampler takes a part.
    """

    def __call__(self, values: Tensor, timesteps: Tensor, *, first: First = 0, level: int) -> Tensor:
        """Return the logits `[B, V_level, T]` that `Predict` returns for this level; the other arguments are those of `Predict`."""
        ...


class Ranks(Protocol):
    """The processes of a run, for what all of them have to agree on."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks. `values` may be overwritten."""
        ...

    def gather(self, values: Any) -> list[Any]:
        """Return the small plain value of every rank, in the order of ranks."""
        ...


@dataclass(frozen=True)
class ReceptiveField:
    """How far a codec looks, in frames on either side.

    A frame stands for its own `downsampling_ratio` samples; with E extra frames in the spec, also for the samples of
    the E frames before it, so that decoded samples depend on their own frame and the E frames after it. The counts here
    are frames beyond those, on the side with more of them.

    Args:
        encode: frames whose samples affect a frame that `encode` returns.
        decode: frames that affect the samples that `decode` returns.
        step: a codec that counts groups of frames from the beginning of a clip gives the same result for a piece that
            begins at a multiple of this many frames.
    """

    encode: int
    decode: int
    step: int = 1


class Codec(nn.Module, ABC):
    """Converts waveforms to a representation and back. Group `soundomni.codecs`; no runtime arguments.

    `spec` must be known from the constructor's arguments only. An argument named `weights` is a file to start from; a
    saved model holds the weights itself and omits that argument. Encoding treats each clip of a batch on its own, is
    random only if generators are given, and never depends on `self.training`.
    """

    decodes: ClassVar[bool] = True
    """Whether `decode` makes waveforms. If False, as for semantic tokens, the codec only encodes, and `decode` raises DataError."""

    keeps_waveform: ClassVar[bool] = True
    """Whether `decode` aims at the clip's own samples. If False, as without phases, only spectra are compared, not
    SI-SDR."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses of the codec's own that `reconstruct` returns; none by default."""
        return ()

    @property
    @abstractmethod
    def spec(self) -> RepresentationSpec:
        """Rate, channels, ratio and dimensions of what `encode` returns."""

    @abstractmethod
    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]` at `spec.sample_rate`, clips of `lengths` `[B]` samples, into `spec.num_frames(length)`
        frames each.

        Samples beyond the length of a clip are ignored. A codec with a random encoding draws the encoding of clip b
        from `generators[b]`, and returns its mean without generators.
        """

    @abstractmethod
    def decode(self, representation: Representation) -> Tensor:
        """Decode to `[B, C, S]`, with S at least `spec.num_samples(T)`; the caller cuts it to the length it wants.

        Values beyond the frames of a clip are ignored. A codec of codes also takes the first k of its K levels, and
        raises DataError for a code that is not in its codebook.
        """

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` is not needed; True by default."""
        return True

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Measure what the codec needs to know about the data, such as codebooks that no training finds.

        A new run calls it once if `is_fitted` is False, on its first clips: waveforms `[B, C, S]` and lengths `[B]`. What it
        measures is in buffers, which a saved model keeps. The default raises TypeError.
        """
        raise TypeError(f"{type(self).__name__} has nothing to measure")

    @property
    def receptive_field(self) -> ReceptiveField | None:
        """Reach of `encode` and `decode`, used to cut long clips into chunks (see assembly/chunked.py); None processes
        clips whole."""
        return None

    def reconstruct(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, LossTerms]:
        """Encode and decode clips for training: return the estimate `[B, C, S]`, and the losses of what is between the two.

        The estimate has the shape of the waveform `[B, C, S]`; samples beyond the `lengths` `[B]` of the clips are undefined.
        The losses are the codec's own, those of `loss_names`, such as a divergence or the distance of codes; critics judge the
        estimate. Other names have a slash, such as `usage/0`, and are only logged. What is random for clip b is drawn from
        `generators[b]` only. What `after_step` needs is noted in buffers, but only while gradients are enabled.

        Codecs without trainable parameters keep this default, which raises TypeError.
        """
        raise TypeError(f"{type(self).__name__} has nothing to train")

    @property
    def whole(self) -> Sequence[nn.Module]:
        """Modules with trained parameters that every rank keeps whole, because `after_step` changes them; none by default."""
        return ()

    def after_step(self, ranks: Ranks) -> None:
        """Change what no gradient does, such as codebooks that are moving averages: called after every training step.

        Every rank calls it, with what its own calls of `reconstruct` left in buffers, and must end with the same buffers. The
        default does nothing.
        """


class Critic(nn.Module, ABC):
    """Judges a codec's estimate of clips, and may learn to tell it from the clips. Group `soundomni.critics`.

    Runtime arguments: `sample_rate` in Hz and `channels`, C, of what it judges. Clips of a call are equally long, so that there is
    no padding. A critic with trainable parameters learns in a phase of its own, with its own optimizer, and every rank keeps it
    whole. `judged` and `learned` name the losses that `judge` and `learn` return, always all of them; an instance may set its own,
    if its arguments decide.

    In the log and in `train.loss_weights`, a loss has the name CRITIC.LOSS, such as `waves.adversarial`; a loss that is called
    `distance` has the name of the critic only, such as `mel`.
    """

    judged: ClassVar[tuple[str, ...]]
    learned: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def judge(self, target: Tensor, estimate: Tensor) -> LossTerms:
        """Return the losses of the codec for an estimate `[B, C, S]` of the clips `target` `[B, C, S]`.

        They have gradients for the estimate. A clip that is too short for the critic has no share in sum and count.
        """

    def learn(self, target: Tensor, estimate: Tensor, generators: Sequence[torch.Generator]) -> LossTerms:
        """Return the critic's own losses, such as the hinge loss of a discriminator.

        Args:
            target: the clips `[B, C, S]`.
            estimate: the codec's estimates `[B, C, S]`, without gradients.
            generators: one for each clip, for a critic that draws.
        """
        raise TypeError(f"{type(self).__name__} has nothing to learn")


class Encoder(nn.Module, ABC):
    """Converts waveforms to features for understanding, or clips, texts and numbers to features that condition what is
    made. Group `soundomni.encoders`; no runtime arguments.

    `spec.source` says what it reads.
    """

    @property
    @abstractmethod
    def spec(self) -> FeatureSpec:
        """Rate and dimension, known without weights."""

    @abstractmethod
    def num_tokens(self, num_samples: int) -> int:
        """Return T for a clip of `num_samples` samples at `spec.sample_rate`, or for that many values of what `read` returns; at
        least 1."""

    def read(self, source: str) -> np.ndarray:
        """Return a text or a number, given as text, as values float32 `[1, S]` for `forward`, such as token ids.

        Only called if `spec.source` is not a waveform, on the host, and without weights. Raise DataError for a text that the
        encoder cannot read. The default raises TypeError.
        """
        raise TypeError(f"{type(self).__name__} reads waveforms, not text")

    @abstractmethod
    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, clips or values of `lengths` `[B]` samples, into `[B, T, F]`; clip b has `num_tokens(lengths[b])`
        valid rows.

        Samples beyond the length of a clip are ignored.
        """


class Connector(nn.Module, ABC):
    """Maps tokens into the hidden space and back. Group `soundomni.connectors`.

    Runtime arguments: `tokens` (a TokenSpec: D numbers, F features, or the vocabularies of K codes), `hidden_dim` (H), and
    `generates` (whether `leave` is used; if so, tokens also come with a timestep and their index in the clip). The
    constructor raises SpecError for tokens that it does not map.
    """

    @property
    def max_frames(self) -> int | None:
        """Number of tokens of the longest clip whose tokens get distinct embeddings; None if there is no limit."""
        return None

    @abstractmethod
    def enter(self, tokens: Tensor, *, timesteps: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Map numbers `[N, D]`, or ids `[N, K]` int64 of which some may be HIDDEN, to `[N, H]`.

        With `generates`, `timesteps` `[N]` in [0, 1] and `frames` `[N]`, the index of each token within its clip, are
        given too.
        """

    @abstractmethod
    def leave(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to the prediction `[N, P]`, which is zero at the start of training; P is `tokens.num_outputs`."""

    def leave_level(self, hidden: Tensor, level: int, sizes: Sequence[int]) -> Tensor:
        """Map `[N, H]` to the logits `[N, sizes[level]]` of one level of codes, the same as in `leave`.

        By default they are a part of what `leave` returns; a connector with a head for each level runs only this one.
        """
        return self.leave(hidden).narrow(1, sum(sizes[:level]), sizes[level])


class LevelsConnector(Connector):
    """A connector of codes that predicts each level of a token given the levels below it, for objectives of the next token.

    Other connectors predict the levels of a token independently of each other. A sampler has to draw them one after the other.
    """

    @abstractmethod
    def leave(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map `[N, H]` to the logits `[N, P]` of all levels, zero at the start of training.

        Args:
            hidden: `[N, H]`.
            ids: int64 `[N, K]`, the codes of the tokens that are predicted, of the levels of `tokens.outputs`. Logits of a level depend
                only on those below it. HIDDEN stands for no code; None for no codes at all.
        """


class Router(ABC):
    """Assigns tokens to experts. Group `soundomni.routers`; no runtime arguments.

    A router decides two things: which expert stream a role belongs to, which is fixed, so that routing is a slice; and
    how the feed-forward network of a stream is built, which may itself route by hidden state. `loss_names` names the
    auxiliary loss that such networks add, if any; at most one.
    """

    loss_names: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def streams(self) -> tuple[str, ...]:
        """Names of the expert streams; the first one holds text."""

    @abstractmethod
    def stream_of(self, role: Role) -> int:
        """Return the index of the stream that tokens of this role run through."""

    def feed_forward(self, build: Callable[[], nn.Module], hidden_dim: int) -> nn.Module:
        """Build one layer's feed-forward network of one stream; `build()` makes a plain one, `[N, H]` → `[N, H]`.

        The module may return `(output, (loss sum, count))` to add an auxiliary loss.
        """
        return build()


class Backbone(nn.Module, ABC):
    """A language model over expert streams. Group `soundomni.backbones`.

    Runtime arguments: `vocab_size` and `router`. `takes_empty_streams` says whether `forward` takes streams without tokens as
    `[0, H]` in inference, so that their experts need not run. Otherwise, and always in training, such streams have padding. A class
    that writes its own `forward` has to set it again.
    """

    hidden_dim: int
    num_kv_heads: int
    head_dim: int
    takes_empty_streams: ClassVar[bool] = False
    takes_text: ClassVar[bool] = True
    """Whether there are tokens of text and of clips that are given. Without, `embed` and `head` only take no tokens, clips that are made
    have no boundary tokens, and all conditions enter as "cross" or "global"."""
    takes_times: ClassVar[bool] = False
    """Whether `forward` needs `layout.conditions` with the timestep of each clip to make: the highest timestep of its
    tokens."""
    takes_hints: ClassVar[bool] = False
    """Whether `forward` takes what an objective with `shows_known` tells about known frames from `layout.conditions`, and not as more
    numbers of each token. Only a backbone that takes times, and no text, may do so."""
    condition_layers: ClassVar[tuple[str, ...]] = ()
    """Last parts of the names of linear layers in `layers` whose inputs are conditions or hints instead of the tokens of a stream."""
    lead_tokens: int = 0
    """Tokens in front of the frames of a clip that is made; they enter as zeros, and `forward` fills them."""

    @property
    def condition_dim(self) -> int:
        """Dimensions of conditions that enter as "cross" or "global"; by default hidden_dim."""
        return self.hidden_dim

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make `takes_empty_streams` hold only for the `forward` of the class that sets it."""
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and "takes_empty_streams" not in vars(cls):
            cls.takes_empty_streams = False

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
        """Map E streams `[N_e, H]` in stored order to the same streams after all layers and the final norm, and
        auxiliary losses.

        Layer i attends through `layout.attend(i, query, key, value)`, which uses the cache if there is one, and takes
        positions from `layout.position_ids`. The loss that the router's networks add is summed over them and returned
        under its name in `router.loss_names`. With `takes_empty_streams`,
        streams without tokens go in and come out as `[0, H]`; at least one stream has tokens.
        """

    def take_conditions(self, ways: Mapping[str, Collection[str]]) -> None:
        """Prepare for conditions that have no places in the sequence; called once, after the constructor, and only if there are any.

        `ways` has the names of the modalities that enter in each way.

        With "cross" among `ways`, clips that are made look at their conditions in every layer, through `layout.cross`. With "global",
        `layout.conditions` has a vector for each clip, zero without conditions, that changes every layer, such as the scale and
        shift of its norms. A model without conditions stays as it is. The default raises SpecError: the backbone takes none.
        """
        named = " and ".join(f"'{way}'" for way in ways)
        raise SpecError(f"{type(self).__name__} does not take conditions that enter as {named}. Set enters to 'prefix', or use conformer")

    def take_hints(self, num_hints: int) -> None:
        """Prepare for hints of this many numbers per frame.

        Called once, after the constructor, if `takes_hints` is set and an objective has `shows_known`.

        The default raises TypeError.
        """
        raise TypeError(f"{type(self).__name__} does not take hints")

    def expert_parameters(self, stream: str) -> Iterable[nn.Parameter]:
        """Return the parameters that only tokens of this stream use, for freezing and counting one expert.

        None by default.
        """
        return ()


@dataclass(frozen=True)
class Query:
    """What an objective asks the model to predict.

    Args:
        inputs: corrupted values, in the shape of the representation's values; hidden cells of codes are HIDDEN. T counts tokens
            here; most objectives have one for each frame.
        timesteps: `[B, T]` in [0, 1]; 1 is all noise or all hidden, 0 is clean.
        targets: what to predict: velocities `[B, D, T]`, or codes `[B, K, T]`, HIDDEN in cells that need not be predicted.
        loss_mask: bool `[B, T]`, frames or tokens that count in the loss.
        levels: number of classes of each level of codes, by which logits are divided; empty for velocities.
        ids: the tokens to predict themselves, `[B, K, T]`, HIDDEN in cells without a code: a `LevelsConnector` predicts their levels
            from those below. None if the objective has no such tokens.
        hints: what the network also sees of the known frames, `[B, D + 1, T]`, see `Objective.hints`; None if nothing.
    """

    inputs: Tensor
    timesteps: Tensor
    targets: Tensor
    loss_mask: Tensor
    levels: tuple[int, ...] = ()
    ids: Tensor | None = None
    hints: Tensor | None = None

    def clip(self, index: int) -> Query:
        """Return the query of one clip, as a batch of one."""
        one = slice(index, index + 1)
        return replace(
            self,
            inputs=self.inputs[one],
            timesteps=self.timesteps[one],
            targets=self.targets[one],
            loss_mask=self.loss_mask[one],
            ids=None if self.ids is None else self.ids[one],
            hints=None if self.hints is None else self.hints[one],
        )


class Review(ABC):
    """A second question to the model in training, about what it answered to the first: which of its own guesses are right.

    What it asks for are scores of their own, which a sampler may use (see `Sampler.reviews`). They leave through heads of the same
    network, or through a network of their own if the spec gives the model a critic. A review keeps no state and has no parameters.

    `loss_names` names what `loss` returns. Its counts are those of the objective's losses.
    """

    loss_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def num_scores(self, spec: RepresentationSpec) -> int:
        """Return P, the number of scores of a token."""

    @abstractmethod
    def query(self, prediction: Tensor, asked: Query, *, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Query:
        """Return the question about a prediction `[B, P, T]` for the query `asked`, both without clips if B is 0.

        It has no gradient for the prediction. It has the same timesteps and the same loss mask; its inputs are those of `asked`, but for
        cells that the model was asked for. What is random for clip b, of `frames[b]` frames, is drawn from `generators[b]` only.
        """

    @abstractmethod
    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return (sum, count) of each loss of the scores `[B, P, T]` over the frames of `query.loss_mask`."""


class Objective(nn.Module, ABC):
    """Corrupts a representation and scores the prediction. Group `soundomni.objectives`; no runtime arguments.

    Objectives keep no state between calls. `loss_names` names what `loss` returns; each loss counts the frames of noise
    segments that are not known, so that ranks can weight them before anything is computed. `predicts` says what samplers
    get, and `attend` how the tokens of a clip see each other while it is made.

    Samplers of velocities follow the prediction from timestep 1 to 0. It must be the velocity of the objective's own path,
    d`noised`/dt: `corrupt` gives what `noised` gives for standard normal noise, and `loss` is lowest for that velocity.
    Logits `[B, P, T]` are those of all levels one after the other. Codes that `corrupt` returns are clean or HIDDEN, and every
    clip to make has at least one hidden cell to predict.

    Objectives that predict the next token attend causally, and need not have one token for each frame. The inputs of `corrupt` then
    hold token n − 1 at place n, all at timestep 1, and its targets token n; `start` returns `Tokens`, and `made` turns
    these into codes again.
    """

    loss_names: ClassVar[tuple[str, ...]]
    predicts: ClassVar[Prediction] = "velocity"
    attend: ClassVar[Attend] = Attend.NOISE
    shows_known: bool = False
    """Whether known frames of latents become as noisy as the others, and the network sees what they hold in D + 1 numbers more of each
    token (see `hints`). Otherwise it sees them clean, at timestep 0."""
    review: ClassVar[Review | None] = None
    """What the model is asked about its own predictions in training, in a second pass; None if nothing is."""

    def tokens(self, spec: RepresentationSpec) -> TokenSpec:
        """Return what the tokens of a codec's representation look like to the connector.

        Raise SpecError for a representation that the objective does not corrupt.
        """
        return TokenSpec(spec.tokens, spec.tokens)

    def made_levels(self, spec: RepresentationSpec) -> tuple[int, int]:
        """Return which levels of codes are made, (first, end): by default all.

        Levels below `first` are given: they are shown, never change, and carry no loss. There are no levels from `end` on. Inputs have
        `end` levels, targets and predictions too, although nothing is predicted of levels that are given. Latents have no levels; the
        pair is then (0, D).
        """
        return 0, spec.token_dim

    def num_tokens(self, spec: RepresentationSpec, frames: int) -> int:
        """Return how many tokens a clip of `frames` frames takes in a sequence: at least as many, and more for more frames."""
        return frames

    def num_terms(self, spec: RepresentationSpec, frames: int) -> int:
        """Return how many elements each loss has for a clip of which `frames` frames are made and not known; by default, these
        frames."""
        return frames

    def given(self, clean: Representation) -> Tensor:
        """Return what the network is shown of clips that are only context, `[B, D, T]` or `[B, K, T]`; by default their values."""
        return clean.values

    def hints(self, values: Tensor, known: Tensor) -> Tensor | None:
        """Return what the network sees of known frames next to all tokens, `[B, D + 1, T]`; None unless `shows_known`.

        It is 1 at known frames and 0 at others, then the values `[B, D, T]` at known frames and 0 at others (Evans et al. 2024b,
        section 2.2, as stable-audio-tools trains inpainting).
        """
        if not self.shows_known:
            return None
        mask = known[:, None].to(values.dtype)
        return torch.cat([mask, values * mask], dim=1)

    def check_known(self, known: Tensor) -> None:
        """Raise SpecError for known frames, bool `[B, T]`, around which the objective cannot make the others.

        By default, any frames may be known.
        """

    def start(self, given: Representation, known: Tensor, generators: Sequence[torch.Generator]) -> Representation:
        """Return what sampling starts from, in the shape of `given`: by default standard normal noise.

        The noise of a clip is drawn frame by frame, so that a longer clip begins with the noise of a shorter one. With `shows_known`,
        known frames begin as noise too.

        Args:
            given: read at known frames, and at all frames of levels that are not made; its dtype, device and lengths are those of the
                result.
            known: bool `[B, T]`, frames that keep their given values.
            generators: one for each clip.
        """
        noise = frame_noise(given.values, given.frame_counts, generators)
        return given.with_values(noise if self.shows_known else torch.where(known[:, None], given.values, noise))

    @abstractmethod
    def corrupt(self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Query:
        """Corrupt the clips with `noise` `[B]` set, except their `known` `[B, T]` frames; all others stay clean, at
        timestep 0.

        Each clip draws from its own generator only, so that its corruption does not depend on the batch around it.
        """

    def corrupt_at(
        self,
        clean: Representation,
        *,
        known: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        quantiles: Sequence[float],
    ) -> Query:
        """Return what `corrupt` does, but with clip b at the timestep at `quantiles[b]` in (0, 1) of the distribution.

        Held-out losses are measured in this way: a few clips then cover all timesteps evenly. An objective that does not
        override this draws timesteps from the generators, which fixes them too, but does not spread them evenly.
        """
        return self.corrupt(clean, known=known, noise=noise, generators=generators)

    @property
    def has_timesteps(self) -> bool:
        """Whether all clips can be corrupted to the same timestep, see `corrupt_to`; False by default."""
        return False

    def corrupt_to(
        self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator], timestep: float
    ) -> Query:
        """Do what `corrupt` does, but with all clips at one timestep in (0, 1), in the units of the objective's
        distribution.

        Held-out losses at single timesteps are measured in this way. Everything else is drawn as in `corrupt_at`. Only
        called if `has_timesteps` is set; the default raises TypeError.
        """
        raise TypeError(f"{type(self).__name__} does not let timesteps be chosen")

    def shown(self, values: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network is shown of values `[B, D, T]` at timesteps `[B, T]`; by default the values.

        An objective on another path than `noised` scales them, see `shown_times`.
        """
        return values

    def shown_times(self, timesteps: Tensor) -> Tensor:
        """Return the timesteps that the network gets, 0 at 0; by default `timesteps`."""
        return timesteps

    def predicted(self, output: Tensor, inputs: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return the prediction for `loss` and samplers, made from the network's `output`; by default the output
        itself.

        Args:
            output: `[B, P, T]`, what the network gave.
            inputs: `[B, D, T]` or `[B, K, T]`, what it was shown.
            timesteps: `[B, T]`.
            first: index of the first of these tokens in the clip, or in each.
        """
        return output

    def native(self, prediction: Tensor, inputs: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return the network's output `[B, P, T]` that `predicted` turns into this prediction, its inverse; by default the
        prediction itself.

        An objective of velocities that overrides one of the two overrides both. Guidance that depends on what the network
        itself gives, such as `rescale`, works there. The other arguments are those of `predicted`.
        """
        return prediction

    def made(self, values: Representation) -> Representation:
        """Return the representation that sampled tokens stand for; by default they are its frames."""
        return values

    @abstractmethod
    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return (sum, count) of each loss over the frames of `query.loss_mask`."""

    @abstractmethod
    def noised(self, clean: Tensor, start: Tensor, timestep: float) -> Tensor:
        """Return values `[B, D, T]` between `clean` (timestep 0) and `start`, the values that sampling starts from
        (timestep 1).

        For velocities, this is what `corrupt` gives at that timestep for that noise. For codes, a share of the cells that
        grows with the timestep is HIDDEN. Varying a clip begins there instead of at timestep 1.
        """


class Sampler(ABC):
    """Turns what an objective starts from into values by asking for predictions. Group `soundomni.samplers`; no runtime
    arguments.

    Samplers keep no state between calls. `takes` says which predictions they need. Those of the next token take a step for each
    token, so they have no `num_steps`.

    With `by_level`, a sampler draws the levels of a token one after the other if the prediction is `PredictLevels`.
    With `reviews`, `sample` also takes `review`, a `Predict` that gives the scores of the objective's review
    `[B, P, T]` for codes of which some may be HIDDEN. Each call of it is one of `num_evaluations`. With `compares`,
    `sample` also takes `compare`, a `Predict` that gives the prediction and the one that guidance steers away from,
    `[2, B, P, T]`: both are the same if a clip is not guided. The sampler asks it in place of `predict`.

    The noise of diffusion models is finite. A sampler that starts below timestep 1, at `starts_at`, multiplies pure noise by that
    timestep first: the share of the data that is missing is next to nothing.
    """

    takes: ClassVar[Prediction] = "velocity"
    reviews: ClassVar[bool] = False
    by_level: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    num_steps: int
    starts_at: float = 1.0
    """Timestep of the first prediction from pure noise."""

    def count_steps(self, start: Representation) -> int:
        """Return how many steps `sample` takes from `start`, at most if clips end by themselves; by default `num_steps`."""
        return self.num_steps

    def straight_steps(self) -> tuple[float, ...] | None:
        """Return the timesteps from noise to 0, if each step between them is x ← x + (t' − t)·v, where v is predicted
        once, at t, and nothing is drawn. Return None, the default, for a sampler with other steps.

        A model can only learn such steps from a teacher (see TeacherSpec).
        """
        return None

    @abstractmethod
    def num_evaluations(self, start: Representation) -> int:
        """Return the number of predictions that `sample` asks for from `start`, at most if clips end by themselves."""

    @abstractmethod
    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Representation:
        """Start from values `[B, D, T]` at timestep `begin`, pure noise at 1, or from codes `[B, K, T]` of which some are
        HIDDEN, and return values of that shape at timestep 0, none of them HIDDEN.

        It always takes `count_steps(start)` steps, wherever it begins, and asks for predictions only at timesteps above 0:
        at 0 nothing is left to predict, and a model treats values at timestep 0 as known. Codes that are not HIDDEN never
        change. `on_step(index, values)` is called after each step. A stochastic sampler draws for clip b from
        `generators[b]` only, and nothing for padding.

        A sampler of the next token gets `Tokens`, and draws only what their `allowed` allows. It asks for tokens at timestep `begin`,
        each after all before it, and stops when all clips have ended, which may be before `count_steps(start)` steps. It returns
        `Tokens` with the lengths of the clips. With `by_level`, it draws each level given those below if the prediction is
        `PredictLevels`.
        """


class DraftedSampler(Sampler):
    """A sampler of the next token that lets a draft guess tokens ahead, and has the model check several at once.

    Whatever the draft guesses, clips follow the same distribution.
    """

    @abstractmethod
    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
        draft: Draft | None = None,
    ) -> Representation:
        """Do what `Sampler.sample` does, with tokens that `draft` guesses; None for a draft of the sampler's own."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A clip of a dataset, as far as it is known without decoding it.

    Args:
        key: name of the clip, such as a path or a recipe; unique within the dataset.
        num_samples: length at `sample_rate`.
        sample_rate: sample rate of the file, in Hz.
        captions: possible captions of the clip; empty if it has none.
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
        key: name of the item.
        reason: why, in one line.
        kind: "unreadable" if it exists but cannot be read, the only kind that counts against data.skip_limit; "missing"
            if it is named but does not exist; "no caption"; "unsuitable" for anything else, such as a clip that is too
            long.
        group: what to say after a count of such items, such as "longer than 5 s for describe"; by default the text of
            its kind.
    """

    key: str
    reason: str
    kind: Literal["unreadable", "missing", "no caption", "unsuitable"] = "unreadable"
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the clips of a dataset were encoded.

    Args:
        spec: spec of the codec that made them.
        codec: the codec in words, such as "mdct", for errors.
        fingerprint: digest of the codec with its weights (core/pretrained/fingerprint.py); None if it is not known.
        measured: what the codec's `fit` measured, as the buffers of its state; empty for a codec that is not fitted.
    """

    spec: RepresentationSpec
    codec: str
    fingerprint: str | None = None
    measured: Mapping[str, Tensor] = field(default_factory=dict)


class Dataset(ABC):
    """Clips by index. Group `soundomni.datasets`; no runtime arguments.

    `item` is cheap and decodes nothing, so that packing can run ahead of reading and is the same on every rank.
    `skipped` lists what turned out to be unusable while listing. A dataset whose clips are encoded sets `encoding`;
    training then calls `load_encoded` in place of `load`, and only tasks that need no waveform can use it.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """Return what is known about item `index`."""

    @abstractmethod
    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return the waveform, float32 `[C, S]` in [-1, 1], and its sample rate. Raise UnreadableAudioError."""

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return samples `[first, first + num_samples)` of what `load` returns, and the rate.

        Raise UnreadableAudioError.

        Training calls it for clips of which it takes only a part. By default the whole clip is loaded and then cut; a
        dataset that can decode only the part saves time and memory.
        """
        waveform, rate = self.load(index)
        return waveform[:, first : first + num_samples].copy(), rate  # a view would keep the whole clip in memory

    @property
    def encoding(self) -> Encoding | None:
        """How its clips were encoded; None for a dataset of audio."""
        return None

    def load_encoded(self, index: int, *, first: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Return frames `[first, first + num_frames)` of an encoded clip: float32 `[D, T]`, or int64 codes `[K, T]`.

        The whole clip has `encoding.spec.num_frames` of its samples at the codec's rate. Raise UnreadableAudioError if it is
        damaged. By default, a dataset of audio, it is a TypeError.
        """
        raise TypeError(f"{type(self).__name__} holds audio, not encoded clips")

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Items found unusable while listing."""
        return ()

    @property
    def generated_from(self) -> str | None:
        """Text that determines all items, for a dataset that computes them on demand; None for a dataset that lists
        them.

        A run that resumes compares it to see that the data is the same; otherwise it has to look at every item.
        """
        return None


class Filter:
    """Decides which clips of a dataset are used, and may write their captions. Group `soundomni.filters`; no runtime arguments.

    Its answers may depend only on its arguments: every rank asks again, and so does a run that resumes. The run names
    and counts the clips that it leaves out; they do not count toward data.skip_limit.
    """

    def describe(self, item: Item) -> Item | str:
        """Return the item, perhaps with other captions, questions and attributes, or the reason to leave it out.

        Called once for each item while the data is listed; nothing is decoded. A dataset that computes its items on
        demand is listed completely if one of its filters has this method. Captions are a tuple of texts. By default the
        item is used as it is.
        """
        return item

    def reject(self, item: Item, waveform: np.ndarray, sample_rate: int) -> str | None:
        """Return the reason to leave out a clip that has been read, or None to use it.

        Called with the part of the clip that is used, before augmentations, and by several threads at once. Texts
        cannot change any more: batches are planned before clips are read. By default every clip is used.

        Args:
            item: the item, as `describe` returned it.
            waveform: float32 `[C, S]`, which it must not change.
            sample_rate: rate of the file in Hz.
        """
        return None


SLOWEST, FASTEST = 0.1, 10.0
"""Least and largest tempo of an augmentation; others would be a fault of it."""
TEMPO_ROUNDING = 16
"""Samples by which a changed clip may differ from S / `tempo`."""


class Augmentation:
    """Changes the clips of a dataset at random while training. Group `soundomni.augmentations`; no runtime arguments.

    It draws everything from the generators that it is given, which are seeded by the sample's seed, and keeps no state,
    so a sample is the same on any rank and after a run resumes. Held-out clips are never changed.
    """

    def tempo(self, draws: np.random.Generator) -> float:
        """Return how many times as fast the clip becomes: with 2, it lasts half as long; at least 0.1 (SLOWEST) and at
        most 10 (FASTEST). By default 1.

        Called before the clip is read; `change` then gets a generator that draws the same numbers.
        """
        return 1.0

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the changed clip, float32 and finite, with as many channels, and S / `tempo` samples up to 16
        (TEMPO_ROUNDING). By default nothing changes.

        Several threads call it at once.

        Args:
            waveform: the part of the clip that is used, float32 `[C, S]`, which it must not change in place.
            sample_rate: rate of the file in Hz, which does not change.
            draws: generator for this clip.
        """
        return waveform

    def mask(self, num_tokens: int, feature_dim: int, draws: np.random.Generator) -> np.ndarray | None:
        """Return which features of a clip that the model hears are set to zero, bool `[T, F]`; None, the default, for
        none.

        Args:
            num_tokens: T, number of tokens of the clip.
            feature_dim: F, dimensions of the encoder's features.
            draws: generator for this clip; it draws other numbers than the one that `change` gets.
        """
        return None


class Tracker(ABC):
    """Receives what a run measures and makes. Group `soundomni.trackers`.

    Runtime arguments: `run_dir` and `spec` (the resolved spec).

    A tracker whose constructor or `begin` fails stops the run before its first step. From then on a tracker never ends
    a run: if any other method raises, a warning names the tracker, which is closed and not called again until the run
    is resumed.
    """

    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of the files that it writes, relative to the run directory; they are removed when the run is
    overwritten."""

    def begin(self, step: int) -> None:
        """Start recording; called once, before anything is logged, with the number of finished steps: 0 for a new run.

        Anything that an earlier tracker of this run directory recorded for later steps belongs to an attempt that was
        lost.
        """

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record scalar metrics at an optimizer step."""

    def log_files(self, step: int, files: Sequence[Path]) -> None:
        """Record WAV and PNG files made at this step. By default they are ignored, and stay in the run directory."""

    def close(self) -> None:
        """Flush and end."""


class Optimizer(ABC):
    """Makes the optimizer of a run. Group `soundomni.optimizers`; no runtime arguments.

    A checkpoint keeps the optimizer's state of each parameter: tensors of the parameter's shape and of any type, and
    0-dim counters named "step". Tensors of other shapes are only allowed if the optimizer refuses sharded parameters.
    """

    shards: ClassVar[bool] = True
    """Whether it can update sharded parameters.

    If not, `build` must refuse them, and a run must have only one process.
    """

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> torch.optim.Optimizer:
        """Return an optimizer that updates each of `parameters` and has no state yet.

        The training loop clips gradients and sets `lr` of every parameter group before each step.

        Args:
            parameters: every trained parameter by its name in the model, at least one; sharded ones are DTensors.
            settings: learning rate and decay, as the spec gives them.
        """


KINDS: Mapping[str, type] = {
    "backbone": Backbone,
    "router": Router,
    "connector": Connector,
    "codec": Codec,
    "critic": Critic,
    "sampler": Sampler,
    "encoder": Encoder,
    "objective": Objective,
    "dataset": Dataset,
    "filter": Filter,
    "augmentation": Augmentation,
    "tracker": Tracker,
    "optimizer": Optimizer,
}


class Runtime:
    """Names of the runtime arguments of each kind: the assembly passes them, and a spec may not set them."""

    ARGUMENTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "backbone": ("vocab_size", "router"),
        "connector": ("tokens", "hidden_dim", "generates"),
        "critic": ("sample_rate", "channels"),
        "tracker": ("run_dir", "spec"),
    }
