"""Full-ranking evaluation: the best items of every user, and the metrics of those lists.

On the CPU and on CUDA devices, float32, bfloat16 and float16 run compiled kernels; float64, other devices and, on CUDA
devices, lists or cut-offs beyond 2048 run the plain PyTorch definition in `prorec_fast.reference`. On CUDA devices the
kernels never wait for the device, and CUDA graphs can hold them; there, an index out of range is a device-side error,
and it is taken on trust that indices ascend within a row. Neither function is differentiable: what they return is
detached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from prorec_fast import library  # noqa: F401  (registers the operators that torch.compile traces)
from prorec_fast.ops import ranking_metrics as _ranking_metrics
from prorec_fast.ops import topk as _topk

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph

__all__ = ["ranking_metrics", "topk"]


def topk(
    user: Tensor,
    item: Tensor,
    k: int,
    *,
    exclude: BipartiteGraph | Tensor | tuple[Tensor, Tensor] | None = None,
    users: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k items with the largest inner products for each user, exactly, without a matrix of users by items.

    Items come by descending score, equal scores by ascending index. Scores are summed in float32 (float64 for
    float64 inputs; on CUDA devices torch's TF32 switch holds for the products) and ordered so before they are rounded
    to the inputs' dtype. An item whose score is NaN or -inf is never ranked. The result does not depend on the number
    of threads.

    Args:
        user: [M, d] floating.
        item: [N, d], the dtype and device of `user`.
        k: how many; may exceed N.
        exclude: items to leave out of each user's list, usually those of training: a BipartiteGraph, a torch.sparse_csr
            tensor [M, N] (its values are not looked at) or (indptr, indices), indices ascending within a row.
        users: [B] int64 rows of `user` (and of `exclude`) to rank for, repetitions allowed; all rows without it.

    Returns:
        (scores [B, k] in the inputs' dtype, items [B, k] int64). A user with fewer than k items left has item -1 with
        score -inf in the places after them.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, dtype, device or range; the message
            names it.
    """
    return _topk.topk(user, item, k, exclude=exclude, users=users)


def ranking_metrics(
    items: Tensor,
    truth: BipartiteGraph | Tensor | tuple[Tensor, Tensor],
    ks: Sequence[int] = (10, 20),
    *,
    num_items: int | None = None,
) -> dict[str, Tensor]:
    """Metrics of ranked lists at several cut-offs, in one pass; relevance is binary.

    With h_r = 1 where the item at rank r is in the user's truth T, and sums over ranks r = 1..k:
        recall@k = sum h_r / |T|;  precision@k = sum h_r / k;  hit_rate@k = 1 if any h_r;  mrr@k = max_r h_r / r
        ndcg@k = sum h_r / log2(r + 1), over the same sum for r = 1..min(|T|, k)
        map@k = sum_r h_r precision@r / min(|T|, k)
        coverage@k = the share of the N items that stand in at least one counted user's first k places
    All but coverage are means over the counted users: those with a non-empty truth. With no such user all are 0.

    Args:
        items: [M, K] int64, best first, the items of a row distinct; -1 is no item, as `topk` pads.
        truth: the relevant items of each of the M rows: a BipartiteGraph, a torch.sparse_csr tensor [M, N] (its
            values are not looked at) or (indptr, indices), indices ascending within a row.
        ks: the cut-offs, each in [1, K].
        num_items: N, needed with (indptr, indices), which does not say it.

    Returns:
        {"recall@10": 0-d float32 tensor, ...}: every metric at every cut-off.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape or range; the message names it.
    """
    return _ranking_metrics.ranking_metrics(items, truth, ks, num_items=num_items)
