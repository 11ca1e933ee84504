"""Conformance of backbones.

Shape letters: N tokens, N_e tokens of stream e, H hidden dimensions, V vocabulary, E expert streams.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.core.attention import plan_attention, plan_cached
from soundomni.core.attention.conditions import join_conditions
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.stored_order import store
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Backbone, LossTerms, Router
from soundomni.core.sequence import (
    Attend,
    PositionRule,
    Role,
    Segment,
    SegmentTable,
    audio_segment,
    find_conditioned,
    position_advance,
    text_segment,
)
from soundomni.testing.suite import ModuleSuite, evaluating, noise, number, seeded


class TwoStreams(Router):
    """Text and features in "und", latents and codes in "gen"."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams: "und" and "gen"."""
        return ("und", "gen")

    def stream_of(self, role: Role) -> int:
        """Return 0 for TEXT and FEATURES, 1 for LATENT and CODES."""
        return int(role in (Role.LATENT, Role.CODES))


class OneLoss(Router):
    """Another router, with feed-forward networks that add the mean square of their input as the loss "magnitude"."""

    loss_names: ClassVar[tuple[str, ...]] = ("magnitude",)

    def __init__(self, router: Router) -> None:
        self._router = router

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the other router's streams."""
        return self._router.streams

    def stream_of(self, role: Role) -> int:
        """Return the other router's stream."""
        return self._router.stream_of(role)

    def feed_forward(self, build: Callable[[], nn.Module], hidden_dim: int) -> nn.Module:
        """Return a plain network that also gives the loss."""
        return _WithLoss(build())


class _WithLoss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.network(hidden), (hidden.square().mean(-1).sum(), torch.tensor(float(len(hidden))))


class BackboneSuite(ModuleSuite):
    """Clauses of `soundomni.core.interfaces.Backbone`.

    Attributes:
        vocab_size: V of the backbones that are made.
        tolerance: largest difference between a document on its own and in a pack, relative above magnitude 1.
    """

    kind: ClassVar[str] = "backbone"
    vocab_size: ClassVar[int] = 40
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self, *, vocab_size: int, router: Router) -> Backbone:
        """Return a new, small backbone on the CPU; the assembly passes these arguments."""

    def router(self) -> Router:
        """Return the router for the backbones: TwoStreams, unless overridden."""
        return TwoStreams()

    def built(self, seed: int = 0) -> Backbone:
        """Return a backbone in evaluation mode with weights drawn from `seed`."""
        return self._made(self.router(), seed)

    def _made(self, router: Router, seed: int = 0) -> Backbone:
        backbone: Backbone = evaluating(seeded(lambda: self.make(vocab_size=self.vocab_size, router=router), seed))
        return backbone

    def outputs(self, plugin: Any) -> list[Tensor]:
        """Return the outputs for two documents in one pack."""
        (text, latents), _ = self.run(plugin, [self._speaking(plugin, 3), self._speaking(plugin, 6)])
        return [plugin.head(text), latents]

    def run(self, backbone: Backbone, documents: Sequence[Sequence[Segment]]) -> tuple[tuple[Tensor, Tensor], LossTerms]:
        """Pack documents and return hidden text and latent tokens `[N_role, H]` in token order, and auxiliary
        losses."""
        streams, layout, losses = self._forward(backbone, documents)
        return (layout.take(streams, Role.TEXT), layout.take(streams, Role.LATENT)), losses

    def test_sizes(self) -> None:
        """`hidden_dim`, `num_kv_heads` and `head_dim` are known."""
        backbone = self.built()
        for name in ("hidden_dim", "num_kv_heads", "head_dim"):
            found = getattr(backbone, name, None)
            self.require(isinstance(found, int) and found > 0, "sizes", f"{name} is {found!r}; expected an int from 1")

    def test_layers(self) -> None:
        """`layers` is a ModuleList of the repeated layers, which are part of the module."""
        backbone = self.built()
        layers = backbone.layers
        good = isinstance(layers, nn.ModuleList) and len(layers) > 0
        self.require(good, "layers", f"layers is a {type(layers).__name__} of {len(layers)}; expected a ModuleList of at least one layer")
        inside = {id(module) for module in backbone.modules()}
        outside = [index for index, layer in enumerate(layers) if id(layer) not in inside]
        self.require(not outside, "layers", f"the layers {outside} are not submodules of the backbone; expected all to be")

    def test_embed(self) -> None:
        """Token ids `[N]` become `[N, H]`, N = 0 included."""
        backbone = self.built()
        for count in (5, 0) if backbone.takes_text else (0,):
            hidden, wanted = backbone.embed(torch.arange(count)), [count, backbone.hidden_dim]
            good = list(hidden.shape) == wanted and hidden.dtype.is_floating_point
            self.require(good, "embed", f"{count} ids gave {hidden.dtype} {list(hidden.shape)}; expected floating point {wanted}")

    def test_head(self) -> None:
        """Hidden tokens `[N, H]` become logits `[N, V]`, N = 0 included."""
        backbone = self.built()
        for count in (5, 0) if backbone.takes_text else (0,):
            logits, wanted = backbone.head(noise(0, count, backbone.hidden_dim)), [count, self.vocab_size]
            self.require(list(logits.shape) == wanted, "head", f"{count} tokens gave logits {list(logits.shape)}; expected {wanted}")

    def test_streams(self) -> None:
        """Streams keep their number and length, and are finite, with losses that the router names."""
        backbone = self.built()
        names = self.router().loss_names
        for documents in ([self._speaking(backbone, 5)], [_silent(4)] if backbone.takes_text else []):
            streams, layout, losses = self._forward(backbone, documents)
            found = [list(stream.shape) for stream in streams]
            wanted = [[length, backbone.hidden_dim] for length in layout.stored.stream_lengths]
            self.require(found == wanted, "streams", f"streams came out as {found}; expected {wanted}")
            finite = all(bool(stream.isfinite().all()) for stream in streams)
            self.require(finite, "streams", "streams came out with values that are not finite")
            self.require(set(losses) <= set(names), "streams", f"losses {list(losses)} were returned, but the router names {list(names)}")

    def test_losses(self) -> None:
        """The loss that the router's networks add is returned under the router's name for it."""
        router = OneLoss(self.router())
        backbone = self._made(router)
        _, _, losses = self._forward(backbone, [self._speaking(backbone, 5)], router=router)
        found, expected = sorted(losses), sorted(router.loss_names)
        self.require(found == expected, "losses", f"losses {found} were returned, but the router names {expected}")
        for name, (total, count) in losses.items():
            good = total.ndim == 0 and bool(total.isfinite()) and number(count) > 0
            self.require(good, "losses", f"loss '{name}' is ({total!r}, {count!r}); expected a finite sum and a count above 0")

    def test_packing(self) -> None:
        """A document gives the same result on its own and packed with another."""
        backbone = self.built()
        documents = [self._speaking(backbone, 3), self._speaking(backbone, 6)]
        with torch.no_grad():
            together, _ = self.run(backbone, documents)
            apart = [self.run(backbone, [document])[0] for document in documents]
        for index, name in enumerate(("text", "latents")):
            expected = torch.cat([parts[index] for parts in apart])
            message = f"hidden {name} of two packed documents differ from those of each one on its own"
            self.require_close(together[index], expected, self.tolerance, "packing", message)

    def test_causal(self) -> None:
        """A text token does not see what comes after it."""
        backbone = self.built()
        if not backbone.takes_text:
            return
        with torch.no_grad():
            (short, _), _ = self.run(backbone, [_silent(4)])
            (long, _), _ = self.run(backbone, [_silent(9)])
        count = len(short) - 1  # the last token closes the text
        message = f"the first {count} text tokens change when the text continues"
        self.require_close(long[:count], short[:count], self.tolerance, "causal", message)

    def test_context(self) -> None:
        """A noise segment sees the text before it."""
        backbone = self.built()
        if not backbone.takes_text:
            return
        with torch.no_grad():
            (_, first), _ = self.run(backbone, [self._speaking(backbone, 5)])
            (_, second), _ = self.run(backbone, [self._speaking(backbone, 5, offset=7)])
        self.require(not torch.equal(first, second), "context", "latents are the same after another text; expected them to attend to it")

    def test_positions(self) -> None:
        """Tokens give other results at other positions."""
        backbone = self.built()
        with torch.no_grad():
            _move(backbone)
            (_, shared), _ = self.run(backbone, [self._speaking(backbone, 5)])
            (_, apart), _ = self.run(backbone, [self._speaking(backbone, 5, positions=PositionRule.ADVANCE)])
        message = "latents with a position each give the same result as those that share one; expected layout.position_ids to be used"
        self.require(not torch.allclose(apart, shared, rtol=0.0, atol=1e-6), "positions", message)

    def test_cache(self) -> None:
        """A noise segment gives the same result after text in a cache as after the text itself."""
        backbone, router = self.built(), self.router()
        if not backbone.takes_text:
            return
        text, audio = document = self._speaking(backbone, 5)
        with torch.no_grad():
            (_, expected), _ = self.run(backbone, [document])
            cache = self._empty_cache(backbone, [document])
            self._forward(backbone, [(text,)], cache=cache)
            cache.keep([text.length])
            table = SegmentTable.from_samples([(audio,)], first_position=[position_advance(text)])
            stored = store(table, router.stream_of, len(router.streams))
            lengths = np.asarray([audio.length])
            plan = plan_cached(cache.lengths, cache.capacity, lengths, stored, causal=False, device=torch.device("cpu"))
            cache.begin(stored.order, np.zeros(audio.length, dtype=np.int64), whole=True)
            layout = Layout(stored, torch.from_numpy(stored.position_ids), plan, cache)
            streams, _ = backbone(self._streams(backbone, layout, [(audio,)]), layout)
        message = "latents after cached text differ from those after the text itself; call layout.attend with the index of each layer"
        self.require_close(layout.take(streams, Role.LATENT), expected, self.tolerance, "cache", message)

    def test_conditions(self) -> None:
        """A backbone that takes conditions lets each clip see its own, and a clip without any is as in a model without them."""
        with torch.no_grad():
            for way in ("cross", "global"):
                backbone = self.built()
                documents = [self._speaking(backbone, words) for words in (3, 6, 4)]
                try:
                    backbone.take_conditions({way: ["given"]})
                except SpecError:
                    continue
                _move(backbone)
                (_, none), _ = self.run(backbone, documents)
                one, other = (self._run_conditioned(backbone, documents, way, changed=changed) for changed in (False, True))
                edges = np.cumsum([0, *(document[-1].num_tokens for document in documents)]).tolist()
                first, middle, last = (slice(begin, end) for begin, end in pairwise(edges))
                unchanged = f"a clip without conditions that enter as '{way}' differs from one in a model that has none"
                self.require_close(one[last], none[last], self.tolerance, "conditions", unchanged)
                self.require_close(other[first], one[first], self.tolerance, "conditions", f"a clip sees '{way}' conditions of another")
                seen = not torch.allclose(other[middle], one[middle], rtol=0.0, atol=1e-6)
                self.require(seen, "conditions", f"a clip is the same with other conditions that enter as '{way}'; expected it to see them")

    def _run_conditioned(self, backbone: Backbone, documents: Sequence[Sequence[Segment]], way: str, *, changed: bool) -> Tensor:
        """Return the latents of three documents, of which the first and the second have conditions; those of the second may change."""
        table, router = SegmentTable.from_samples(documents), self.router()
        stored = store(table, router.stream_of, len(router.streams))
        given = torch.cat([noise(1, 4, backbone.condition_dim), noise(3 if changed else 2, 3, backbone.condition_dim)])
        hidden, none = {"given": given}, dict[str, Tensor]()
        by_way = (hidden, none) if way == "cross" else (none, hidden)
        clips = [[("given", 0)], [("given", 1)], []]
        conditions = join_conditions(*by_way, {"given": np.asarray([4, 3])}, clips, like=given)
        plan = plan_attention(table, stored, device=torch.device("cpu"))
        seen = conditions.seen(stored, _spans(documents), dtype=given.dtype).at(_times(documents))
        layout = Layout(stored, torch.from_numpy(stored.position_ids), plan, conditions=seen)
        streams, _ = backbone(self._streams(backbone, layout, documents), layout)
        return layout.take(streams, Role.LATENT)

    def test_empty_streams(self) -> None:
        """With `takes_empty_streams`, a stream without tokens is left empty in inference, and the others come out as next to padding."""
        backbone = self.built()
        if not backbone.takes_empty_streams or not backbone.takes_text:
            return
        documents = [_silent(4), _silent(6)]
        with torch.no_grad():
            padded, layout, _ = self._forward(backbone, documents)
            expected = layout.take(padded, Role.TEXT)
            for cache in (None, self._empty_cache(backbone, documents)):
                streams, layout, _ = self._forward(backbone, documents, cache=cache, pad_empty=False)
                found = [list(stream.shape) for stream in streams]
                wanted = [[length, backbone.hidden_dim] for length in layout.stored.stream_lengths]
                self.require(found == wanted, "empty_streams", f"streams came out as {found}, expected {wanted}")
                message = "hidden text differs from that next to padding"
                self.require_close(layout.take(streams, Role.TEXT), expected, self.tolerance, "empty_streams", message)

    def test_expert_parameters(self) -> None:
        """Parameters of a stream are the backbone's own, named once, and belong to no other stream."""
        backbone = self.built()
        own = {id(parameter) for parameter in backbone.parameters()}
        taken: dict[int, str] = {}
        for stream in self.router().streams:
            for parameter in backbone.expert_parameters(stream):
                known, before = id(parameter) in own, taken.get(id(parameter))
                self.require(known, "expert_parameters", f"stream '{stream}' names a parameter that the backbone does not have")
                message = f"a parameter of stream '{stream}' was already named by stream '{before}'; expected disjoint streams"
                self.require(before is None, "expert_parameters", message)
                taken[id(parameter)] = stream

    def test_gradients(self) -> None:
        """Every parameter takes part in every backward pass, even for a batch without audio."""
        for given, words in (("text and audio", 5), ("text alone", 0)):
            backbone = self.built().train()
            silent = [_silent(4)] if backbone.takes_text else []
            documents = [self._speaking(backbone, words)] if words else silent
            streams, layout, losses = self._forward(backbone, documents)
            total = sum((stream.square().sum() for stream in streams), start=backbone.head(layout.take(streams, Role.TEXT)).sum())
            total = sum((loss for loss, _ in losses.values()), start=total)
            self.require_gradients(backbone, total, "gradients", f"a batch of {given}")

    def _forward(
        self,
        backbone: Backbone,
        documents: Sequence[Sequence[Segment]],
        *,
        router: Router | None = None,
        cache: KVCache | None = None,
        pad_empty: bool = True,
    ) -> tuple[list[Tensor], Layout, LossTerms]:
        """Run packed documents; if an empty cache of as many rows is given, write them to it."""
        router = router or self.router()
        table = SegmentTable.from_samples(documents)
        stored = store(table, router.stream_of, len(router.streams), pad_empty=pad_empty)
        plan = plan_attention(table, stored, device=torch.device("cpu"))
        if cache is not None:
            cache.begin(stored.order, table.document[table.token_segments()], whole=False)
        layout = Layout(stored, torch.from_numpy(stored.position_ids), plan, cache)
        if backbone.takes_times:
            nothing = torch.zeros(0, backbone.condition_dim)
            conditions = join_conditions({}, {}, {}, [[] for document in documents if document[-1].is_made], like=nothing)
            layout = layout.with_conditions(conditions.seen(stored, _spans(documents), dtype=nothing.dtype).at(_times(documents)))
        streams, losses = backbone(self._streams(backbone, layout, documents), layout)
        return streams, layout, losses

    @staticmethod
    def _speaking(backbone: Backbone, words: int, *, offset: int = 0, positions: PositionRule = PositionRule.SHARED) -> tuple[Segment, ...]:
        """Return a document of text, if the backbone takes any, and a noise segment with four frames more than there are words."""
        frames = words + 4
        audio = audio_segment(
            role=Role.LATENT,
            attend=Attend.NOISE,
            num_frames=frames,
            num_tokens=frames + backbone.lead_tokens,
            num_samples=0,
            boundary_ids=(1, 2) if backbone.takes_text else (),
            positions=positions,
        )
        return (*_silent(words, offset=offset), audio) if backbone.takes_text else (audio,)

    def _empty_cache(self, backbone: Backbone, documents: Sequence[Sequence[Segment]]) -> KVCache:
        """Returns a cache with a row for each document and room for all of it."""
        return KVCache(
            num_rows=len(documents),
            capacity=max(sum(segment.length for segment in document) for document in documents),
            num_layers=len(backbone.layers),
            num_kv_heads=backbone.num_kv_heads,
            head_dim=backbone.head_dim,
        )

    def _streams(self, backbone: Backbone, layout: Layout, documents: Sequence[Sequence[Segment]]) -> list[Tensor]:
        """Return the hidden tokens of documents, `[N_e, H]` of each stream; frames are noise that depends on their
        number."""
        segments = [segment for document in documents for segment in document]
        counts = [segment.num_tokens for segment in segments if segment.role == Role.LATENT]
        frames = [noise(count, count, backbone.hidden_dim) for count in counts]
        blocks = {
            Role.TEXT: backbone.embed(
                torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.from_numpy(one.token_ids) for one in segments)])
            ),
            Role.LATENT: torch.cat([*frames, torch.zeros(0, backbone.hidden_dim)]),
        }
        return layout.place(blocks, backbone.hidden_dim)


def _silent(words: int, *, offset: int = 0) -> tuple[Segment, ...]:
    """Return a document of only text."""
    return (text_segment([3 + offset + word for word in range(words)], bos=1, eos=2),)


def _move(backbone: Backbone) -> None:
    """Move all parameters away from where they begin, such as zero."""
    for seed, parameter in enumerate(backbone.parameters()):
        parameter.add_(0.05 * noise(seed, *parameter.shape).to(parameter))


def _spans(documents: Sequence[Sequence[Segment]]) -> list[tuple[int, int]]:
    """Return the tokens [first, end) of the clips that are made, the last segment of each document."""
    return [(one.first, one.end) for one in find_conditioned(documents)]


def _times(documents: Sequence[Sequence[Segment]]) -> Tensor:
    """Return a timestep for each clip that is made, which depends on its length only."""
    return torch.tensor([1.0 / document[-1].num_frames for document in documents if document[-1].is_made])
