from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, Unavailable, compiled, loss_and_gradients

from prorec_fast import losses
from prorec_fast.reference.info_nce import cross_view_info_nce, info_nce

LINEAR_CROSS_ENTROPY = "F.linear_cross_entropy"
LIGER = "Liger-Kernel"
CUT_CROSS_ENTROPY = "cut-cross-entropy"
TAU = 0.2


def providers(at: Setting = AMAZON_BOOK, backward: bool = True, eps: float = 1e-5):
    """The self-supervised reshaping of one step: users, items and both crossings of two views, four blocks."""

    def blocks(nce, cross_view, views, users, items):
        user, item, other_user, other_item = views
        distinct_users, distinct_items = users.unique(), items.unique()
        return lambda: (
            nce(user, other_user, rows=distinct_users, eps=eps)
            + nce(item, other_item, rows=distinct_items, eps=eps)
            + cross_view(*views, users=users, items=items)
        )

    return _providers(at, backward, blocks, plain=not eps)


def nce_providers(at: Setting = AMAZON_BOOK, backward: bool = True):
    """One block: the batch's users in two views."""

    def block(nce, cross_view, views, users, items):
        rows = users.unique()
        return lambda: nce(views[0], views[2], rows=rows, eps=0.0)

    return _providers(at, backward, block, only=slice(0, None, 2))


def cross_view_providers(at: Setting = AMAZON_BOOK, backward: bool = True):
    """Two blocks: each view's users against the other's items."""

    def blocks(nce, cross_view, views, users, items):
        return lambda: cross_view(*views, users=users, items=items)

    return _providers(at, backward, blocks)


def _providers(at: Setting, backward: bool, blocks, only: slice = slice(None), plain: bool = True):
    """Where losses are `plain`, without eps, a block is the cross entropy of a linear layer, so libraries that fuse
    those can do it. `only` says which of the views there are gradients of."""
    user, item = at.table(at.num_users, 1), at.table(at.num_items, 2)
    other_user, other_item = (t.detach() + 0.1 * at.table(len(t), 3).detach() for t in (user, item))
    views = [user, item, other_user.requires_grad_(), other_item.requires_grad_()]
    users, items = at.batch_of(at.num_users, at.distinct_users, 5), at.batch_of(at.num_items, at.distinct_items, 6)

    def loss(*forms):
        return blocks(*forms, views, users, items)

    eager = loss(info_nce, cross_view_info_nce)
    found = {EAGER: eager, OURS: loss(losses.info_nce, losses.cross_view_info_nce), COMPILED: compiled(eager)}
    if plain and not at.exact:
        libraries = {
            LINEAR_CROSS_ENTROPY: _linear_cross_entropy(), LIGER: _liger(at), CUT_CROSS_ENTROPY: _cut_cross_entropy(at)
        }  # fmt: skip
        found |= {n: f if isinstance(f, Unavailable) else loss(*_as_blocks(f)) for n, f in libraries.items()}
    return {
        name: f if isinstance(f, Unavailable) else loss_and_gradients(f, views[only], backward)
        for name, f in found.items()
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


def _liger(at: Setting):
    if at.device == "cpu":
        return Unavailable("its kernels need a CUDA device")
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        return Unavailable(f"not importable ({error})")
    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda x, y, targets: loss(y, x, targets)


def _cut_cross_entropy(at: Setting):
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        return Unavailable(f"not importable ({error})")
    if at.device == "cpu":  # its form for torch.compile, which writes the logits out
        return partial(linear_cross_entropy, impl="torch_compile")
    return partial(linear_cross_entropy, filter_eps=None)  # every gradient, however small
