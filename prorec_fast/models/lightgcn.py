"""LightGCN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .discriminative import Discriminative

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph

COMBINES = ("sum", "mean", "last")


class LightGCN(Discriminative):
    """Tables smoothed over the graph by `propagate` (He et al., 2020, arXiv 2002.02126).

    Args:
        num_layers: rounds of propagation.
        combine: "sum" adds layers 1..L, as the code released with ProEx and ProMax does (default); "mean" averages
            layers 0..L, as the LightGCN paper does; "last" takes layer L.
    """

    name = "lightgcn"
    capturable = True

    def __init__(
        self,
        data: Dataset,
        dim: int = 32,
        num_layers: int = 3,
        combine: str = "sum",
        *,
        init_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(f"num_layers: want a positive integer, got {num_layers!r}")
        if combine not in COMBINES:
            raise ValueError(f"combine: want one of {', '.join(COMBINES)}, got {combine!r}")
        super().__init__(data, dim, init_scale=init_scale, seed=seed)
        self.num_layers, self.combine = num_layers, combine

    def representation(self, graph: BipartiteGraph | None = None) -> tuple[Tensor, Tensor]:
        """Both tables after `num_layers` rounds over `graph` (the training graph when None)."""
        from prorec_fast.graph import propagate

        graph = self.train_graph if graph is None else graph
        return propagate(graph, self.user_embedding, self.item_embedding, self.num_layers, combine=self.combine)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "num_layers": self.num_layers, "combine": self.combine}
