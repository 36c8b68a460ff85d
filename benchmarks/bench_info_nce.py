from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, Unavailable, assert_agree, compiled, loss_and_gradients

from prorec_fast import losses
from prorec_fast.reference.info_nce import cross_view_info_nce, info_nce

LINEAR_CROSS_ENTROPY = "F.linear_cross_entropy"
LIGER = "Liger-Kernel"
TAU = 0.2


def providers(at: Setting = AMAZON_BOOK, backward: bool = True, eps: float = 1e-5):
    """The self-supervised reshaping of one step: users, items and both crossings of two views, four blocks. Without
    eps a block is the cross entropy of a linear layer, so libraries that fuse those can do it."""
    user, item = at.table(at.num_users, 1), at.table(at.num_items, 2)
    other_user, other_item = (t.detach() + 0.1 * at.table(len(t), 3).detach() for t in (user, item))
    inputs = [user, item, other_user.requires_grad_(), other_item.requires_grad_()]
    users, items = at.batch_of(at.num_users, at.distinct_users, 5), at.batch_of(at.num_items, at.distinct_items, 6)
    distinct_users, distinct_items = users.unique(), items.unique()

    def blocks(nce, cross_view):
        def run():
            return (
                nce(user, inputs[2], rows=distinct_users, eps=eps)
                + nce(item, inputs[3], rows=distinct_items, eps=eps)
                + cross_view(user, item, inputs[2], inputs[3], users=users, items=items)
            )

        return run

    eager = blocks(info_nce, cross_view_info_nce)
    found = {EAGER: eager, OURS: blocks(losses.info_nce, losses.cross_view_info_nce), COMPILED: compiled(eager)}
    if not eps:
        for name, library in ((LINEAR_CROSS_ENTROPY, _linear_cross_entropy()), (LIGER, _liger())):
            found[name] = library if isinstance(library, Unavailable) else blocks(*_as_blocks(library))
    return {
        name: loss if isinstance(loss, Unavailable) else loss_and_gradients(loss, inputs, backward)
        for name, loss in found.items()
    }


def _as_blocks(cross_entropy):
    """Both kinds of block from cross_entropy(rows, columns, targets)."""

    def nce(anchor, positive, rows, eps):
        targets = torch.arange(len(rows), device=rows.device)
        return cross_entropy(F.normalize(anchor[rows]) / TAU, F.normalize(positive[rows]), targets)

    def cross_view(user_a, item_a, user_b, item_b, users, items):
        targets = torch.arange(len(users), device=users.device)
        views = (user_a, item_b), (user_b, item_a)
        blocks = [cross_entropy(F.normalize(x[users]) / TAU, F.normalize(y[items]), targets) for x, y in views]
        return sum(blocks) / 2

    return nce, cross_view


def _linear_cross_entropy():
    if not hasattr(F, "linear_cross_entropy"):
        return Unavailable(f"torch {torch.__version__} has none")
    options = torch.nn.LinearCrossEntropyOptions()  # without them it writes the logits out
    return lambda x, y, targets: F.linear_cross_entropy(x, y, targets, options=options)


def _liger():
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        return Unavailable(f"not importable ({error})")
    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda x, y, targets: loss(y, x, targets)


def work(at: Setting, backward: bool = True, **_) -> tuple[int, int]:
    """FLOP and least bytes, equal rows of the batch counted once."""
    u, i = at.distinct_users, at.distinct_items
    pairs = u * u + i * i + 2 * u * i
    size = 2 if at.precision == "bfloat16" else 4
    read, written = 2 * (u + i) * at.dim * size, 2 * (at.num_users + at.num_items) * at.dim * size
    return pairs * at.dim * (8 if backward else 2), read + (written if backward else 0)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("provider", [EAGER, COMPILED, OURS])
def test_info_nce(benchmark, provider, backward):
    found = providers(backward=backward)
    assert_agree({name: found[name] for name in (EAGER, provider)})
    benchmark(found[provider])
