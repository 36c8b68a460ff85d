from __future__ import annotations

import torch
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, Unavailable, compiled
from torch import Tensor

import prorec_fast
from prorec_fast.reference.topk import row_entries
from prorec_fast.reference.topk import topk as reference

STOCK = "mm + mask + torch.topk"
IMPLICIT, FAISS = "implicit", "faiss"


def tables(at: Setting) -> tuple[Tensor, Tensor]:
    return at.table(at.num_users, 1).detach(), at.table(at.num_items, 2).detach()


def rankers(at: Setting, k: int):
    """{name: function that ranks the test users over all items without those of training, or why there is none}."""
    user, item = tables(at)
    users, train = at.distinct(at.num_users, at.test_users), at.graph()
    masked = row_entries(*train.csr(), users)  # the stock form's index is made outside of its time

    def stock():
        scores = user[users] @ item.T
        scores[masked] = float("-inf")
        return scores.topk(k)

    def eager():
        return reference(user, item, k, exclude=train.csr(), users=users)

    def ours():
        return prorec_fast.topk(user, item, k, exclude=train, users=users)

    found = {EAGER: eager, STOCK: stock, OURS: ours, COMPILED: compiled(stock)}
    for name, library in ((IMPLICIT, _implicit), (FAISS, _faiss)):
        if at.device != "cpu" or at.precision == "bfloat16":
            found[name] = Unavailable("timed on a CPU in float32")
        else:
            found[name] = library(user, item, users, masked, k)
    return found


def _implicit(user: Tensor, item: Tensor, users: Tensor, masked: tuple[Tensor, Tensor], k: int):
    """Its ranking for a model's users, the items that they have left out by itself."""
    try:
        from implicit.cpu.topk import topk
        from scipy.sparse import csr_matrix
    except ImportError as error:
        return Unavailable(f"not importable ({error})")
    rows, columns = (t.numpy() for t in masked)
    own = csr_matrix((torch.ones(len(rows)).numpy(), (rows, columns)), (len(users), len(item)))

    def run():
        items, scores = topk(
            item.numpy(), user[users].numpy(), k, filter_query_items=own, num_threads=torch.get_num_threads()
        )
        return torch.from_numpy(scores), torch.from_numpy(items)

    return run


def faiss_search():
    """Its exact search as a function (rows, queries, k) -> (products [Q, k], rows [Q, k]), the best first; Unavailable
    where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        return Unavailable(f"not importable ({error})")

    def search(rows: Tensor, queries: Tensor, k: int) -> tuple[Tensor, ...]:
        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatIP(rows.size(1))
        index.add(rows.numpy())
        return tuple(map(torch.from_numpy, index.search(queries.numpy(), k)))

    return search


def _faiss(user: Tensor, item: Tensor, users: Tensor, masked: tuple[Tensor, Tensor], k: int):
    """Its exact search, which leaves nothing out for one user alone: asked for as many more as a user has at most, of
    which the user's own are dropped afterwards."""
    search = faiss_search()
    if isinstance(search, Unavailable):
        return search
    num_items = len(item)
    rows, columns = masked
    own = (rows * num_items + columns).sort().values
    wanted = min(num_items, k + int(torch.bincount(rows).max()))

    def run():
        scores, items = search(item, user[users], wanted)
        keys = torch.arange(len(users))[:, None] * num_items + items
        place = torch.searchsorted(own, keys).clamp_max_(len(own) - 1)
        kept = own[place] != keys
        first = (kept.cumsum(1) <= k) & kept  # k of every row
        return scores[first].view(-1, k), items[first].view(-1, k)

    return run


def providers(at: Setting = AMAZON_BOOK, k: int = 20):
    found = rankers(at, k)
    if at.exact:
        del found[EAGER]  # it sorts whole rows, which takes long and gives no other scores
    there = {name: lambda rank=rank: list(rank()) for name, rank in found.items() if not isinstance(rank, Unavailable)}
    return found | there


def seen(at: Setting, results: list[Tensor]) -> list[Tensor]:
    """The scores, and those of the items that came with them, NaN for an item that is to be left out: where two scores
    differ by a rounding, either item may come first."""
    scores, items = results
    user, item = (t.double() for t in tables(at))
    users, items = at.distinct(at.num_users, at.test_users), items.long()
    own = torch.stack([(user[users] * item[column]).sum(1) for column in items.T], dim=1)
    rows, columns = row_entries(*at.graph().csr(), users)
    keys = torch.arange(len(users), device=items.device)[:, None] * at.num_items + items
    return [scores, own.masked_fill(torch.isin(keys, rows * at.num_items + columns), torch.nan)]
