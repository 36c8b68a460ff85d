"""The k-core of an interaction graph."""

from __future__ import annotations

import numpy as np


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """Indices of the interactions in the k-core, ascending.

    The largest set of interactions in which every user and every item that has any has at least k. Users and items with
    fewer are dropped until none is left, which ends at that set whatever the order (Seidman, Network structure and
    minimum degree, 1983).

    Args:
        user, item: non-negative integers [n], distinct pairs.
    """
    kept = np.arange(user.shape[0])
    while kept.size:
        u, i = user[kept], item[kept]
        stays = (np.bincount(u)[u] >= k) & (np.bincount(i)[i] >= k)
        if stays.all():
            break
        kept = kept[stays]
    return kept
