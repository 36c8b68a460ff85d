"""ProEx on LightGCN at Amazon-Book's size: the profiles' MLP, the uniformity of their images, a step, an evaluation.

The eager forms are those of the authors' released code: the MLP runs over all users and items, whatever the batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from bench_propagate import LAYERS
from bench_ranking_metrics import KS, measures, seen, truth
from bench_step import REG, coo_propagation
from sizes import AMAZON_BOOK, EAGER, OURS, Provider, Setting, adam, loss_and_gradients
from torch import Tensor
from torch.nn.functional import leaky_relu, linear

from prorec_fast import losses, topk
from prorec_fast.data.dataset import Dataset, Interactions
from prorec_fast.frameworks import ProEx
from prorec_fast.frameworks.profile_head import ProfileHead, ProfileTables
from prorec_fast.models import LightGCN
from prorec_fast.reference.environment_bpr import environment_bpr as environment_bpr_reference
from prorec_fast.reference.info_nce import info_nce as info_nce_reference

BATCH_OF_USERS = 1024  # in the released evaluation
UNIQUE, PRODUCTS = "eager, distinct rows", "its matrix products alone"
__all__ = ["seen"]  # of an evaluation's metrics, for cases.py
ONCE, REPEATED = "eager, MLP once", f"eager, MLP for every {BATCH_OF_USERS} users"
TAU, EPS, UNIFORMITY, VARIANCE = 0.2, 1e-5, 0.4, 10.0


def profiles(at: Setting) -> tuple[list[Tensor], list[Tensor]]:
    return tuple(
        [at.table(rows, 10 * seed + k, at.profile_width).detach() for k in range(at.num_profiles)]
        for seed, rows in ((1, at.num_users), (2, at.num_items))
    )


def triplets(at: Setting) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    negatives = torch.randint(at.num_items, (at.batch,), generator=generator).to(at.device)
    users = at.batch_of(at.num_users, at.distinct_users, 5)
    return users, at.batch_of(at.num_items, at.distinct_items, 6), negatives


def head_of(at: Setting) -> ProfileHead:
    head = ProfileHead(at.profile_width, at.dim, seed=3, device=torch.device(at.device))
    return head.double() if at.exact else head


def mlp(head: ProfileHead, rows: Tensor) -> Tensor:
    return linear(leaky_relu(linear(rows, head.weight_in, head.bias_in), 0.01), head.weight_out, head.bias_out)


def head_providers(at: Setting = AMAZON_BOOK):
    """The profiles' MLP for one batch and its weights' gradients."""
    head, tables = head_of(at), profiles(at)
    users, positives, negatives = triplets(at)
    rows = users.unique(), torch.cat([positives, negatives]).unique()
    weights = list(head.parameters())
    grads = [at.table(at.num_profiles * len(index), 40 + side).detach() for side, index in enumerate(rows)]

    def backward(images: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad([image.flatten(0, 1) for image in images], weights, grads))

    def everything() -> list[Tensor]:
        return backward([torch.stack([mlp(head, t)[i] for t in side]) for side, i in zip(tables, rows, strict=True)])

    def distinct() -> list[Tensor]:
        return backward([mlp(head, torch.stack([t[i] for t in side])) for side, i in zip(tables, rows, strict=True)])

    found: dict[str, Provider] = {EAGER: everything, UNIQUE: distinct}
    if at.exact:
        return found
    ours = [ProfileTables(side, torch.device(at.device)) for side in tables]
    found[OURS] = lambda: backward([head(side, i) for side, i in zip(ours, rows, strict=True)])
    return found


def products_providers(at: Setting = AMAZON_BOOK):
    """The same beside nothing but its matrix products, on memory that is there already."""
    head, found = head_of(at), head_providers(at)
    users, positives, negatives = triplets(at)
    count = at.num_profiles * (len(users.unique()) + len(torch.cat([positives, negatives]).unique()))
    x, grad = at.table(count, 1, at.profile_width).detach(), at.table(count, 2).detach()
    hidden, out = x.new_empty(count, head.weight_in.size(0)), torch.empty_like(grad)
    weight_in, weight_out = head.weight_in.detach(), head.weight_out.detach()

    def products() -> list[Tensor]:
        torch.mm(x, weight_in.T, out=hidden)
        torch.mm(hidden, weight_out.T, out=out)
        grad_out = grad.T @ hidden
        torch.mm(grad, weight_out, out=hidden)
        return [hidden.T @ x, grad_out]

    return {PRODUCTS: products, OURS: found[OURS]}


def check(at: Setting, results: list[Tensor]) -> None:
    assert all(torch.isfinite(t).all() for t in results)


def uniformity_providers(at: Setting = AMAZON_BOOK, backward: bool = True):
    """The released regularization: each profile's images of the batch's users, and of its items, apart."""
    users = [at.table(at.distinct_users, 20 + k) for k in range(at.num_profiles)]
    items = [at.table(at.distinct_items, 30 + k) for k in range(at.num_profiles)]

    def blocks(nce):
        return lambda: sum(nce(images, images, temperature=TAU, eps=EPS) for images in (*users, *items))

    found = {EAGER: blocks(info_nce_reference), OURS: blocks(losses.info_nce)}
    return {name: loss_and_gradients(loss, [*users, *items], backward) for name, loss in found.items()}


def step_providers(at: Setting = AMAZON_BOOK):
    """{name: one step}, each returning the gradients that it hands to Adam."""
    model, objective = _objective(at)
    batch = triplets(at)
    parameters = objective.all_parameters()

    def step(terms) -> Provider:
        optimizer = adam(parameters, at.device)

        def run() -> list[Tensor]:
            torch.manual_seed(3)  # the same environments everywhere
            optimizer.zero_grad(set_to_none=True)
            sum(terms(*batch).values()).backward()
            optimizer.step()
            return [p.grad for p in parameters]

        return run

    found = {EAGER: step(_eager_terms(at, model, objective))}
    if at.exact:
        return found
    found[OURS] = step(objective.terms)
    return found


def _objective(at: Setting):
    users, items = (tuple(t.float().cpu() for t in side) for side in profiles(at))
    graph = at.graph().to("cpu")
    train = Interactions(graph.user_indptr.numpy(), graph.user_indices.numpy())
    data = Dataset(
        "sizes", "sizes", at.num_users, at.num_items, train, train, train, None, users[0], items[0],
        list(zip(users[1:], items[1:], strict=True)),
    )  # fmt: skip
    model = LightGCN(data, at.dim, LAYERS).to(at.device)
    objective = ProEx(num_profiles=at.num_profiles, num_environments=at.num_environments).bind(model, data)
    if at.exact:
        model.double()
        objective.double()
    return model, objective


def _eager_terms(at: Setting, model: LightGCN, objective):
    (user_tables, item_tables), dtype = profiles(at), model.user_embedding.dtype
    propagate = coo_propagation(at.graph(), dtype)

    def terms(u: Tensor, i: Tensor, j: Tensor) -> dict[str, Tensor]:
        user, item = propagate(model.user_embedding, model.item_embedding)
        users, items = u.unique(), i.unique()
        of_users, of_items, apart = [], [], 0
        for user_table, item_table in zip(user_tables, item_tables, strict=True):
            of_users.append(mlp(objective.head, user_table))
            of_items.append(mlp(objective.head, item_table))
            for images in (of_users[-1][users], of_items[-1][items]):
                apart = apart + info_nce_reference(images, images, temperature=TAU, eps=EPS)
        loss = environment_bpr_reference(
            user, item, torch.stack(of_users), torch.stack(of_items), (u, i, j), objective._environments().to(dtype),
            variance_weight=VARIANCE,
        )  # fmt: skip
        decay = REG * sum(p.square().sum() for p in objective.all_parameters())
        return {"environments": loss.total, "apart": UNIFORMITY * apart, "reg": decay}

    return terms


def _ranked(at: Setting, objective) -> Tensor:
    user, item = objective.representation()
    return topk(user, item, max(KS), exclude=at.graph(), users=at.distinct(at.num_users, at.test_users))[1]


@torch.no_grad()
def _lists(at: Setting) -> Tensor:
    return _ranked(at, _objective(at)[1])


def evaluation_providers(at: Setting = AMAZON_BOOK):
    """A whole evaluation: representations, ranking, metrics. As released, the MLP runs for every batch of users."""
    model, objective = _objective(at)
    graph, test_users = at.graph(), at.distinct(at.num_users, at.test_users)
    measure = measures(at, truth(at, _lists(replace(at, exact=False))))
    user_tables, item_tables = profiles(at)
    propagate = coo_propagation(graph, model.user_embedding.dtype)
    masked = graph.to_sparse_csr().to_dense().bool()

    def pooled(rows: list[Tensor]) -> Tensor:
        return torch.stack([mlp(objective.head, t) for t in rows]).mean(0)

    @torch.no_grad()
    def eager(once: bool) -> list[Tensor]:
        user, item = propagate(model.user_embedding, model.item_embedding)
        of_users, of_items = (pooled(user_tables), pooled(item_tables)) if once else (None, None)
        found = []
        for users in test_users.split(BATCH_OF_USERS):
            if not once:
                of_users, of_items = pooled(user_tables), pooled(item_tables)
            scores = (user[users] + of_users[users]) @ (item + of_items).T
            found.append(scores.masked_fill_(masked[users], -torch.inf).topk(max(KS)).indices)
        return [measure[EAGER](torch.cat(found))]

    @torch.no_grad()
    def ours() -> list[Tensor]:
        return [measure[OURS](_ranked(at, objective))]

    return {ONCE: lambda: eager(True), REPEATED: lambda: eager(False), OURS: ours}
