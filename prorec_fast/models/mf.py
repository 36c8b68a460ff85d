"""Matrix factorisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .discriminative import Discriminative

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph


class MF(Discriminative):
    """The tables are the representations (Koren et al., 2009; trained with BPR: Rendle et al., 2009)."""

    name = "mf"
    capturable = True

    def representation(self, graph: BipartiteGraph | None = None) -> tuple[Tensor, Tensor]:
        """The two tables themselves: the same for every graph."""
        return self.user_embedding, self.item_embedding
