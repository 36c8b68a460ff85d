"""Negative items for pairwise losses."""

from __future__ import annotations

from torch import Tensor

from prorec_fast import library  # noqa: F401  (registers the operators that torch.compile traces)
from prorec_fast.graph import BipartiteGraph
from prorec_fast.ops import sample_negatives as _sample_negatives

__all__ = ["sample_negatives"]


def sample_negatives(
    graph: BipartiteGraph, users: Tensor, num: int = 1, *, seed: int | None = None, popularity: float = 0.0
) -> Tensor:
    """Items that are no edges of the given users, drawn with replacement: for each row of `users`, `num` of them.

    Exact and without rejection: a draw is a rank among the items outside the user's row, found by bisection. What a
    popularity above 0 makes of a graph, 8 bytes an edge and an item, is kept with the graph. On a CUDA device the first
    call for a popularity waits for the device, and so does every call where some user of the graph has every item.
    Others wait for nothing, and CUDA graphs hold them.

    Args:
        graph: whose edges are the positives.
        users: int64 [B] on the graph's device; a user may stand there many times.
        num: draws per row of `users`.
        seed: in [0, 2^63); draw (b, j) is a function of it, the same on every device and thread count. None draws one
            from torch's default generator.
        popularity: gamma; items are drawn in proportion to degree^gamma (0.75 is word2vec's, Mikolov et al., 2013), so
            above 0 never one without edges. 0 is uniform over the items outside the row.

    Returns:
        int64 [B, num], for num = 1 too.

    Raises:
        TypeError, ValueError, IndexError: an argument of another type, shape, device or range, or users for whom there
            is no item to draw; the message names them.
    """
    return _sample_negatives.sample_negatives(graph, users, num, seed=seed, popularity=popularity)
