from __future__ import annotations

import pytest
import torch
from sizes import (
    COMPILED,
    DISTINCT_ITEMS,
    DISTINCT_USERS,
    EAGER,
    NUM_ITEMS,
    NUM_USERS,
    OURS,
    assert_agree,
    batch_of,
    loss_and_gradients,
    table,
)

from prorec_fast import losses
from prorec_fast.reference.info_nce import cross_view_info_nce, info_nce


def providers(backward: bool = True, dim: int = 32, compiled: bool = True):
    """The self-supervised reshaping of one step: users, items and both crossings of two views, four blocks."""
    user, item = table(NUM_USERS, dim, 1), table(NUM_ITEMS, dim, 2)
    other_user, other_item = (t.detach() + 0.1 * table(len(t), dim, 3).detach() for t in (user, item))
    inputs = [user, item, other_user.requires_grad_(), other_item.requires_grad_()]
    users, items = batch_of(NUM_USERS, DISTINCT_USERS, 5), batch_of(NUM_ITEMS, DISTINCT_ITEMS, 6)
    distinct_users, distinct_items = users.unique(), items.unique()

    def blocks(nce, cross_view):
        return lambda: (
            nce(user, inputs[2], rows=distinct_users, eps=1e-5)
            + nce(item, inputs[3], rows=distinct_items, eps=1e-5)
            + cross_view(user, item, inputs[2], inputs[3], users=users, items=items)
        )

    eager = blocks(info_nce, cross_view_info_nce)
    found = {EAGER: eager, OURS: blocks(losses.info_nce, losses.cross_view_info_nce)}
    if compiled:
        found[COMPILED] = torch.compile(eager)
    return {name: loss_and_gradients(loss, inputs, backward) for name, loss in found.items()}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("provider", [EAGER, COMPILED, OURS])
def test_info_nce(benchmark, provider, backward):
    found = providers(backward, compiled=provider == COMPILED)
    assert_agree(found)
    benchmark(found[provider])
