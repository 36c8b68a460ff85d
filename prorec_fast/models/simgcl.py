"""SimGCL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from prorec_fast import _checks

from .lightgcn import LightGCN

if TYPE_CHECKING:
    from prorec_fast.data import Dataset


class SimGCL(LightGCN):
    """LightGCN, and a contrast between two noisy views of it (Yu et al., 2022, arXiv 2112.08679).

    Args:
        num_layers, combine: as for `LightGCN`. SimGCL averages layers 1..L; "sum" is L times that: the same ranking and
            the same cosines in the contrast, and BPR as steep as that of the LightGCN it is compared with.
        noise: eps, the length of what is added to every row of every layer of a view.
        temperature: of the contrast.
        contrast_weight: lambda, the factor on the contrast of users plus that of items; 0 leaves it out.
    """

    name = "simgcl"

    def __init__(
        self,
        data: Dataset,
        dim: int = 32,
        num_layers: int = 3,
        combine: str = "sum",
        *,
        noise: float = 0.1,
        temperature: float = 0.2,
        contrast_weight: float = 0.2,
        init_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(data, dim, num_layers, combine, init_scale=init_scale, seed=seed)
        _checks.positive_number("noise", noise)
        _checks.temperature("temperature", temperature)
        _checks.non_negative_number("contrast_weight", contrast_weight)
        self.noise, self.temperature, self.contrast_weight = noise, temperature, contrast_weight

    def auxiliary_terms(self, users: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """InfoNCE between two views of the batch's distinct users, plus that of its distinct positive items."""
        from prorec_fast.losses import info_nce
        from prorec_fast.ops.distinct import distinct

        if not self.contrast_weight:
            return {}
        (user_a, item_a), (user_b, item_b) = self._noisy_view(), self._noisy_view()

        def contrast(a: Tensor, b: Tensor, batch: Tensor) -> Tensor:
            rows = distinct(batch)
            return info_nce(a, b, rows=rows.values, count=rows.count, temperature=self.temperature)

        both = contrast(user_a, user_b, users) + contrast(item_a, item_b, positives)
        return {"contrast": self.contrast_weight * both}

    def _noisy_view(self) -> tuple[Tensor, Tensor]:
        from prorec_fast.graph import propagate

        tables = self.user_embedding, self.item_embedding
        return propagate(self.train_graph, *tables, self.num_layers, combine=self.combine, noise=self.noise)

    def config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("noise", "temperature", "contrast_weight")}
        return {**super().config(), **own}
