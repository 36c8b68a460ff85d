from __future__ import annotations

import pytest
import torch
from sizes import (
    COMPILED,
    DISTINCT_USERS,
    EAGER,
    NUM_ITEMS,
    NUM_USERS,
    OURS,
    assert_agree,
    distinct,
    loss_and_gradients,
    table,
)

from prorec_fast import losses
from prorec_fast.reference.distribution_kl import distribution_kl as reference


def providers(backward: bool = True, dim: int = 32, eps: float = 0.0, compiled: bool = True):
    """The supervised reshaping of one step: DISTINCT_USERS users against all items, the teacher frozen."""
    user, item = table(NUM_USERS, dim, 1), table(NUM_ITEMS, dim, 2)
    teacher_tables = table(NUM_USERS, dim, 3).detach(), table(NUM_ITEMS, dim, 4).detach()
    users = distinct(NUM_USERS, DISTINCT_USERS)
    teacher = losses.TeacherDistribution(*teacher_tables)

    def eager():
        return reference(user, item, *teacher_tables, users=users, eps=eps)

    def ours():
        return losses.distribution_kl(user, item, None, None, users=users, teacher=teacher, eps=eps)

    found = {EAGER: eager, OURS: ours}
    if compiled:
        found[COMPILED] = torch.compile(eager)
    return {name: loss_and_gradients(loss, [user, item], backward) for name, loss in found.items()}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("provider", [EAGER, COMPILED, OURS])
def test_distribution_kl(benchmark, provider, backward):
    found = providers(backward, compiled=provider == COMPILED)
    assert_agree(found)
    benchmark(found[provider])
