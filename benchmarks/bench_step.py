"""One ProMax step on LightGCN at Amazon-Book's size: two propagations, four losses, backward, Adam."""

from __future__ import annotations

import pytest
import torch
from bench_propagate import graph
from sizes import (
    BATCH,
    DIM,
    DISTINCT_ITEMS,
    DISTINCT_USERS,
    EAGER,
    NUM_ITEMS,
    NUM_USERS,
    OURS,
    assert_agree,
    batch_of,
    table,
)

from prorec_fast import BipartiteGraph, losses, propagate
from prorec_fast.reference.bpr import bpr as bpr_reference
from prorec_fast.reference.distribution_kl import distribution_kl as distribution_kl_reference
from prorec_fast.reference.info_nce import cross_view_info_nce as cross_view_reference
from prorec_fast.reference.info_nce import info_nce as info_nce_reference

LAYERS, ENRICHED_EDGES = 3, 144_663
SDR_WEIGHT, S2DR_WEIGHT, REG = 1.5, 0.05, 1e-6


def enriched() -> BipartiteGraph:
    """The training graph and as many random edges as the published enrichment adds."""
    users, items = graph().edges()
    more = ENRICHED_EDGES - graph().num_edges
    generator = torch.Generator().manual_seed(0)
    extra = (torch.randint(n, (more,), generator=generator) for n in (NUM_USERS, NUM_ITEMS))
    users, items = (torch.cat(pair) for pair in zip((users, items), extra, strict=True))
    return BipartiteGraph.from_edges(users, items, NUM_USERS, NUM_ITEMS)


def coo_propagation(graph: BipartiteGraph):
    """Layers 1..3 summed over an uncoalesced COO adjacency, as the field's released code writes it."""
    users, items = graph.edges()
    values = (graph.user_degree[users] * graph.item_degree[items]).double().rsqrt().float().repeat(2)
    index = torch.stack([torch.cat([users, items + NUM_USERS]), torch.cat([items + NUM_USERS, users])])
    adjacency = torch.sparse_coo_tensor(index, values, (NUM_USERS + NUM_ITEMS,) * 2)

    def run(user, item):
        x, layers = torch.cat([user, item]), []
        for _ in range(LAYERS):
            x = torch.sparse.mm(adjacency, x)
            layers.append(x)
        return torch.split(sum(layers), [NUM_USERS, NUM_ITEMS])

    return run


def providers():
    """{name: one step}, each returning the gradients that it hands to Adam."""
    teacher_tables = table(NUM_USERS, DIM, 3).detach(), table(NUM_ITEMS, DIM, 4).detach()
    teacher = losses.TeacherDistribution(*teacher_tables)
    users, items = batch_of(NUM_USERS, DISTINCT_USERS, 5), batch_of(NUM_ITEMS, DISTINCT_ITEMS, 6)
    negatives = torch.randint(NUM_ITEMS, (BATCH,), generator=torch.Generator().manual_seed(7))
    graphs = graph(), enriched()

    def step(propagations, bpr, kl, nce, cross, fused):
        tables = table(NUM_USERS, DIM, 1), table(NUM_ITEMS, DIM, 2)
        parameters = [(0.1 * t.detach()).requires_grad_() for t in tables]
        optimizer = torch.optim.Adam(parameters, lr=0.0, fused=fused)  # so that every step is the same

        def run():
            (user, item), (other_user, other_item) = (p(*parameters) for p in propagations)
            distinct_users, distinct_items = users.unique(), items.unique()
            loss = bpr(user[users], item[items], item[negatives]) + REG * sum(p.square().sum() for p in parameters)
            loss = loss + SDR_WEIGHT * kl(user, item, distinct_users)
            loss = loss + S2DR_WEIGHT * (
                nce(user, other_user, rows=distinct_users, eps=1e-5)
                + nce(item, other_item, rows=distinct_items, eps=1e-5)
                + cross(user, item, other_user, other_item, users=users, items=items)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return [p.grad for p in parameters]

        return run

    return {
        EAGER: step(
            [coo_propagation(g) for g in graphs],
            bpr_reference,
            lambda u, i, index: distribution_kl_reference(u, i, *teacher_tables, users=index, eps=1e-8),
            info_nce_reference,
            cross_view_reference,
            fused=False,
        ),
        OURS: step(
            [lambda user, item, g=g: propagate(g, user, item, LAYERS, combine="sum") for g in graphs],
            losses.bpr,
            lambda u, i, index: losses.distribution_kl(u, i, None, None, users=index, teacher=teacher, eps=1e-8),
            losses.info_nce,
            losses.cross_view_info_nce,
            fused=True,
        ),
    }


@pytest.mark.parametrize("provider", [EAGER, OURS])
def test_step(benchmark, provider):
    found = providers()
    assert_agree(found)
    benchmark(found[provider])
