"""Conformance of backbones.

Shape letters: N tokens, N_e tokens of stream e, H hidden dimensions, V vocabulary, E expert streams.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from soundomni.core.attention import plan_attention
from soundomni.core.interfaces import Backbone, LossTerms, Router
from soundomni.core.layout import Layout, store
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, SegmentTable, audio_segment, text_segment
from soundomni.testing.suite import ModuleSuite, noise, seeded


class TwoStreams(Router):
    """Text and features in "und", latents and codes in "gen"."""

    @property
    def streams(self) -> tuple[str, ...]:
        """("und", "gen")."""
        return ("und", "gen")

    def stream_of(self, role: Role) -> int:
        """Returns 0 for TEXT and FEATURES, 1 for LATENT and CODES."""
        return int(role in (Role.LATENT, Role.CODES))


class BackboneSuite(ModuleSuite):
    """Clauses of `soundomni.core.interfaces.Backbone`.

    Attributes:
        vocab_size: V that backbones are made with.
        tolerance: by how much a document alone may differ from the same document in a pack, relative above magnitude 1.
    """

    kind: ClassVar[str] = "backbone"
    vocab_size: ClassVar[int] = 40
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self, *, vocab_size: int, router: Router) -> Backbone:
        """Returns a new backbone, small, on the CPU; the arguments are what the assembly passes."""

    def router(self) -> Router:
        """Returns the router that backbones are made with: TwoStreams, unless overridden."""
        return TwoStreams()

    def built(self, seed: int = 0) -> Backbone:
        """Returns a backbone in evaluation mode with weights drawn from `seed`."""
        backbone: Backbone = seeded(lambda: self.make(vocab_size=self.vocab_size, router=self.router()), seed).eval()
        return backbone

    def outputs(self, plugin: Any) -> list[Tensor]:
        """Runs two documents in one pack."""
        (text, latents), _ = self.run(plugin, [_speaking(3), _speaking(6)])
        return [plugin.head(text), latents]

    def run(self, backbone: Backbone, documents: Sequence[Sequence[Segment]]) -> tuple[tuple[Tensor, Tensor], LossTerms]:
        """Packs documents and returns hidden text and latent tokens `[N_role, H]` in token order, and auxiliary losses."""
        streams, layout, losses = self._forward(backbone, documents)
        return (layout.take(streams, Role.TEXT), layout.take(streams, Role.LATENT)), losses

    def test_sizes(self) -> None:
        """`hidden_dim`, `num_kv_heads` and `head_dim` are known."""
        backbone = self.built()
        for name in ("hidden_dim", "num_kv_heads", "head_dim"):
            found = getattr(backbone, name, None)
            self.require(isinstance(found, int) and found > 0, "sizes", f"{name} is {found!r}, expected an int from 1")

    def test_layers(self) -> None:
        """`layers` is a ModuleList of the repeated layers, which are part of the module."""
        backbone = self.built()
        layers = backbone.layers
        good = isinstance(layers, nn.ModuleList) and len(layers) > 0
        self.require(good, "layers", f"layers is a {type(layers).__name__} of {len(layers)}, expected a ModuleList of at least one layer")
        inside = {id(module) for module in backbone.modules()}
        outside = [index for index, layer in enumerate(layers) if id(layer) not in inside]
        self.require(not outside, "layers", f"the layers {outside} are no submodules of the backbone, expected all to be")

    def test_embed(self) -> None:
        """Token ids `[N]` become `[N, H]`, N = 0 included."""
        backbone = self.built()
        for count in (5, 0):
            hidden, wanted = backbone.embed(torch.arange(count)), [count, backbone.hidden_dim]
            good = list(hidden.shape) == wanted and hidden.dtype.is_floating_point
            self.require(good, "embed", f"{count} ids gave {hidden.dtype} {list(hidden.shape)}, expected floating point {wanted}")

    def test_head(self) -> None:
        """Hidden tokens `[N, H]` become logits `[N, V]`, N = 0 included."""
        backbone = self.built()
        for count in (5, 0):
            logits, wanted = backbone.head(noise(0, count, backbone.hidden_dim)), [count, self.vocab_size]
            self.require(list(logits.shape) == wanted, "head", f"{count} tokens gave logits {list(logits.shape)}, expected {wanted}")

    def test_streams(self) -> None:
        """Streams come out as many and as long as they went in, finite, with losses that the router names."""
        backbone = self.built()
        names = self.router().loss_names
        for documents in ([_speaking(5)], [_silent(4)]):
            streams, layout, losses = self._forward(backbone, documents)
            found = [list(stream.shape) for stream in streams]
            wanted = [[length, backbone.hidden_dim] for length in layout.stored.stream_lengths]
            self.require(found == wanted, "streams", f"streams came out as {found}, expected {wanted}")
            finite = all(bool(stream.isfinite().all()) for stream in streams)
            self.require(finite, "streams", "streams came out with values that are not finite")
            self.require(set(losses) <= set(names), "streams", f"losses {list(losses)} were returned, the router names {list(names)}")

    def test_packing(self) -> None:
        """A document comes out the same alone and packed with another."""
        backbone = self.built()
        documents = [_speaking(3), _speaking(6)]
        with torch.no_grad():
            together, _ = self.run(backbone, documents)
            apart = [self.run(backbone, [document])[0] for document in documents]
        for index, name in enumerate(("text", "latents")):
            expected = torch.cat([parts[index] for parts in apart])
            message = f"hidden {name} of two packed documents differ from those of each alone"
            self.require_close(together[index], expected, self.tolerance, "packing", message)

    def test_causal(self) -> None:
        """A text token does not see what comes after it."""
        backbone = self.built()
        with torch.no_grad():
            (short, _), _ = self.run(backbone, [_silent(4)])
            (long, _), _ = self.run(backbone, [_silent(9)])
        count = len(short) - 1  # the last token closes the text
        message = f"the first {count} text tokens change when the text goes on"
        self.require_close(long[:count], short[:count], self.tolerance, "causal", message)

    def test_context(self) -> None:
        """A noise segment sees the text before it."""
        backbone = self.built()
        with torch.no_grad():
            (_, first), _ = self.run(backbone, [_speaking(5)])
            (_, second), _ = self.run(backbone, [_speaking(5, offset=7)])
        self.require(not torch.equal(first, second), "context", "latents are the same after another text, expected them to attend to it")

    def test_expert_parameters(self) -> None:
        """Parameters of a stream are the backbone's own, named once, and of no other stream."""
        backbone = self.built()
        own = {id(parameter) for parameter in backbone.parameters()}
        taken: dict[int, str] = {}
        for stream in self.router().streams:
            for parameter in backbone.expert_parameters(stream):
                known, before = id(parameter) in own, taken.get(id(parameter))
                self.require(known, "expert_parameters", f"stream '{stream}' names a parameter that the backbone does not have")
                message = f"a parameter of stream '{stream}' was named by stream '{before}' already, expected disjoint streams"
                self.require(before is None, "expert_parameters", message)
                taken[id(parameter)] = stream

    def test_gradients(self) -> None:
        """Every parameter takes part in every backward pass, also of a batch without audio."""
        for given, documents in (("text and audio", [_speaking(5)]), ("text alone", [_silent(4)])):
            backbone = self.built().train()
            streams, layout, losses = self._forward(backbone, documents)
            total = sum((stream.square().sum() for stream in streams), start=backbone.head(layout.take(streams, Role.TEXT)).sum())
            total = sum((loss for loss, _ in losses.values()), start=total)
            self.require_gradients(backbone, total, "gradients", f"a batch of {given}")

    def _forward(self, backbone: Backbone, documents: Sequence[Sequence[Segment]]) -> tuple[list[Tensor], Layout, LossTerms]:
        router, device = self.router(), torch.device("cpu")
        table = SegmentTable.from_samples(documents)
        stored = store(table, router.stream_of, len(router.streams))
        layout = Layout(stored, torch.from_numpy(stored.position_ids), plan_attention(table, stored, device=device))
        segments = [segment for document in documents for segment in document]
        frames = [noise(segment.num_frames, segment.num_frames, backbone.hidden_dim) for segment in segments if segment.role == Role.LATENT]
        blocks = {
            Role.TEXT: backbone.embed(torch.cat([torch.from_numpy(segment.token_ids) for segment in segments])),
            Role.LATENT: torch.cat([*frames, torch.zeros(0, backbone.hidden_dim)]),
        }
        streams, losses = backbone(layout.place(blocks, backbone.hidden_dim), layout)
        return streams, layout, losses


def _silent(words: int, *, offset: int = 0) -> tuple[Segment, ...]:
    """A document of text alone."""
    return (text_segment([3 + offset + word for word in range(words)], bos=1, eos=2),)


def _speaking(words: int, *, offset: int = 0) -> tuple[Segment, ...]:
    """A document of text and a noise segment of four frames more than there are words."""
    audio = audio_segment(
        role=Role.LATENT,
        attend=Attend.NOISE,
        num_frames=words + 4,
        num_samples=0,
        boundary_ids=(1, 2),
        positions=PositionRule.SHARED,
    )
    return (*_silent(words, offset=offset), audio)
