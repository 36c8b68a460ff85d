from __future__ import annotations

from dataclasses import replace

import pytest
from sizes import AMAZON_BOOK, COMPILED, OURS, Setting, assert_agree, compiled

import prorec_fast
from prorec_fast.reference.topk import row_entries

STOCK = "mm + mask + torch.topk"


def rankers(at: Setting, k: int):
    """{name: function that ranks all test users over all items without those of training}."""
    user, item = at.table(at.num_users, 1).detach(), at.table(at.num_items, 2).detach()
    users, train = at.distinct(at.num_users, at.test_users), at.graph()
    masked = row_entries(*train.csr(), users)  # the stock form's index is made outside of its time

    def stock():
        scores = user[users] @ item.T
        scores[masked] = float("-inf")
        return scores.topk(k)

    def ours():
        return prorec_fast.topk(user, item, k, exclude=train, users=users)

    return {STOCK: stock, OURS: ours, COMPILED: compiled(stock)}


def providers(at: Setting = AMAZON_BOOK, k: int = 20):
    """Scores only: where two scores differ by a rounding, either may come first."""
    return {name: lambda rank=rank: [rank()[0]] for name, rank in rankers(at, k).items()}


def work(at: Setting, **_) -> tuple[int, int]:
    """FLOP of the scores, and the bytes of both tables."""
    size = 2 if at.precision == "bfloat16" else 4
    return 2 * at.test_users * at.num_items * at.dim, (at.test_users + at.num_items) * at.dim * size


@pytest.mark.parametrize("dim, k", [(32, 20), (32, 100), (64, 20), (384, 20)])
@pytest.mark.parametrize("provider", [STOCK, COMPILED, OURS])
def test_topk(benchmark, provider, dim, k):
    found = providers(replace(AMAZON_BOOK, dim=dim), k)
    assert_agree({name: found[name] for name in (STOCK, provider)})
    benchmark(found[provider])
