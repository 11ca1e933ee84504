"""The codec that a run would have before its first step, without the run: for encoding its data beforehand."""

from __future__ import annotations

from typing import cast

from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError, did_you_mean, listed
from soundomni.core.interfaces import Codec
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot, Spec
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.samples import SampleWriter
from soundomni.train.latent_fitting import fit_codec
from soundomni.train.run_tokenizer import new_tokenizer
from soundomni.train.without_memory import model_without_memory


def codec_of_spec(spec: Spec, mixture: Mixture | None, *, of: str | None = None, trust_class_paths: bool = False) -> tuple[Slot, Codec]:
    """Return the slot of a spec's codec, and the codec: with the weights that it names, or those of the starting model, and fitted.

    Args:
        spec: the spec.
        mixture: its data, on whose first clips a codec is fitted as in a run; None if there is none.
        of: the modality whose codec it is; None for the first one that is made.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        SpecError: there is no such codec, or its weights would be random.
        SoundOmniError: a plugin or a file cannot be used.
    """
    if spec.codec is not None:
        return spec.codec.codec, built_codec(spec.codec.codec, trust_class_paths=trust_class_paths)
    name, slot = _chosen(spec, of)
    start, fresh = spec.of_model.start, spec.of_model.start_fresh or []
    if start is not None and f"{name}.codec" not in fresh:
        started = SoundOmni.from_pretrained(start)
        before = started.spec.of_model.used.get(name)
        if before is not None and before.codec is not None and before.codec.class_path == slot.class_path:
            modality = next(one for one in started.model.each() if one.name == name)
            return slot, cast(Codec, modality.codec)
    codec = built_codec(slot, trust_class_paths=trust_class_paths)
    if not codec.is_fitted and mixture is not None:
        _fit(codec, name, spec, mixture, trust_class_paths=trust_class_paths)
    return slot, codec


def built_codec(slot: Slot, *, trust_class_paths: bool = False) -> Codec:
    """Return the codec of a slot. Raise SpecError if its weights would be random."""
    arguments = registry.validate_init_args("codec", slot, trust_class_paths=trust_class_paths)
    codec = cast(Codec, registry.build("codec", slot, trust_class_paths=trust_class_paths))
    if "weights" in arguments and arguments["weights"] is None and next(codec.parameters(), None) is not None:
        raise SpecError(
            f"codec '{slot.class_path}' has no weights, so they would be random, and other ones in each run. Name a file in its "
            "argument weights, or take the codec of a model with --model"
        )
    return codec


def _chosen(spec: Spec, of: str | None) -> tuple[str, Slot]:
    """Return name and codec of a modality. Raise SpecError if there is none."""
    codecs = {name: one.codec for name, one in spec.of_model.used.items() if one.codec is not None}
    name = of if of is not None else next(iter(spec.of_model.all_made), None)
    if name is None or name not in codecs:
        near = did_you_mean(of or "", codecs)
        raise SpecError(f"--of is {of!r}; the spec has a codec for {listed(list(codecs)) if codecs else 'nothing'}.{near}")
    return name, codecs[name]


def _fit(codec: Codec, name: str, spec: Spec, mixture: Mixture, *, trust_class_paths: bool) -> None:
    """Fit a codec on the clips that a new run of the spec would fit it on."""
    assert spec.data is not None, "the mixture is made of it"
    model = model_without_memory(spec, trust_class_paths=trust_class_paths)
    tokenizer = new_tokenizer(spec.of_model.tokenizer, mixture)
    writer = SampleWriter(segment_writer(model, spec.of_model, tokenizer=tokenizer), dropout=spec.data.condition_dropout)
    with PackedLoader(mixture=mixture, writer=writer, spec=spec.data) as loader:
        fit_codec(codec, name, loader)
