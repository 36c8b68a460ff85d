"""The InfoNCE of SimGCL, of RLMRec and of ProMax in existing code, before and after.

python benchmarks/examples/contrast.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from side_by_side import Provider, Setting, compare, loss_and_gradients
from torch import Tensor

from prorec_fast import losses

View = tuple[Tensor, Tensor]  # a table of users [M, d] and one of items [N, d]


# these lines:
def info_nce(anchor, positive, temperature=0.2, eps=0.0):
    anchor, positive = F.normalize(anchor), F.normalize(positive)
    together = torch.exp((anchor * positive).sum(1) / temperature)
    everything = torch.exp(anchor @ positive.T / temperature).sum(1)  # of [B, B]
    return -torch.log(together / everything + eps).mean()


# up to here


def before(one: View, other: View, profile: View, users: Tensor, items: Tensor) -> Tensor:
    """`one` and `other` are views of the graph, `profile` the profiles' images; users and items [B] are the batch."""
    (user, item), (other_user, other_item), (profile_user, profile_item) = one, other, profile
    u, i = users.unique(), items.unique()
    # these lines:
    simgcl = info_nce(user[u], other_user[u], eps=1e-5) + info_nce(item[i], other_item[i], eps=1e-5)
    rlmrec = info_nce(user[users], profile_user[users]) + info_nce(item[items], profile_item[items])
    crossed = (info_nce(user[users], other_item[items]) + info_nce(other_user[users], item[items])) / 2
    # up to here
    return simgcl + rlmrec + crossed


def after(one: View, other: View, profile: View, users: Tensor, items: Tensor) -> Tensor:
    """The same: no gathered copy, and an item that stands ten times in the batch is scored once where views cross."""
    (user, item), (other_user, other_item), (profile_user, profile_item) = one, other, profile
    u, i = users.unique(), items.unique()
    # become:
    simgcl = losses.info_nce(user, other_user, rows=u, eps=1e-5) + losses.info_nce(item, other_item, rows=i, eps=1e-5)
    rlmrec = losses.info_nce(user, profile_user, rows=users) + losses.info_nce(item, profile_item, rows=items)
    crossed = losses.cross_view_info_nce(user, item, other_user, other_item, users=users, items=items)
    # up to here
    return simgcl + rlmrec + crossed


def build(at: Setting) -> tuple[Provider, Provider]:
    tables = [at.table(rows, seed) for seed, rows in enumerate((at.num_users, at.num_items) * 3)]
    views = tables[:2], tables[2:4], tables[4:]
    with torch.no_grad():  # the views resemble each other, as they do in training
        for table, first in zip(tables[2:], tables[:2] * 2, strict=True):
            table.mul_(0.3).add_(first)
    users = at.batch_of(at.num_users, at.distinct_users, 5)
    items = at.batch_of(at.num_items, at.distinct_items, 6)

    def run(loss) -> Provider:
        return loss_and_gradients(lambda: loss(*views, users, items), tables, True)

    return run(before), run(after)


if __name__ == "__main__":
    compare("SimGCL's, RLMRec's and ProMax's InfoNCE", build)
