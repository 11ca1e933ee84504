"""Whether a smaller model can guess ahead for another one: both have to make the same tokens after the same prompts."""

from __future__ import annotations

from typing import Protocol

import torch

from soundomni.core.assembly.modality import MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.interfaces import DraftedSampler, LevelsConnector, Sampler
from soundomni.core.pretrained.fingerprint import modality_fingerprint
from soundomni.core.representation import Representation
from soundomni.core.spec.schema import ModalitySpec
from soundomni.core.tokenizer import TextTokenizer


class Ready(Protocol):
    """A model ready for use, as far as drafts are concerned."""

    model: UnifiedModel
    tokenizer: TextTokenizer

    def made_spec(self, of: str | None = None) -> ModalitySpec:
        """Return the part of the spec about a modality that the model makes."""
        ...


def check_draft(model: Ready, draft: Ready, sampler: Sampler, *, of: str) -> None:
    """Raise SpecError, in one line, if the draft cannot guess the codes of the model's modality `of`, or the sampler takes no draft."""
    slot = model.made_spec(of).sampler
    if not isinstance(sampler, DraftedSampler):
        name = "" if slot is None else slot.class_path
        raise SpecError(f"sampler is '{name}', which does not take a draft. Leave out the draft, or use the sampler speculative")
    made = [one.name for one in draft.model.all_made]
    if of not in made:
        raise SpecError(f"the draft makes {', '.join(made) or 'nothing'}; expected {of}.{did_you_mean(of, made)}")
    if draft.model.device != model.model.device:
        raise SpecError(f"the draft is on {draft.model.device}, but the model is on {model.model.device}. Load both on the same device")
    own, other = (modality_fingerprint(one.model, of, one.made_spec(of)) for one in (model, draft))
    if own != other:
        raise SpecError(
            f"the codec of the draft has the fingerprint {other[:8]}; expected that of the model, {own[:8]}, so that equal codes mean "
            "equal sound. Train the draft with the model's codec"
        )
    if draft.tokenizer.to_json() != model.tokenizer.to_json():
        raise SpecError(
            f"the text vocabulary of the draft has {draft.tokenizer.vocab_size} entries; expected the same {model.tokenizer.vocab_size} as "
            "those of the model. Train the draft with the model's tokenizer (model.tokenizer.path)"
        )
    own_texts, other_texts = (_texts(one.model) for one in (model, draft))
    if own_texts != other_texts:
        raise SpecError(
            f"the draft reads texts {other_texts or 'as text tokens'}; expected {own_texts or 'text tokens'}, as the model does. Train the "
            "draft with the model's encoders"
        )
    if isinstance(draft.model.made(of).connector, LevelsConnector):
        raise SpecError("the draft predicts each level from those below it, but all levels are guessed at once. Use the connector codes")
    if not _same_tokens(model.model.made(of), draft.model.made(of)):
        raise SpecError("the draft makes the codes in another order than the model. Train it with the model's objective")


def _texts(model: UnifiedModel) -> str:
    """Return which encoders read texts and other conditions, and how these enter: words for an error, equal for models
    that read them in the same way."""
    readers = [one for one in model.all_encoders if one not in model.all_heard]
    return ", ".join(f"by '{one.name}' ({type(one.encoder).__name__}, {one.enters})" for one in sorted(readers, key=lambda one: one.name))


def _same_tokens(modality: MadeModality, other: MadeModality) -> bool:
    """Return whether two objectives make the same tokens of a clip."""
    if modality.objective.predicts != other.objective.predicts:
        return False
    spec = modality.codec.spec
    sizes = torch.tensor(spec.codebook_sizes)[:, None]
    frames = len(sizes) + 2
    codes = (torch.arange(len(sizes) * frames).reshape(len(sizes), frames) % sizes)[None]
    clip = Representation(codes, torch.tensor([frames]), spec, (frames,))
    return torch.equal(modality.objective.given(clip), other.objective.given(clip))
