"""One ProMax step on LightGCN at Amazon-Book's size: two propagations, four losses, backward, Adam."""

from __future__ import annotations

import torch
from baseline.graph import coo_adjacency, propagated
from bench_propagate import LAYERS, enriched
from sizes import AMAZON_BOOK, EAGER, OURS, Setting, adam

from prorec_fast import BipartiteGraph, losses, propagate
from prorec_fast.ops.distinct import distinct
from prorec_fast.reference.bpr import bpr as bpr_reference
from prorec_fast.reference.distribution_kl import distribution_kl as distribution_kl_reference
from prorec_fast.reference.info_nce import cross_view_info_nce as cross_view_reference
from prorec_fast.reference.info_nce import info_nce as info_nce_reference

SDR_WEIGHT, S2DR_WEIGHT, REG = 1.5, 0.05, 1e-6


def coo_propagation(graph: BipartiteGraph, dtype: torch.dtype):
    """Layers 1..3 summed over an uncoalesced COO adjacency, as the field's released code writes it."""
    adjacency = coo_adjacency(graph, dtype)
    return lambda user, item: propagated(adjacency, user, item, LAYERS)


def providers(at: Setting = AMAZON_BOOK):
    """{name: one step}, each returning the gradients that it hands to Adam."""
    tables = at.table(at.num_users, 1).detach(), at.table(at.num_items, 2).detach()
    teacher_tables = at.table(at.num_users, 3).detach(), at.table(at.num_items, 4).detach()
    users, items = at.batch_of(at.num_users, at.distinct_users, 5), at.batch_of(at.num_items, at.distinct_items, 6)
    negatives = torch.randint(at.num_items, (at.batch,), generator=torch.Generator().manual_seed(7)).to(at.device)
    graphs = at.graph(), enriched(at)

    def step(propagations, bpr, reshaping):
        parameters = [(0.1 * t).requires_grad_() for t in tables]
        optimizer = adam(parameters, at.device)

        def run():
            (user, item), (other_user, other_item) = (p(*parameters) for p in propagations)
            loss = bpr(user[users], item[items], item[negatives]) + REG * sum(p.square().sum() for p in parameters)
            loss = loss + reshaping(user, item, other_user, other_item)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return [p.grad for p in parameters]

        return run

    def eager_reshaping(user, item, other_user, other_item):
        rows = users.unique()
        sdr = distribution_kl_reference(user, item, *teacher_tables, users=rows, eps=1e-8)
        s2dr = (
            info_nce_reference(user, other_user, rows=rows, eps=1e-5)
            + info_nce_reference(item, other_item, rows=items.unique(), eps=1e-5)
            + cross_view_reference(user, item, other_user, other_item, users=users, items=items)
        )
        return SDR_WEIGHT * sdr + S2DR_WEIGHT * s2dr

    eager_layers = [coo_propagation(graph, tables[0].dtype) for graph in graphs]
    found = {EAGER: step(eager_layers, bpr_reference, eager_reshaping)}
    if at.exact:
        return found
    teacher = losses.TeacherDistribution(*teacher_tables)

    def reshaping(user, item, other_user, other_item):
        rows, columns = distinct(users), distinct(items)
        sdr = losses.distribution_kl(user, item, users=rows.values, count=rows.count, teacher=teacher, eps=1e-8)
        s2dr = (
            losses.info_nce(user, other_user, rows=rows.values, count=rows.count, eps=1e-5)
            + losses.info_nce(item, other_item, rows=columns.values, count=columns.count, eps=1e-5)
            + losses.cross_view_info_nce(user, item, other_user, other_item, users=users, items=items)
        )
        return SDR_WEIGHT * sdr + S2DR_WEIGHT * s2dr

    layers = [lambda user, item, g=g: propagate(g, user, item, LAYERS, combine="sum") for g in graphs]
    found[OURS] = step(layers, losses.bpr, reshaping)
    return found
