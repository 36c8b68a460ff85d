"""Profile vectors for data sets that have none, from the training matrix alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .dataset import Interactions


def cooccurrence_profiles(
    train: Interactions, num_users: int, num_items: int, dim: int = 64, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Item vectors from item co-occurrence, and each user's mean of the items of their training row.

    With A = D_u^-1/2 R D_i^-1/2 (R the binary training matrix), A^T A is the degree-normalised co-occurrence of items;
    an item's vector is its row of V S from the truncated SVD A = U S V^T, without the first direction (which is
    sqrt(degree): popularity, not taste), scaled to unit length. Users and items thus share one space.

    Args:
        train: the training rows.
        dim: width of the vectors; less where the matrix has a smaller side.
        seed: seed of the randomised SVD; the caller's generator is left as it was.

    Returns:
        float32 unit rows [num_users, dim] and [num_items, dim]; a user or item never seen in training has a zero row.
    """
    dim = min(dim, num_users - 1, num_items - 1)
    if dim < 1:
        raise ValueError(f"co-occurrence needs at least 2 users and 2 items, got {num_users} x {num_items}")
    users, items = train.edges()
    user_degree = torch.from_numpy(train.degrees.astype(np.float32)).clamp_(min=1)
    item_degree = torch.bincount(items, minlength=num_items).float().clamp_(min=1)
    values = (user_degree[users] * item_degree[items]).rsqrt()
    adjacency = torch.sparse_coo_tensor(
        torch.stack([users, items]),
        values,
        (num_users, num_items),
        device="cpu",
        is_coalesced=True,
        check_invariants=False,
    )
    oversampled = min(dim + 1 + 16, num_users, num_items)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, spectrum, right = torch.svd_lowrank(adjacency, q=oversampled, niter=6)
    item_vectors = normalize(right[:, 1 : dim + 1] * spectrum[1 : dim + 1], dim=1)
    total = item_vectors.new_zeros(num_users, item_vectors.shape[1]).index_add_(0, users, item_vectors[items])
    return normalize(total, dim=1), item_vectors
