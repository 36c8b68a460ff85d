"""LR-GCCF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from prorec_fast._checks import positive_int

from .discriminative import Discriminative

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph


class LRGCCF(Discriminative):
    """Every layer of the propagated tables side by side, each node a neighbour of itself (Chen et al., 2020, arXiv
    2001.10167, whose linear transforms fold into the tables): layer l adds its own inner product to the score.

    Args:
        num_layers: rounds of propagation, L: representations are (L + 1) dim wide.
    """

    name = "gccf"
    capturable = True

    def __init__(
        self, data: Dataset, dim: int = 32, num_layers: int = 3, *, init_scale: float = 1.0, seed: int = 0
    ) -> None:
        positive_int("num_layers", num_layers)
        super().__init__(data, dim, init_scale=init_scale, seed=seed)
        self.num_layers = num_layers

    @property
    def representation_dim(self) -> int:
        return (self.num_layers + 1) * self.dim

    def representation(self, graph: BipartiteGraph | None = None) -> tuple[Tensor, Tensor]:
        """Layers 0..L over `graph` (the training graph when None), side by side."""
        from prorec_fast.graph import propagate

        graph = self.train_graph if graph is None else graph
        tables = self.user_embedding, self.item_embedding
        return propagate(graph, *tables, self.num_layers, combine="concat", self_loops=True)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "num_layers": self.num_layers}
