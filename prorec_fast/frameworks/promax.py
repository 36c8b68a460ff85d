"""ProMax (arXiv 2604.26231): a base model under two reshaping losses, taught by profiles and by an enriched graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from prorec_fast.models.discriminative import Discriminative, batch_bpr

from .base import Framework, Objective, with_decay

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.losses import TeacherDistribution
    from prorec_fast.models import Recommender
    from prorec_fast.ops.distinct import Distinct

WHITENINGS = ("separate", "joint")


@dataclass(frozen=True)
class ProMax(Framework):
    """BPR + supervised reshaping (sdr) + self-supervised reshaping (s2dr) + weight decay.

    With z the representations on the training graph, z' those of the same tables on the enriched graph, U and I the
    distinct users and positive items of a batch, P the whitened profiles (Eq. 2-4):

        sdr  = mean_{u in U} w_u CE(softmax cos(P_u, P_items)/tau_p, softmax cos(z_u, z_items)/tau)      (Eq. 12-13)
        s2dr = nce(z_U, z'_U) + nce(z_I, z'_I) + (nce(z_u, z'_i) + nce(z'_u, z_i)) / 2                   (Eq. 14)
        loss = bpr + sdr_weight * sdr + s2dr_weight * s2dr + reg * (sum of squares of all parameters)

    The defaults are the constants of the authors' released code; `ProMax.preset("paper")` has the paper's.

    Attributes:
        sdr_weight, s2dr_weight: factors on the two reshaping losses; 0 leaves one out.
        reg: factor on the sum of squares of all parameters.
        temperature: tau of the student's distribution and of the contrast.
        teacher_temperature: tau_p.
        weight_range: clamp of w_u = 1 - H(p_u) / log N.
        sdr_eps: added to the student's probabilities inside the logarithm.
        contrast_eps: added inside the logarithm of the contrast on one graph's own users and items.
        profile_dim: width of the whitened profiles; None means the model's.
        whitening: "separate" fits one PCA to the users and one to the items, so a user's and an item's coordinates
            belong to different bases; "joint" fits one to both, so their cosine keeps its meaning.
        warmup_epochs: s2dr is left out for so many epochs. A cosine's gradient goes as 1 / norm, so while the tables
            are as small as they start, the contrast swamps BPR whatever its weight, and validation dips until the
            norms have grown; BPR grows them first, in about a thousand steps.
    """

    name: ClassVar[str] = "promax"
    sdr_weight: float = 0.5
    s2dr_weight: float = 0.1
    reg: float = 1e-6
    temperature: float = 0.2
    teacher_temperature: float = 0.2
    weight_range: tuple[float, float] = (0.1, 1.0)
    sdr_eps: float = 1e-8
    contrast_eps: float = 1e-5
    profile_dim: int | None = None
    whitening: str = "separate"
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        for field in ("sdr_weight", "s2dr_weight", "reg", "sdr_eps", "contrast_eps", "warmup_epochs"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ValueError(f"{field}: want a finite number of at least 0, got {getattr(self, field)!r}")
        for field in ("temperature", "teacher_temperature"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ValueError(f"{field}: want a finite number above 0, got {getattr(self, field)!r}")
        low, high = self.weight_range
        if not 0 <= low <= high:
            raise ValueError(f"weight_range: want 0 <= low <= high, got {self.weight_range!r}")
        if self.profile_dim is not None and self.profile_dim < 1:
            raise ValueError(f"profile_dim: want a positive integer or None, got {self.profile_dim!r}")
        if self.whitening not in WHITENINGS:
            raise ValueError(f"whitening: want one of {', '.join(WHITENINGS)}, got {self.whitening!r}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ProMax:
        """The settings of the preset "released" or "paper", with single fields replaced.

        Raises:
            ValueError: no such preset.
        """
        from .presets import get_preset

        return replace(get_preset(name).promax, **overrides)

    def bind(self, model: Recommender, data: Dataset) -> Objective:
        """Whiten the profiles, build the teacher and the enriched graph, once per run.

        A data set without profiles gets co-occurrence vectors from its training matrix in their place; the objective's
        `notes` say so.

        Raises:
            ValueError: a generative model.
        """
        if not isinstance(model, Discriminative):
            raise ValueError(f"model: ProMax wants a discriminative one, {model.name} is not")
        return _ProMaxObjective(self, model, data if data.has_profiles else data.with_cooccurrence_profiles())


def whitened_profiles(users: Tensor, items: Tensor, dim: int, mode: str) -> tuple[Tensor, Tensor]:
    """float32 [M, dim], [N, dim] from profiles [M, t], [N, t]: see `ProMax.whitening`; dim is at most t."""
    from prorec_fast.retrieval import Whitening

    dim = min(dim, users.shape[1])
    if mode == "joint":
        both = Whitening(dim).fit(torch.cat([users, items]))
        return both.transform(users), both.transform(items)
    return Whitening(dim).fit(users).transform(users), Whitening(dim).fit(items).transform(items)


class _ProMaxObjective(Objective):
    def __init__(self, config: ProMax, model: Recommender, data: Dataset) -> None:
        super().__init__(model)
        self.config = config
        self.notes = {"profiles": data.provenance, "enriched graph": data.enrichment}
        self.contrast_weight = config.s2dr_weight
        self.enriched_graph = data.enriched_graph.to(model.device)
        self.teacher = self._teacher(data)

    def _teacher(self, data: Dataset) -> TeacherDistribution:
        from prorec_fast.losses import TeacherDistribution

        config, device = self.config, self.model.device
        dim = self.model.dim if config.profile_dim is None else config.profile_dim
        users, items = whitened_profiles(data.user_profiles, data.item_profiles, dim, config.whitening)
        return TeacherDistribution(users.to(device), items.to(device), temperature=config.teacher_temperature)

    def start_epoch(self, epoch: int) -> None:
        self.contrast_weight = self.config.s2dr_weight if epoch >= self.config.warmup_epochs else 0.0

    @property
    def phase(self) -> float:
        return self.contrast_weight

    def terms(self, users: Tensor, positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        from prorec_fast.ops.distinct import distinct

        config = self.config
        user, item = self.model.representation()
        distinct_users = distinct(users)
        loss = batch_bpr(user, item, users, positives, negatives)
        sdr = s2dr = loss.new_zeros(())
        if config.sdr_weight:
            sdr = config.sdr_weight * self._supervised(user, item, distinct_users)
        if self.contrast_weight:
            s2dr = self.contrast_weight * self._self_supervised(user, item, distinct_users, distinct(positives))
        terms = {"bpr": loss, "sdr": sdr, "s2dr": s2dr, **self.model.auxiliary_terms(users, positives)}
        return with_decay(terms, config.reg, self)

    def _supervised(self, user: Tensor, item: Tensor, distinct_users: Distinct) -> Tensor:
        from prorec_fast.losses import distribution_kl

        return distribution_kl(
            user,
            item,
            users=distinct_users.values,
            count=distinct_users.count,
            temperature=self.config.temperature,
            weighting="entropy",
            weight_range=self.config.weight_range,
            eps=self.config.sdr_eps,
            teacher=self.teacher,
        )

    def _self_supervised(self, user: Tensor, item: Tensor, users: Distinct, items: Distinct) -> Tensor:
        from prorec_fast.losses import cross_view_info_nce, info_nce

        tau, eps = self.config.temperature, self.config.contrast_eps
        enriched_user, enriched_item = self.model.representation(self.enriched_graph)

        def own(table: Tensor, enriched: Tensor, rows: Distinct) -> Tensor:
            return info_nce(table, enriched, rows=rows.values, count=rows.count, temperature=tau, eps=eps)

        return (
            own(user, enriched_user, users)
            + own(item, enriched_item, items)
            + cross_view_info_nce(user, item, enriched_user, enriched_item, users=users, items=items, temperature=tau)
        )
