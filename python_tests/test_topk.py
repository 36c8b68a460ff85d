from __future__ import annotations

import pytest
import torch
from helpers import assert_as_good_as_eager

import prorec_fast
from prorec_fast import BipartiteGraph
from prorec_fast.doctor.accuracy import ERROR_FLOOR
from prorec_fast.reference.topk import topk as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def tables(users: int, items: int, dim: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(users * 1000 + dim)
    return [torch.randn(rows, dim, generator=generator).to(dtype) for rows in (users, items)]


def whole_tables(users: int, items: int, dim: int):
    """Small integers: every score is exact in every order of summation, and many are equal."""
    generator = torch.Generator().manual_seed(users + items + dim)
    return [torch.randint(-2, 3, (rows, dim), generator=generator).float() for rows in (users, items)]


def random_rows(users: int, items: int, density: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """CSR rows of random items; the first row is full and the second empty, where there are two."""
    mask = torch.rand(users, items, generator=torch.Generator().manual_seed(users)) < density
    if users > 1:
        mask[0], mask[1] = True, False
    graph = BipartiteGraph.from_edges(*mask.nonzero(as_tuple=True), users, items)
    return graph.csr()


def dense(rows: tuple[torch.Tensor, torch.Tensor], items: int) -> torch.Tensor:
    return BipartiteGraph.from_csr(*rows, items).to_sparse_csr().to_dense().bool()


@pytest.mark.every_level
@pytest.mark.parametrize("k", [1, 20, 1000])
@pytest.mark.parametrize("users, items, dim", [(1, 1, 8), (129, 507, 33), (507, 129, 16), (65, 4097, 8)])
def test_topk_matches_reference_exactly(users, items, dim, k):
    user, item = whole_tables(users, items, dim)
    exclude = random_rows(users, items)
    for rows in (None, exclude):
        scores, found = prorec_fast.topk(user, item, k, exclude=rows)
        want_scores, want = reference(user.double(), item.double(), k, exclude=rows)
        assert torch.equal(found, want)
        assert torch.equal(scores.double(), want_scores)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("users, items, dim, k", [(129, 507, 32, 20), (33, 1291, 100, 50), (70, 300, 512, 300)])
def test_topk_matches_reference(users, items, dim, k, dtype):
    """Against float64 scores, without asking which of two scores that rounding can swap comes first."""
    user, item = tables(users, items, dim, dtype)
    exclude = random_rows(users, items)
    scores, found = prorec_fast.topk(user, item, k, exclude=exclude)
    truth = (user.double() @ item.double().T).masked_fill(dense(exclude, items), float("-inf"))
    want = truth.topk(k).values
    left_out = want == float("-inf")
    assert scores.dtype == dtype and found.dtype == torch.int64
    assert torch.equal(found == -1, left_out) and torch.equal(scores == float("-inf"), left_out)
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    assert all(row[row >= 0].unique().numel() == (row >= 0).sum() for row in found)
    eager = (user @ item.T).gather(1, found.clamp_min(0))
    true_scores = truth.gather(1, found.clamp_min(0)).masked_fill(left_out, 0.0)
    assert_as_good_as_eager(scores.masked_fill(left_out, 0.0), eager.masked_fill(left_out, 0.0), true_scores)
    # What was found is as good, place by place, as the best there is: the order is that of float32 sums.
    slack = ERROR_FLOOR[torch.float32] * want[~left_out].abs().max()
    assert (true_scores >= want.masked_fill(left_out, 0.0) - slack).all()


def test_topk_float64_keeps_its_precision():
    user, item = (t.double() for t in tables(5, 40, 8))
    item[7] = item[3] * (1 + 1e-12)
    scores, found = prorec_fast.topk(user, item, 40)
    assert torch.equal(found, (user @ item.T).sort(dim=1, descending=True, stable=True).indices)
    assert scores.dtype == torch.float64


@pytest.mark.every_level
def test_topk_ties_go_to_the_lower_index():
    user = torch.ones(3, 4)
    scores, found = prorec_fast.topk(user, torch.ones(1000, 4), 300)
    assert torch.equal(found, torch.arange(300).expand(3, -1)) and (scores == 4).all()
    signed_zero = torch.tensor([[0.0], [-0.0], [0.0]])  # -0 is the same score as 0
    assert prorec_fast.topk(torch.ones(1, 1), signed_zero, 3)[1].tolist() == [[0, 1, 2]]
    user, item = tables(9, 50, 24)
    found = prorec_fast.topk(user, item.repeat(20, 1), 40)[1]  # each item twenty times
    copies = prorec_fast.topk(user, item, 2)[1][:, :, None] + 50 * torch.arange(20)
    assert torch.equal(found, copies.flatten(1))


def test_topk_users_may_repeat_and_exclusion_follows_them():
    user, item = whole_tables(40, 300, 12)
    exclude = random_rows(40, 300)
    users = torch.tensor([39, 1, 1, 0, 17])
    got = prorec_fast.topk(user, item, 25, exclude=exclude, users=users)
    everyone = prorec_fast.topk(user, item, 25, exclude=exclude)
    for one, all_rows in zip(got, everyone, strict=True):
        assert torch.equal(one, all_rows[users])


def test_topk_forms_of_exclude_agree():
    user, item = tables(30, 200, 16)
    indptr, indices = random_rows(30, 200)
    graph = BipartiteGraph.from_csr(indptr, indices, 200)
    want = prorec_fast.topk(user, item, 10, exclude=graph)[1]
    for form in (graph.to_sparse_csr(), (indptr, indices), (indptr, indices.long())):
        assert torch.equal(prorec_fast.topk(user, item, 10, exclude=form)[1], want)
    assert not dense((indptr, indices), 200).gather(1, want.clamp_min(0))[want >= 0].any()


def test_topk_fewer_items_than_k():
    user, item = tables(2, 5, 8)
    exclude = (torch.tensor([0, 5, 8]), torch.tensor([0, 1, 2, 3, 4, 0, 2, 4]))
    scores, found = prorec_fast.topk(user, item, 4, exclude=exclude)
    assert found[0].tolist() == [-1] * 4 and (scores[0] == float("-inf")).all()
    assert sorted(found[1, :2].tolist()) == [1, 3] and found[1, 2:].tolist() == [-1, -1]
    assert prorec_fast.topk(user, item, 9)[1][:, 5:].tolist() == [[-1] * 4] * 2
    assert [t.shape for t in prorec_fast.topk(user[:0], item, 3)] == [(0, 3), (0, 3)]
    assert prorec_fast.topk(user, item[:0], 3)[1].tolist() == [[-1] * 3] * 2


def test_topk_never_ranks_nan_or_minus_infinity():
    user, item = tables(6, 90, 8)
    user = user.abs()
    item[3], item[4], item[5] = float("nan"), float("-inf"), float("inf")
    user[2] = float("nan")
    scores, found = prorec_fast.topk(user, item, 90)
    want = reference(user, item, 90)[1]
    assert torch.equal(found == -1, want == -1) and (found[2] == -1).all()
    assert not torch.isin(found, torch.tensor([3, 4])).any()
    assert not scores.isnan().any() and (scores[[0, 1, 3, 4, 5], 0] == float("inf")).all()
    assert (found[[0, 1, 3, 4, 5], 0] == 5).all()


def test_topk_strided_and_detached():
    user, item = (t.requires_grad_() for t in tables(40, 300, 64))
    scores, found = prorec_fast.topk(user[::2, 1::2], item[::3, ::2], 7)
    assert not scores.requires_grad
    assert torch.equal(found, prorec_fast.topk(user[::2, 1::2].contiguous(), item[::3, ::2].contiguous(), 7)[1])
    across = prorec_fast.topk(torch.randn(16, 20).t(), torch.randn(16, 50).t(), 7)[1]
    assert across.shape == (20, 7)


@pytest.mark.every_level
@pytest.mark.parametrize("users", [1, 3, 40, 700])
def test_topk_does_not_depend_on_threads_or_segments(users):
    """Few users are ranked over several segments of the items; the lists must be those of one segment."""
    user, item = tables(users, 3000, 64)
    exclude = random_rows(users, 3000)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(prorec_fast.topk(user, item, 30, exclude=exclude))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_topk_wide_tables_are_packed_in_chunks():
    """512 columns need more than one chunk of panels, so a row's candidates outlive a pass over the users."""
    user, item = whole_tables(10, 3000, 512)
    assert torch.equal(prorec_fast.topk(user, item, 100)[1], reference(user, item, 100)[1])


def test_topk_compiles_and_registers():
    user, item = tables(20, 100, 16)
    indptr, indices = random_rows(20, 100)
    users = torch.tensor([3, 3, 8])
    for arguments in ((indptr, indices, users), (None, None, None)):
        torch.library.opcheck(torch.ops.prorec_fast.topk, (user, item, 5, *arguments))
    graph = BipartiteGraph.from_csr(indptr, indices, 100)
    compiled = torch.compile(prorec_fast.topk, fullgraph=True, backend="aot_eager")
    for exclude in (None, graph, (indptr, indices)):
        for got, want in zip(
            compiled(user, item, 5, exclude=exclude, users=users),
            prorec_fast.topk(user, item, 5, exclude=exclude, users=users),
            strict=True,
        ):
            assert torch.equal(got, want)


GOOD_ROWS = (torch.tensor([0, 1, 1, 2, 3]), torch.tensor([5, 0, 9]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"user": torch.randn(8)}, "user: want shape"),
        ({"item": torch.randn(10, 7)}, "item: want shape"),
        ({"item": torch.randn(10, 8).double()}, "item: want the device and dtype of user"),
        ({"user": torch.ones(4, 8, dtype=torch.int64)}, "user: want a floating tensor"),
        ({"k": 0}, "k: want an integer of at least 1"),
        ({"k": 2.5}, "k: want an integer of at least 1"),
        ({"users": torch.tensor([4])}, "users: want entries in"),
        ({"users": torch.tensor([0.0])}, "users: want a 1-d int64 tensor"),
        ({"exclude": torch.ones(4, 10)}, "exclude: want a BipartiteGraph"),
        ({"exclude": (GOOD_ROWS[0][:-1], GOOD_ROWS[1][:2])}, "exclude: want 4 rows, got 3"),
        ({"exclude": BipartiteGraph.from_csr(*GOOD_ROWS, 11)}, "exclude: want 10 columns, got 11"),
        ({"exclude": (GOOD_ROWS[0], torch.tensor([5, 0, 10]))}, "exclude: want indices in"),
        ({"exclude": (GOOD_ROWS[0], torch.tensor([5, -1, 9]))}, "exclude: want indices in"),
        ({"exclude": (torch.tensor([0, 2, 1, 3, 3]), GOOD_ROWS[1])}, "exclude: want indptr to rise"),
        ({"exclude": (torch.tensor([0, 1, 1, 2, 4]), GOOD_ROWS[1])}, "exclude: want indptr to rise"),
        ({"exclude": (torch.tensor([0, 2, 2, 2, 3]), GOOD_ROWS[1])}, "exclude: want indices strictly ascending"),
        ({"exclude": (GOOD_ROWS[0].int(), GOOD_ROWS[1])}, "exclude: want indptr as a 1-d int64"),
        ({"exclude": (GOOD_ROWS[0], GOOD_ROWS[1].float())}, "exclude: want indices as a 1-d int32"),
    ],
)
def test_topk_rejects(arguments, message):
    good = {"user": torch.randn(4, 8), "item": torch.randn(10, 8), "k": 3, "exclude": GOOD_ROWS}
    prorec_fast.topk(**good)
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        prorec_fast.topk(**{**good, **arguments})
