from __future__ import annotations

import pytest
import torch
from helpers import assert_as_good_as_eager
from test_topk import dense, random_rows, tables, whole_tables

import prorec_fast
from prorec_fast.ops import topk as op
from prorec_fast.reference.topk import topk as reference


def small_steps(monkeypatch, scores: int, items: int, part: int = 4):
    """Many chunks of users and items, and rows that blocks share where there are few."""
    for name, value in (("_SCORES", scores), ("_ITEMS", items), ("_PART", part), ("_USERS", 4), ("_BLOCKS", 16)):
        monkeypatch.setattr(op, name, value)


def check(device, user, item, k, exclude=None, users=None):
    """Scores that are exact in every order of summation: the lists must be the reference's, ties and all."""
    want_scores, want = reference(user.double(), item.double(), k, exclude=exclude, users=users)
    moved = None if exclude is None else tuple(t.to(device) for t in exclude)
    scores, found = prorec_fast.topk(
        user.to(device), item.to(device), k, exclude=moved, users=None if users is None else users.to(device)
    )
    assert torch.equal(found.cpu(), want)
    assert torch.equal(scores.double().cpu(), want_scores)


@pytest.mark.parametrize(
    "users, items, dim, k",
    [(1, 1, 8, 3), (9, 507, 33, 20), (4, 130, 16, 1000), (3, 3000, 8, 1000), (3, 9001, 8, 1), (2, 17001, 5, 20),
     (2, 9000, 3, 2048), (2, 9999, 7, 250)],
)  # fmt: skip
def test_topk_matches_reference_on_the_device(device, users, items, dim, k):
    user, item = whole_tables(users, items, dim)
    for exclude in (None, random_rows(users, items)):
        check(device, user, item, k, exclude)


@pytest.mark.parametrize("k", [1, 20, 300])
@pytest.mark.parametrize("scores, items", [(2048, 128), (900, 50), (4 * 700, 4096)])
def test_topk_in_chunks_and_parts(device, monkeypatch, scores, items, k):
    small_steps(monkeypatch, scores, items)
    user, item = whole_tables(10, 701, 6)
    users = torch.tensor([9, 1, 1, 0, 4, 9, 9])
    check(device, user, item, k, random_rows(10, 701))
    check(device, user, item, k, random_rows(10, 701), users=users)
    check(device, user[:1], item, k)


@pytest.mark.parametrize("k", [1, 20, 200, 1500])
def test_topk_of_rows_that_crowd_the_candidates(device, monkeypatch, k):
    """All equal, ascending and descending scores, and few that differ: the bound from a tile's scores says little."""
    count = 18001
    rising = torch.arange(count, dtype=torch.float32) - 9000
    item = torch.stack([torch.ones(count), rising, -rising, (rising % 4000 == 0).float(), rising.round(decimals=-3)], 1)
    check(device, torch.eye(5), item, k)
    small_steps(monkeypatch, 1 << 16, 9000, part=3000)
    check(device, torch.eye(5), item, k)


def test_topk_ties_go_to_the_lower_index_on_the_device(device):
    signed_zero = torch.tensor([[0.0], [-0.0], [0.0], [-0.0]])
    check(device, torch.ones(1, 1), signed_zero, 4)
    check(device, torch.ones(1, 1), signed_zero.repeat(3000, 1), 30)
    tiny = 1e-45 if device.type == "cpu" else 2e-38  # a library's product may flush what is not normal
    least = torch.tensor([[-tiny], [0.0], [tiny], [-0.0], [-tiny]])
    check(device, torch.ones(1, 1), least.repeat(3000, 1), 30)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("k", [3, 90, 100])
def test_topk_never_ranks_nan_or_infinity_below(device, monkeypatch, chunked, k):
    if chunked:
        small_steps(monkeypatch, 60, 20)
    user, item = whole_tables(6, 90, 8)
    user = user.abs() + 1
    item[3], item[4], item[5], item[77] = torch.nan, -torch.inf, torch.inf, torch.inf
    user[2] = torch.nan
    check(device, user, item, k)
    check(device, user, item, k, random_rows(6, 90, 0.9))
    check(device, torch.full((2, 1), torch.inf), torch.ones(3000, 1), k)


def test_topk_excludes_long_rows(device, monkeypatch):
    user, item = whole_tables(3, 3001, 4)
    keep = torch.tensor([0, 5, 2999])
    rest = torch.tensor([i for i in range(3001) if i not in keep.tolist()], dtype=torch.int32)
    indptr = torch.tensor([0, 3001, 3001, 3001 + rest.numel()])
    exclude = indptr, torch.cat([torch.arange(3001, dtype=torch.int32), rest])
    check(device, user, item, 5, exclude)
    small_steps(monkeypatch, 4 * 320, 320)
    check(device, user, item, 5, exclude)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_topk_in_every_dtype_on_the_device(device, dtype):
    users, items, k = 7, 1291, 50
    user, item = (t.to(device) for t in tables(users, items, 100, dtype))
    exclude = random_rows(users, items)
    scores, found = prorec_fast.topk(user, item, k, exclude=tuple(t.to(device) for t in exclude))
    left_out = dense(exclude, items).to(device)
    truth = (user.double() @ item.double().T).masked_fill(left_out, -torch.inf)
    want = truth.topk(k).values
    assert scores.dtype == dtype and torch.equal(found == -1, want == -torch.inf)
    kept = found >= 0
    true_scores = truth.gather(1, found.clamp_min(0))
    eager = (user @ item.T).gather(1, found.clamp_min(0))
    assert_as_good_as_eager(scores[kept], eager[kept], true_scores[kept])
    torch.testing.assert_close(true_scores[kept], want[kept], rtol=0, atol=1e-4)


def test_topk_of_strided_tables_on_the_device(device):
    user, item = (t.to(device) for t in whole_tables(8, 300, 12))
    got = prorec_fast.topk(user[::2, 1::2], item[::3, ::2].requires_grad_(), 7)
    want = prorec_fast.topk(user[::2, 1::2].contiguous(), item[::3, ::2].contiguous(), 7)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and not got[0].requires_grad
    assert torch.equal(prorec_fast.topk(user.t().contiguous().t(), item, 7)[1], prorec_fast.topk(user, item, 7)[1])


def test_topk_of_nothing_on_the_device(device):
    user, item = (t.to(device) for t in whole_tables(3, 5, 4))
    assert [t.shape for t in prorec_fast.topk(user[:0], item, 3)] == [(0, 3), (0, 3)]
    scores, found = prorec_fast.topk(user, item[:0], 3)
    assert (found == -1).all() and (scores == -torch.inf).all()


def test_topk_beyond_the_kernel_is_the_reference(device):
    user, item = whole_tables(2, 3000, 4)
    check(device, user, item, 2049)
    check(device, user, item[:2000], 2500)


def test_topk_traps_what_is_out_of_range(simulated_device):
    user, item = whole_tables(2, 40, 4)
    indptr, indices = torch.tensor([0, 1, 2]), torch.tensor([3, 7], dtype=torch.int32)
    falling = torch.tensor([0, 2, 1])
    for bad in ((indptr, indices + 33), (indptr, indices - 4), (falling, indices), (indptr + 1, indices)):
        with pytest.raises(RuntimeError, match="trap"):
            op.topk_cuda(user, item, 3, *bad, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_topk_in_a_cuda_graph():
    device = torch.device("cuda")
    user, item = (t.to(device) for t in whole_tables(700, 900, 16))
    exclude = tuple(t.to(device) for t in random_rows(700, 900))
    users = torch.arange(0, 700, 3, device=device)
    op.topk_kernel(user, item, 20, *exclude, users)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = op.topk_kernel(user, item, 20, *exclude, users)
    user.copy_(user.flip(0))
    graph.replay()
    want = reference(user, item, 20, exclude=exclude, users=users)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
