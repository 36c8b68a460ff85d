from __future__ import annotations

import pytest
import torch
from helpers import assert_as_good_as_eager

from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.reference.pair_scores import pair_scores as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 7, 33])
def test_pair_scores_matches_reference_on_the_device(device, dim, dtype):
    generator = torch.Generator().manual_seed(dim)
    user, item = (torch.randn(n, dim, generator=generator).to(dtype).to(device) for n in (9, 50))
    lengths = torch.tensor([0, 3, 0, 0, 41, 1, 0, 5, 0])
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
    indices = torch.randint(50, (50,), generator=generator, dtype=torch.int32).to(device)
    for u, v in ((user, item), (user.repeat(1, 2)[:, :dim], item.flip(0))):
        got, eager = (f(u, v, indptr, indices) for f in (pair_scores, reference))
        assert_as_good_as_eager(got, eager, reference(u.double(), v.double(), indptr, indices))


def test_pair_scores_of_nothing_on_the_device(device):
    indptr, indices = torch.zeros(1, dtype=torch.int64, device=device), torch.empty(0, dtype=torch.int32, device=device)
    empty = torch.empty(0, 4, device=device)
    assert pair_scores(empty, empty, indptr, indices).shape == (0,)
