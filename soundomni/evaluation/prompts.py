"""The prompt for an item of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soundomni.core.interfaces import Item
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni


def prompt_of(item: Item, model: SoundOmni | Chain) -> str:
    """Return the first caption of an item; an empty text if the model takes none."""
    return item.captions[0] if model.takes_text else ""
