from __future__ import annotations

import torch
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, compiled, loss_and_gradients

from prorec_fast import losses
from prorec_fast.reference.environment_bpr import environment_bpr as reference


def providers(at: Setting = AMAZON_BOOK, backward: bool = True, profiles: int = 4, environments: int = 4):
    """Whole tables and a batch's triplets; the released code's variance."""
    tables = [at.table(rows, seed) for seed, rows in enumerate((at.num_users, at.num_items))]
    stacks = [torch.stack([at.table(t.size(0), 2 + 2 * k + n) for k in range(profiles)]) for n, t in enumerate(tables)]
    inputs = [(0.3 * t).detach().requires_grad_() for t in (*tables, *stacks)]
    generator = torch.Generator().manual_seed(7)
    items = (torch.rand(at.batch, 2, generator=generator) ** torch.tensor([at.skew, 1.0]) * at.num_items).long()
    users = at.batch_of(at.num_users, at.distinct_users, 1)
    triplets = torch.cat([users[:, None], items.to(users.device)], 1)
    weights = torch.rand(environments, profiles, generator=generator).to(users.device)
    weights = weights / weights.sum(1, keepdim=True)

    def total(function):
        return lambda: function(*inputs, triplets, weights, variance_weight=10.0).total

    found = {
        EAGER: total(reference),
        OURS: total(losses.environment_bpr),
        COMPILED: total(compiled(reference)),
    }
    return {name: loss_and_gradients(loss, inputs, backward) for name, loss in found.items()}
