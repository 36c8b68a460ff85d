"""ProEx (arXiv 2512.00679): a base model over environments, each a mixture of several profiles of a user or item."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from prorec_fast import _native
from prorec_fast._checks import non_negative_number, one_of, positive_int, positive_number
from prorec_fast.models import Discriminative, Generative
from prorec_fast.models.discriminative import rows_of
from prorec_fast.models.generative import Gaussian

from .base import Framework, Objective, with_decay
from .profile_head import ProfileHead, ProfileTables

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph
    from prorec_fast.models import Recommender

REGULARIZATIONS = ("uniformity", "contrast")
MIN_ALPHA = 0.01  # below, all gamma variates of a Dirichlet draw may underflow, and the mixture come out uniform


@dataclass(frozen=True)
class ProEx(Framework):
    """K profiles of every user and item, mixed anew for each of E environments at every step.

    With c_k an MLP's image of profile k, theta_e ~ Dirichlet(alpha) and c^e = sum_k theta_ek c_k (Eq. 8-10), an
    environment's loss L^e is the model's own on representations (or posteriors) shifted by c^e (Eq. 12), with the
    alignment of c^e and the model (Eq. 11 and 13):

        loss = sum_e L^e + variance_weight Var_e(L^e)                                                      (Eq. 14)
               + regularization_weight * regularization + reg * (sum of squares of all parameters)

    Items are ranked by representations shifted by the mean of c_1..c_K (Algorithm 2). The defaults are the constants of
    the authors' released code, which is for LightGCN; `ProEx.preset("paper")` has the paper's form.

    Attributes:
        num_profiles: K. A data set with fewer profiles has facet profiles made (`Dataset.profiles_for`), and every
            result says so.
        num_environments: E.
        alpha: of the symmetric Dirichlet distribution; the smaller, the closer an environment is to one profile. At
            least 0.01.
        mixing: False leaves the environments out: one with the mean of all profiles stands in.
        variance_weight: lambda_3, the weight of the variance; 0 leaves it out.
        align_weight: of the alignment inside an environment: for a discriminative model of an InfoNCE loss (Eq. 13),
            for a generative one the share 1 - beta of the divergence that goes to the profiles' Gaussian (Eq. 11).
            None takes 0 for the former, as the released code does, and 0.5 for the latter; 0 leaves it out.
        regularization_weight: of what keeps the profiles' images apart; 0 leaves it out.
        regularization: "uniformity", in-batch contrast of each profile with itself (released code), or "contrast",
            of one node's profiles with each other (Eq. 7), over unit rows.
        temperature: of alignment and regularization.
        contrast_eps: added inside the logarithm of the uniformity.
        reg: factor on the sum of squares of all parameters; None takes the model's `weight_decay`.
    """

    name: ClassVar[str] = "proex"
    num_profiles: int = 4
    num_environments: int = 4
    alpha: float = 0.1
    mixing: bool = True
    variance_weight: float = 10.0
    align_weight: float | None = None
    regularization_weight: float = 0.4
    regularization: str = "uniformity"
    temperature: float = 0.2
    contrast_eps: float = 1e-5
    reg: float | None = None

    def __post_init__(self) -> None:
        positive_int("num_profiles", self.num_profiles)
        positive_int("num_environments", self.num_environments)
        positive_number("alpha", self.alpha)
        if self.alpha < MIN_ALPHA:
            raise ValueError(f"alpha: want at least {MIN_ALPHA}, got {self.alpha!r}")
        positive_number("temperature", self.temperature)
        one_of("regularization", self.regularization, REGULARIZATIONS)
        for field in ("variance_weight", "align_weight", "regularization_weight", "contrast_eps", "reg"):
            value = getattr(self, field)
            if value is not None:
                non_negative_number(field, value)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ProEx:
        """The settings of the preset "released" or "paper", with single fields replaced.

        Raises:
            ValueError: no such preset.
        """
        from .presets import get_preset

        return replace(get_preset(name).proex, **overrides)

    def bind(self, model: Recommender, data: Dataset) -> Objective:
        """Take K profiles of every user and item, aggregated once per run for a generative model.

        Raises:
            ValueError: align_weight above 1 for a generative model.
        """
        if isinstance(model, Discriminative):
            return _DiscriminativeProEx(self, model, data)
        if (self.align_weight or 0) > 1:
            raise ValueError(f"align_weight: want at most 1 for a generative model, got {self.align_weight!r}")
        return _GenerativeProEx(self, model, data)


class _ProExObjective(Objective):
    phase = "proex"

    def __init__(self, config: ProEx, model: Recommender, data: Dataset, width: int) -> None:
        super().__init__(model)
        self.config, device = config, model.device
        *profiles, provenance = data.profiles_for(config.num_profiles)
        self.notes = {"profiles": provenance}
        self.profiles = [ProfileTables(tables, device) for tables in self._inputs(*profiles)]
        self.head = ProfileHead(self.profiles[0].width, width, seed=model.seed, device=device)
        self.alpha = torch.full((config.num_profiles,), float(config.alpha), dtype=torch.float32, device=device)
        self.reg = model.weight_decay if config.reg is None else config.reg

    @abstractmethod
    def _inputs(self, users: list[Tensor], items: list[Tensor]) -> list[list[Tensor]]:
        """The tables that the head is applied to, from the K of the users and the K of the items."""

    def _environments(self) -> Tensor:
        """theta [E, K] of one step."""
        if not self.config.mixing:
            return (torch.ones_like(self.alpha) / self.alpha.numel())[None]
        # validation would wait for the device
        return torch.distributions.Dirichlet(self.alpha, validate_args=False).sample((self.config.num_environments,))

    def _uniformity(self, images: Tensor, rows: Tensor | None = None, count: Tensor | None = None) -> Tensor:
        """In-batch contrast of each profile's images [K, R, d] with themselves, summed over profiles."""
        from prorec_fast.losses import info_nce

        config = self.config
        return sum(
            info_nce(one, one, rows=rows, count=count, temperature=config.temperature, eps=config.contrast_eps)
            for one in images
        )

    def _finished(self, terms: dict[str, Tensor], per_environment: Tensor, variance: Tensor) -> dict[str, Tensor]:
        found = {"environments": per_environment.sum()}
        if self.config.variance_weight:
            found["variance"] = self.config.variance_weight * variance
        return with_decay({**found, **terms}, self.reg, self)


class _Rows(NamedTuple):
    """The distinct rows of a batch's index.

    values: int64 [R]. count: how many of them count; None: all. inverse: where in `values` each entry of the index is.
    """

    values: Tensor
    count: Tensor | None
    inverse: Tensor


def _distinct_rows(index: Tensor) -> _Rows:
    """On the CPU exactly the distinct ones: what is computed for each costs time. On a device, where their number stays
    unknown to the host, as many as the index has entries."""
    from prorec_fast.ops.distinct import distinct

    found = distinct(index)
    if _native.on_cuda(index):
        return _Rows(found.values, found.count, found.inverse)
    return _Rows(found.values[: int(found.count)], None, found.inverse)


class _DiscriminativeProEx(_ProExObjective):
    def __init__(self, config: ProEx, model: Discriminative, data: Dataset) -> None:
        super().__init__(config, model, data, model.representation_dim)

    def _inputs(self, users: list[Tensor], items: list[Tensor]) -> list[list[Tensor]]:
        return [users, items]

    def terms(self, users: Tensor, positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
        from prorec_fast.losses import environment_bpr

        user, item = self.model.representation()
        user_rows, item_rows = _distinct_rows(users), _distinct_rows(torch.cat([positives, negatives]))
        at_positives, at_negatives = item_rows.inverse.chunk(2)
        user, item = rows_of(user, user_rows.values), rows_of(item, item_rows.values)
        user_images = self.head(self.profiles[0], user_rows.values)
        item_images = self.head(self.profiles[1], item_rows.values)
        positive_rows = _distinct_rows(at_positives)  # rows of the batch's items
        theta = self._environments()
        terms, alignment = {}, None
        if self.config.align_weight:
            alignment = self._alignment(user, item, user_images, item_images, theta, user_rows, positive_rows)
        if self.config.regularization_weight:
            apart = self._apart(user_images, item_images, user_rows, item_rows, positive_rows)
            terms["regularization"] = self.config.regularization_weight * apart
        loss = environment_bpr(
            user, item, user_images, item_images, (user_rows.inverse, at_positives, at_negatives), theta,
            variance_weight=self.config.variance_weight, alignment=alignment,
        )  # fmt: skip
        terms.update(self.model.auxiliary_terms(users, positives))
        return self._finished(terms, loss.per_environment, loss.variance)

    def _alignment(
        self, user: Tensor, item: Tensor, user_images: Tensor, item_images: Tensor, theta: Tensor, users: _Rows,
        positives: _Rows,
    ) -> Tensor:  # fmt: skip
        """[E]: InfoNCE between the model's rows and the mixtures of the profiles' images (Eq. 13)."""
        from prorec_fast.losses import info_nce, mix_environments

        tau = self.config.temperature
        sums = [
            info_nce(user, of_users, count=users.count, temperature=tau)
            + info_nce(item, of_items, rows=positives.values, count=positives.count, temperature=tau)
            for of_users, of_items in zip(
                mix_environments(user_images, theta), mix_environments(item_images, theta), strict=True
            )
        ]
        return self.config.align_weight * torch.stack(sums)

    def _apart(self, user_images: Tensor, item_images: Tensor, users: _Rows, items: _Rows, positives: _Rows) -> Tensor:
        from prorec_fast.losses import profile_contrast

        if self.config.regularization == "uniformity":
            return self._uniformity(user_images, count=users.count) + self._uniformity(
                item_images, positives.values, positives.count
            )
        tau = self.config.temperature
        return profile_contrast(user_images, count=users.count, temperature=tau, normalize=True) + profile_contrast(
            item_images, count=items.count, temperature=tau, normalize=True
        )

    def representation(self) -> tuple[Tensor, Tensor]:
        user, item = self.model.representation()
        of_users, of_items = (self.head.mean(profiles) for profiles in self.profiles)
        return user + of_users, item + of_items


class _GenerativeProEx(_ProExObjective):
    def __init__(self, config: ProEx, model: Generative, data: Dataset) -> None:
        self._graph = data.train_graph
        super().__init__(config, model, data, 2 * model.latent_dim)
        self.beta = 1 - (0.5 if config.align_weight is None else config.align_weight)

    def _inputs(self, users: list[Tensor], items: list[Tensor]) -> list[list[Tensor]]:
        """What a user's items say of them, and their own profile (Eq. 6)."""
        return [[mean_of_items(self._graph, item) + user for user, item in zip(users, items, strict=True)]]

    def terms(self, users: Tensor) -> dict[str, Tensor]:
        from prorec_fast.losses import gaussian_kl, mix_environments, profile_contrast

        config, posterior = self.config, self.model.posterior(users)
        means, logvars = Gaussian.from_parameters(self.head(self.profiles[0], users))
        theta = self._environments()
        mixed = mix_environments(means, theta)
        mixed_logvar = mix_environments(logvars.exp(), theta).log()
        losses = []
        for mean, logvar in zip(mixed, mixed_logvar, strict=True):
            shifted = Gaussian(posterior.mean + mean, posterior.logvar + logvar)
            divergence = gaussian_kl(shifted.mean, shifted.logvar, mean, logvar, beta=self.beta)
            losses.append(self.model.reconstruction(shifted, users) + self.model.kl_weight() * divergence)
        per_environment = torch.stack(losses)
        variance = per_environment.var() if len(losses) > 1 else per_environment.new_zeros(())
        terms = {}
        if config.regularization_weight:
            if config.regularization == "uniformity":
                apart = self._uniformity(means)
            else:
                apart = profile_contrast(means, temperature=config.temperature, normalize=True)
            terms["regularization"] = config.regularization_weight * apart
        return self._finished(terms, per_environment, variance)

    def representation(self) -> tuple[Tensor, Tensor]:
        users = torch.arange(self.model.num_users, device=self.model.device)
        shift = self.head.mean(self.profiles[0])[:, : self.model.latent_dim]
        return self.model.decoded(self.model.posterior(users).mean + shift)


def mean_of_items(graph: BipartiteGraph, items: Tensor) -> Tensor:
    """[num_users, t]: the mean of each user's items' rows of `items` [num_items, t]; 0 for a user without items."""
    return embedding_bag(graph.user_indices.long(), items, graph.user_indptr[:-1], mode="mean")
