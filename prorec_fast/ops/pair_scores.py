from __future__ import annotations

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast.reference.pair_scores import pair_scores as pair_scores_reference


def pair_scores(user: Tensor, item: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """<user_r, item_j> for the entries (r, j) of CSR rows, in the dtype of `user` and `item`; checked by the caller."""
    if not _native.runs_on_kernel("cuda", user, item):
        return pair_scores_reference(user, item, indptr, indices)
    user_rows, item_rows = _native.storable(user), _native.storable(item)
    scores = user.new_empty(indices.numel(), dtype=torch.float32)
    _native.call(
        user,
        "pair_scores",
        _native.matrix(user_rows),
        _native.matrix(item_rows),
        _native.csr(indptr, indices, None, item.size(0)),
        scores.data_ptr(),
    )
    return scores.to(user.dtype)
