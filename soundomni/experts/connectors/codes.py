"""The connector of codes: an embedding of each id in, a head for each level out (SoundStorm, Borsos et al. 2023, section 3.1).

Shape letters: N tokens, K levels, V_k vocabulary of level k, H hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Connector
from soundomni.core.representation import HIDDEN, TokenSpec
from soundomni.experts.connectors.projection import initialize
from soundomni.experts.sinusoids import check_even, place_embedding


class CodesConnector(Connector):
    """Maps ids `[N, K]` → `[N, H]` by the sum of one embedding per level, and back by one linear head per level; the heads start at zero.

    A hidden cell has an embedding of its own at every level. Generated tokens also carry their place in the clip, like those of
    `linear`, but no timestep: the hidden cells themselves say what is unknown.

    Args:
        tokens: vocabulary of each id in, and classes of each id out (runtime).
        hidden_dim: H (runtime).
        generates: whether tokens are generated: if so, they carry their place, and there are heads (runtime).
        std: standard deviation of the embeddings of one level at the start of training; 0.5 is about that of the places, which would
            otherwise drown the codes at first.

    Raises:
        SpecError: the tokens are numbers, or `std` is not above 0.
    """

    def __init__(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool, std: float = 0.5) -> None:
        super().__init__()
        if isinstance(tokens.inputs, int) or isinstance(tokens.outputs, int):
            raise SpecError("connector 'codes' maps codes, but these tokens are numbers. Use a connector of numbers, such as linear")
        if not std > 0:
            raise SpecError(f"std of connector 'codes' is {std}; expected a number above 0")
        self.hidden_dim = hidden_dim
        tables = [nn.Embedding(size + 1, hidden_dim) for size in tokens.inputs]  # the last row is for HIDDEN
        for table in tables:
            nn.init.normal_(table.weight, std=std)
        self.embeddings = nn.ModuleList(tables)
        self.heads: nn.ModuleList | None = None
        if generates:
            check_even(hidden_dim)
            self.heads = nn.ModuleList(initialize(nn.Linear(hidden_dim, classes), std=0.0) for classes in tokens.outputs)

    def enter(self, tokens: Tensor, *, timesteps: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Map ids `[N, K]`, some of which may be HIDDEN, to `[N, H]`.

        A connector that generates needs `timesteps` `[N]`, which it does not use, and `frames` `[N]`.

        Raise ValueError if they are missing, or given to a connector that does not generate.
        """
        if self.heads is None and (timesteps is not None or frames is not None):
            raise ValueError("this connector was built with generates=False and takes neither timesteps nor frames")
        hidden = reduce(torch.add, (embed_ids(table, ids) for table, ids in zip(self.embeddings, tokens.unbind(1), strict=True)))
        if self.heads is None:
            return hidden
        if timesteps is None or frames is None:
            raise ValueError("this connector was built with generates=True and needs both timesteps and frames")
        return hidden + place_embedding(frames, self.hidden_dim).to(hidden.dtype)

    def leave(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to the logits of all levels, one after the other: `[N, V_1 + … + V_K]`; zero at the start of training.

        Raise TypeError if the connector does not generate.
        """
        return torch.cat([head(hidden) for head in self._generating_heads()], dim=-1)

    def leave_level(self, hidden: Tensor, level: int, sizes: Sequence[int]) -> Tensor:
        """Map `[N, H]` to the logits of one level, `[N, V_level]`.

        Raise TypeError if the connector does not generate.
        """
        out: Tensor = self._generating_heads()[level](hidden)
        return out

    def _generating_heads(self) -> nn.ModuleList:
        if self.heads is None:
            raise TypeError("this connector was built with generates=False and cannot map tokens back")
        return self.heads


def embed_ids(table: nn.Module, ids: Tensor) -> Tensor:
    """Return the embeddings `[N, H]` of ids `[N]` of one level."""
    assert isinstance(table, nn.Embedding)
    embedded: Tensor = table(ids.masked_fill(ids == HIDDEN, table.num_embeddings - 1))
    return embedded
