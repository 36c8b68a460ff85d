"""Every public operation as a module: its tables are parameters, what it needs beside them it holds."""

from __future__ import annotations

from functools import reduce
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prorec_fast
from prorec_fast import losses, retrieval

Shapes = dict[str, tuple[int, ...]]
USERS, ITEMS, DIM, PROFILES, ENVIRONMENTS = 9, 13, 8, 3, 2


def random_graph() -> prorec_fast.BipartiteGraph:
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randint(size, (40,), generator=generator) for size in (USERS, ITEMS))
    return prorec_fast.BipartiteGraph.from_edges(users, items, USERS, ITEMS)


class Call(nn.Module):
    """One call of an operation on a batch.

    Attributes:
        operation: its public name.
        shapes: of its tables.
        linear: whether its gradient can be differentiated.
        captured: whether a CUDA graph can hold it.
        narrow: the tables that come out of a linear layer, which autocast narrows.
        seed: of what is random.
    """

    operation: ClassVar[str]
    shapes: ClassVar[Shapes] = {}
    differentiable: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    captured: ClassVar[bool] = True

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device, self.drawn = torch.device(device), 0
        self.tables = nn.ParameterDict({name: self.random(*shape) for name, shape in self.shapes.items()})
        self.narrow: tuple[str, ...] = ()
        self.seed: int | None = None

    def random(self, *shape: int) -> Tensor:
        self.drawn += 1
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.drawn)).to(self.device)

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Users, positive and negative items."""
        generator = torch.Generator().manual_seed(size)
        return tuple(torch.randint(n, (size,), generator=generator).to(self.device) for n in (USERS, ITEMS, ITEMS))

    def dtype_under_autocast(self, plain: Tensor, tables: dict[str, Tensor]) -> torch.dtype:
        """Of the result that is `plain` outside: a loss's is float32."""
        return plain.dtype

    def table(self, name: str) -> Tensor:
        table = self.tables[name]
        return F.linear(table, torch.eye(table.size(-1)).to(table)) if name in self.narrow else table


def of_users(*names: str) -> Shapes:
    return {name: (USERS, DIM) for name in names}


TWO_TABLES = {"user": (USERS, DIM), "item": (ITEMS, DIM)}


class DistributionKL(Call):
    operation, shapes = "distribution_kl", TWO_TABLES

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.teacher = losses.TeacherDistribution(self.random(USERS, 6), self.random(ITEMS, 6))

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        user, item = self.table("user"), self.table("item")
        return losses.distribution_kl(user, item, None, None, users=users, teacher=self.teacher)


class TeacherDistribution(Call):
    operation, shapes, differentiable = "TeacherDistribution", TWO_TABLES, False

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.kept = losses.TeacherDistribution(*(table.detach().clone() for table in self.tables.values()))

    def forward(self, users: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        made = losses.TeacherDistribution(self.table("user"), self.table("item"))
        return made.lse[users], made.entropy[users], self.kept.weight()


class InfoNCE(Call):
    operation, shapes = "info_nce", of_users("anchor", "positive")

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        return losses.info_nce(self.table("anchor"), self.table("positive"), rows=users, reduction="none")


class CrossViewInfoNCE(Call):
    operation = "cross_view_info_nce"
    shapes: ClassVar[Shapes] = {f"{side}_{view}": shape for view in "ab" for side, shape in TWO_TABLES.items()}

    def forward(self, users: Tensor, positives: Tensor, *_: Tensor) -> Tensor:
        return losses.cross_view_info_nce(*map(self.table, self.shapes), users=users, items=positives)


def widest(plain: Tensor, tables: dict[str, Tensor]) -> torch.dtype:
    if not plain.is_floating_point():
        return plain.dtype
    return reduce(torch.promote_types, (table.dtype for table in tables.values()))


class MixEnvironments(Call):
    operation, linear = "mix_environments", True
    shapes: ClassVar[Shapes] = dict(profiles=(PROFILES, USERS, DIM), weights=(ENVIRONMENTS, PROFILES))

    def dtype_under_autocast(self, plain: Tensor, tables: dict[str, Tensor]) -> torch.dtype:
        return tables["profiles"].dtype

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        return losses.mix_environments(self.table("profiles")[:, users], self.table("weights"))


class ProfileContrast(Call):
    operation, shapes = "profile_contrast", {"profiles": (PROFILES, USERS, DIM)}

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        return losses.profile_contrast(self.table("profiles")[:, users], normalize=True)


class GaussianKL(Call):
    operation, shapes = "gaussian_kl", of_users("mean", "logvar", "prior_mean", "prior_logvar")

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        return losses.gaussian_kl(*(self.table(name)[users] for name in self.shapes), beta=0.3)


class BPR(Call):
    operation, shapes = "bpr", TWO_TABLES

    def forward(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        item = self.table("item")
        return losses.bpr(self.table("user")[users], item[positives], item[negatives])


class EnvironmentBPR(Call):
    operation = "environment_bpr"
    shapes: ClassVar[Shapes] = dict(
        **TWO_TABLES, user_profiles=(PROFILES, USERS, DIM), item_profiles=(PROFILES, ITEMS, DIM),
        alignment=(ENVIRONMENTS,),
    )  # fmt: skip

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.register_buffer("theta", self.random(ENVIRONMENTS, PROFILES).softmax(1))

    def forward(self, *triplets: Tensor) -> tuple[Tensor, ...]:
        *tables, alignment = map(self.table, self.shapes)
        return tuple(losses.environment_bpr(*tables, triplets, self.theta, alignment=alignment))


class MultinomialNLL(Call):
    operation, shapes = "multinomial_nll", {**TWO_TABLES, "bias": (ITEMS,)}

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.graph = random_graph().to(self.device)

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        hidden, weight, bias = map(self.table, self.shapes)
        return losses.multinomial_nll(hidden[users], weight, bias, self.graph, rows=users)


class Propagate(Call):
    operation, shapes, linear = "propagate", TWO_TABLES, True

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.graph = random_graph().to(self.device)

    def dtype_under_autocast(self, plain: Tensor, tables: dict[str, Tensor]) -> torch.dtype:
        return widest(plain, tables)

    def forward(self, users: Tensor, positives: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        options = {"num_layers": 2, "combine": "concat", "noise": 0.1, "keep_prob": 0.7, "seed": self.seed}
        user, item = prorec_fast.propagate(self.graph, self.table("user"), self.table("item"), **options)
        return user[users], item[positives]


class TopK(Call):
    operation, shapes, differentiable = "topk", TWO_TABLES, False

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.graph = random_graph().to(self.device)

    def dtype_under_autocast(self, plain: Tensor, tables: dict[str, Tensor]) -> torch.dtype:
        return widest(plain, tables)

    def forward(self, users: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return prorec_fast.topk(self.table("user"), self.table("item"), 4, exclude=self.graph, users=users)


class RankingMetrics(Call):
    operation, differentiable = "ranking_metrics", False

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.graph = random_graph().to(self.device)

    def forward(self, _users: Tensor, positives: Tensor, *_: Tensor) -> Tensor:
        ranked = (positives[:1] + torch.arange(5, device=self.device)).remainder(ITEMS).repeat(USERS, 1)
        return torch.stack(list(prorec_fast.ranking_metrics(ranked, self.graph, (2, 5)).values()))


class SampleNegatives(Call):
    operation, differentiable = "sample_negatives", False

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.graph = random_graph().to(self.device)

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        return prorec_fast.sample_negatives(self.graph, users, 3, seed=self.seed)


class CandidateItems(Call):
    operation, differentiable, captured = "retrieval.candidate_items", False, False

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.graph = random_graph().to(self.device)

    def forward(self, users: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        similar = (users[:2] + torch.arange(USERS, device=self.device)[:, None]).remainder(USERS)
        return tuple(retrieval.candidate_items(self.graph, similar))


class SimilarUsers(Call):
    operation, shapes, differentiable, captured = "retrieval.similar_users", of_users("profiles"), False, False

    def forward(self, users: Tensor, *_: Tensor) -> Tensor:
        return retrieval.similar_users(self.table("profiles"), 3, users=users)


CALLS = {call.operation: call for call in Call.__subclasses__()}
