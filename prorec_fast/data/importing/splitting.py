"""Each user's interactions into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def split_sizes(degrees: np.ndarray, ratios: Sequence[float], coin: np.ndarray | None = None) -> np.ndarray:
    """int64 [users, 3]: how many of each user's interactions go to training, validation and test.

    A user's n are shared out by the ratios and rounded by largest remainder; where validation and test have equal
    remainders and one interaction is left, it goes to test, or by `coin` to either. Training has at least one. With
    3:1:1, n = 1 is (1, 0, 0), 2 is (1, 0, 1) or (1, 1, 0), 3 is (2, 0, 1) or (2, 1, 0), 4 is (2, 1, 1), 5 is (3, 1, 1).

    Args:
        degrees: [users], at least 1 each.
        ratios: of training (above 0), validation and test (at least 0), in any unit.
        coin: bool [users]: True where a tie goes to validation.
    """
    share = np.asarray(ratios, dtype=np.float64) / np.sum(ratios)
    quota = degrees[:, None] * share
    sizes = np.floor(quota).astype(np.int64)
    remainder = (quota - sizes).round(9)
    first_valid = np.zeros(degrees.shape[0], dtype=bool) if coin is None else coin
    # training first among equals: of two interactions, a model can learn from one
    rank = np.stack([np.zeros_like(degrees), np.where(first_valid, 1, 2), np.where(first_valid, 2, 1)], axis=1)
    order = np.lexsort((rank, -remainder), axis=1)
    left = degrees - sizes.sum(axis=1)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.broadcast_to(np.arange(3), order.shape), axis=1)
    sizes += place < left[:, None]
    bare = np.flatnonzero(sizes[:, 0] == 0)
    sizes[bare, 1 + sizes[bare, 1:].argmax(axis=1)] -= 1
    sizes[bare, 0] = 1
    return sizes


def split_interactions(
    user: np.ndarray, ratios: Sequence[float], seed: int, time: np.ndarray | None = None
) -> np.ndarray:
    """int8 [n]: 0, 1 or 2 for an interaction in training, validation or test; shares as in `split_sizes`.

    At random, or by time within each user: the earliest to training, the latest to test, among equal times the ones
    that stand first in the arrays to the earlier split.

    Args:
        user: [n], ascending; every number below its maximum occurs.
        time: [n], finite; None for a random split.
        seed: of the random split.
    """
    rng = np.random.default_rng(seed)
    degrees = np.bincount(user)
    if time is None:
        sizes = split_sizes(degrees, ratios, rng.random(degrees.shape[0]) < 0.5)
        order = np.lexsort((rng.random(user.shape[0]), user))
    else:
        sizes = split_sizes(degrees, ratios)
        order = np.lexsort((time, user))
    first = np.cumsum(degrees) - degrees
    rank = np.arange(user.shape[0]) - np.repeat(first, degrees)
    ends = np.repeat(sizes.cumsum(axis=1), degrees, axis=0)
    split = np.empty(user.shape[0], dtype=np.int8)
    split[order] = (rank >= ends[:, 0]).astype(np.int8) + (rank >= ends[:, 1])
    return split
