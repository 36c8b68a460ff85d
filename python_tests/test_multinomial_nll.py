from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_compiled_equals_eager, check_against_reference, leaves

from prorec_fast import BipartiteGraph, losses
from prorec_fast.ops import multinomial_nll as op
from prorec_fast.reference.multinomial_nll import multinomial_nll as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def decoder(batch: int, depth: int, num_items: int, dtype=torch.float32, scale: float = 1.0):
    """hidden, weight, bias."""
    generator = torch.Generator().manual_seed(batch * 1000 + num_items)
    shapes = (batch, depth), (num_items, depth), (num_items,)
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def targets(rows: int, num_items: int, share: float = 0.2, valued: bool = False):
    """(indptr, indices, values or None): every third row is empty."""
    generator = torch.Generator().manual_seed(rows + num_items)
    dense = torch.rand(rows, num_items, generator=generator) < share
    dense[1::3] = False
    indptr = F.pad(dense.sum(1).cumsum(0), (1, 0))
    values = 3 * torch.rand(int(indptr[-1]), generator=generator) if valued else None
    return indptr, dense.nonzero()[:, 1].int(), values


def given(found):
    """targets() as an argument."""
    return found[:2] if found[2] is None else found


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(op, "_LOGIT_BYTES", 4 * 129 * 9)
    monkeypatch.setattr(op, "_ROWS", 2)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_multinomial_nll_matches_reference(reduction, dtype):
    for batch, depth, num_items in ((1, 1, 1), (1, 8, 33), (70, 24, 5), (33, 33, 129), (9, 16, 1500)):
        found = targets(batch, num_items, valued=num_items % 2 == 1)
        check_against_reference(
            lambda *t, x=found: losses.multinomial_nll(*t, given(x), reduction=reduction),
            lambda *t, x=found: reference(*t, x, reduction=reduction),
            decoder(batch, depth, num_items, dtype),
        )


@pytest.mark.every_level
@pytest.mark.parametrize("share", [0.01, 1.0])
@pytest.mark.parametrize("batch", [1, 129, 200])
def test_multinomial_nll_matches_reference_in_chunks_of_rows_given_by_index(batch, share, small_chunks):
    found = targets(40, 129, share, valued=True)
    rows = torch.randint(40, (batch,), generator=torch.Generator().manual_seed(batch))
    check_against_reference(
        lambda *t: losses.multinomial_nll(*t, found, rows=rows, reduction="sum"),
        lambda *t: reference(*t, found, rows=rows, reduction="sum"),
        decoder(batch, 24, 129),
    )


@pytest.mark.every_level
def test_multinomial_nll_matches_reference_with_long_rows():
    found = targets(5, 40_000, 1e-3)
    check_against_reference(
        lambda *t: losses.multinomial_nll(*t, given(found)), lambda *t: reference(*t, found), decoder(5, 2, 40_000)
    )


@pytest.mark.every_level
def test_multinomial_nll_matches_reference_without_bias_strided_and_confident():
    found = targets(30, 50, valued=True)
    hidden, weight, bias = decoder(60, 32, 100, scale=8.0)
    for tables in ((hidden[::2, 1::2], weight[::2, ::2]), (hidden[:30, :20], weight[:20, :30].T[:, :20][:50])):
        num_items = tables[1].size(0)
        x = targets(30, num_items, valued=True)
        check_against_reference(
            lambda *t, x=x: losses.multinomial_nll(*t, None, x), lambda *t, x=x: reference(*t, None, x), tables
        )
    check_against_reference(
        lambda *t: losses.multinomial_nll(*t, found),
        lambda *t: reference(*t, found),
        (hidden[::2], weight[::2], bias[1::2]),
    )


@pytest.mark.filterwarnings("ignore:Sparse")
def test_multinomial_nll_is_the_loss_of_dense_targets():
    hidden, weight, bias = decoder(30, 8, 70)
    indptr, indices, values = targets(30, 70, valued=True)
    dense = torch.sparse_csr_tensor(indptr, indices.long(), values, (30, 70)).to_dense()
    want = -(dense * F.linear(hidden, weight, bias).log_softmax(1)).sum(1)
    got = losses.multinomial_nll(hidden, weight, bias, (indptr, indices, values), reduction="none")
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not got[1::3].any()


@pytest.mark.filterwarnings("ignore:Sparse")
def test_multinomial_nll_takes_every_form_of_targets():
    tensors = decoder(30, 8, 70)
    indptr, indices, values = targets(30, 70, valued=True)
    graphs = [BipartiteGraph.from_csr(indptr, indices, 70, values=v) for v in (values, None)]
    for graph, weights in zip(graphs, (values, torch.ones_like(values)), strict=True):
        want = losses.multinomial_nll(*tensors, (indptr, indices, weights))
        sparse = torch.sparse_csr_tensor(indptr, indices.long(), weights, (30, 70))
        for form in (graph, sparse, (indptr, indices.long(), weights.double())):
            assert losses.multinomial_nll(*tensors, form) == want
    assert losses.multinomial_nll(*tensors, (indptr, indices)) == want


@pytest.mark.parametrize("which", range(3))
def test_multinomial_nll_grad_of_each_input_alone(which):
    found = targets(65, 40)
    tensors = decoder(65, 24, 40)
    tensors[which].requires_grad_()
    losses.multinomial_nll(*tensors, given(found)).backward()
    truth = [t.detach().double() for t in tensors]
    truth[which].requires_grad_()
    reference(*truth, found).backward()
    torch.testing.assert_close(tensors[which].grad.double(), truth[which].grad, rtol=1e-5, atol=1e-7)
    assert all(tensors[i].grad is None for i in range(3) if i != which)


def test_multinomial_nll_gradcheck_float64():
    tensors = [t.double().requires_grad_() for t in decoder(4, 3, 7)]
    assert torch.autograd.gradcheck(lambda *t: losses.multinomial_nll(*t, targets(4, 7, 0.5, valued=True)), tensors)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_multinomial_nll_refuses_a_second_derivative(reduction):
    tensors = leaves(decoder(4, 3, 7))
    total = losses.multinomial_nll(*tensors, given(targets(4, 7)), reduction=reduction).sum()
    (grad, *_) = torch.autograd.grad(total, tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="multinomial_nll: its second derivative"):
        grad.sum().backward()


def test_multinomial_nll_differentiates_once_more_where_the_graph_is_kept():
    found, scale = given(targets(20, 30)), torch.tensor(3.0)
    tensors = leaves(decoder(20, 8, 30))
    loss = losses.multinomial_nll(*tensors, found)
    first = [g.clone() for g in torch.autograd.grad(loss, tensors, retain_graph=True)]
    kept = torch.autograd.grad(loss, tensors, scale, retain_graph=True)
    last = torch.autograd.grad(loss, tensors, scale)
    for one, three, also_three in zip(first, kept, last, strict=True):
        torch.testing.assert_close(three, 3 * one)
        assert torch.equal(three, also_three)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, tensors)


def test_multinomial_nll_takes_a_batch_of_incoming_gradients():
    tensors, found = leaves(decoder(20, 8, 30)), given(targets(20, 30))
    several = torch.tensor([1.0, -3.0])
    loss = losses.multinomial_nll(*tensors, found)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    batched = torch.autograd.grad(loss, tensors, several, is_grads_batched=True)
    for one, both in zip(first, batched, strict=True):
        torch.testing.assert_close(both, torch.stack([one, -3 * one]))


def test_multinomial_nll_hands_over_the_gradients_that_it_saved():
    """No table of the size of `weight` is made where one of that size is about to be freed."""
    tensors, found = leaves(decoder(20, 64, 4000)), given(targets(20, 4000))
    with torch.profiler.profile(profile_memory=True) as profile:
        losses.multinomial_nll(*tensors, found).backward()
    made = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert sum(size >= tensors[1].nbytes for size in made) == 1, made


def test_multinomial_nll_of_empty_inputs():
    hidden, weight, bias = leaves(decoder(6, 8, 40))
    loss = losses.multinomial_nll(hidden[:0], weight, bias, given(targets(0, 40)))
    loss.backward()
    assert loss == 0 and not weight.grad.any() and not bias.grad.any()
    nothing = torch.zeros(7, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
    for items in (0, 40):
        found = losses.multinomial_nll(hidden, weight[:items], bias[:items], nothing, reduction="none")
        assert torch.equal(found, torch.zeros(6))
        grads = torch.autograd.grad(found.sum(), (hidden, weight, bias))
        assert not any(g.any() for g in grads)


def test_multinomial_nll_of_extreme_logits():
    hidden, weight, bias = decoder(40, 8, 2000)
    check_against_reference(
        lambda *t: losses.multinomial_nll(*t, given(targets(40, 2000))),
        lambda *t: reference(*t, targets(40, 2000)),
        (1e4 * hidden, weight, bias),
    )


@pytest.mark.every_level
def test_multinomial_nll_of_masked_items_and_values_of_zero(small_chunks):
    """A whole block of columns is masked, and some rows' only target would be, if its value were not 0."""
    hidden, weight, bias = decoder(12, 8, 4000)
    masked = torch.arange(4000) // 1024 == 1
    masked[::7] = True
    bias[masked] = -torch.inf
    indptr, indices, values = targets(12, 4000, 0.01, valued=True)
    values[masked[indices.long()]] = 0
    found = (indptr, indices, values)
    ours, truth = leaves((hidden, weight, bias)), leaves((hidden, weight, bias), torch.float64)
    got = losses.multinomial_nll(*ours, found, reduction="none")
    want = reference(*truth, found, reduction="none")
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)
    assert not ours[1].grad[masked].any() and not ours[2].grad[masked].any()
    masked_target = (torch.tensor([0, 1]), torch.tensor([7]))
    assert losses.multinomial_nll(hidden[:1], weight, bias, masked_target) == torch.inf


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_multinomial_nll_keeps_what_is_not_finite_in_its_row(bad, small_chunks):
    hidden, weight, bias = leaves(decoder(30, 8, 2100))
    with torch.no_grad():
        hidden[6, 3] = bad
    loss = losses.multinomial_nll(hidden, weight, bias, given(targets(30, 2100)), reduction="none")
    assert loss.isnan().nonzero().tolist() == [[6]]
    loss.sum().backward()
    assert hidden.grad.isnan().any(1).nonzero().tolist() == [[6]]
    assert weight.grad.isnan().any() and bias.grad.isnan().any()
    with torch.no_grad():
        bias[1500] = float("nan")
    loss = losses.multinomial_nll(hidden, weight, bias, given(targets(30, 2100)), reduction="none")
    assert torch.equal(loss.isnan(), torch.arange(30) % 3 != 1)


def test_multinomial_nll_chunks_cover_the_batch_once_and_are_bounded():
    for batch, num_items in ((0, 5), (1, 0), (1000, 7), (1000, 9332), (1024, 200_000), (5, 10**9)):
        found = list(op.chunks(batch, num_items, 32 << 20, 192))
        assert [r for chunk in found for r in range(chunk.start, chunk.stop)] == list(range(batch))
        sizes = [chunk.stop - chunk.start for chunk in found]
        assert all(size <= 192 or 4 * size * num_items <= 32 << 20 for size in sizes)
        assert not sizes or (sizes[0] == max(sizes) and max(sizes) - min(sizes) < len(sizes))
    assert len(list(op.chunks(1024, 9332, 32 << 20, 192))) == 2


@pytest.mark.every_level
def test_multinomial_nll_kernel_is_the_same_for_any_number_of_threads():
    """The kernel alone: torch's products are their library's."""
    from prorec_fast import _native

    logits = torch.randn(150, 3001, generator=torch.Generator().manual_seed(0))
    indptr, indices, _ = targets(150, 3001, 0.01)
    bias, coefficient = torch.randn(3001), torch.ones(150)
    results = []
    for threads in (1, 2, 7):
        chunk, loss, grad_bias = logits.clone(), torch.empty(150), torch.zeros(3001)
        _native.extension().multinomial_nll(
            _native.matrix(chunk), bias.data_ptr(), _native.csr(indptr, indices, None, 3001), 0,
            coefficient.data_ptr(), loss.data_ptr(), grad_bias.data_ptr(), threads,
        )  # fmt: skip
        results.append((chunk, loss, grad_bias))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))
    torch.testing.assert_close(results[0][2], results[0][0].double().sum(0).float(), rtol=1e-5, atol=1e-5)


def test_multinomial_nll_compiles_and_registers():
    tensors = [t.requires_grad_() for t in decoder(40, 16, 60)]
    indptr, indices, values = targets(25, 60, valued=True)
    rows = torch.arange(40) % 25
    torch.library.opcheck(
        torch.ops.prorec_fast.multinomial_nll, (*tensors, rows, indptr, indices, values, torch.rand(40))
    )
    torch.library.opcheck(torch.ops.prorec_fast.multinomial_nll_rows, (*tensors, rows, indptr, indices, None))
    graph = BipartiteGraph.from_csr(indptr, indices, 60)
    for reduction in ("mean", "none"):
        assert_compiled_equals_eager(
            lambda *t, r=reduction: losses.multinomial_nll(*t, graph, rows=rows, reduction=r), tensors
        )
    assert_compiled_equals_eager(lambda *t: losses.multinomial_nll(*t, None, graph, rows=rows), tensors[:2])


INDPTR, INDICES = torch.tensor([0, 2, 2, 3, 3]), torch.tensor([1, 4, 0])
VALUES = torch.ones(3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden": torch.zeros(4)}, "hidden: want shape"),
        ({"weight": torch.zeros(6, 7)}, r"weight: want shape \[any, 8\]"),
        ({"weight": torch.zeros(6, 8).double()}, "weight: want the device and dtype of hidden"),
        ({"bias": torch.zeros(5)}, r"bias: want shape \[6\]"),
        ({"bias": torch.zeros(6, 1)}, r"bias: want shape \[6\]"),
        ({"bias": torch.zeros(6).long()}, "bias: want a floating tensor"),
        ({"bias": torch.zeros(6).half()}, "bias: want the device and dtype of hidden"),
        ({"targets": torch.zeros(4, 6)}, r"targets: want a BipartiteGraph, .* \(indptr, indices\[, values\]\)"),
        ({"targets": (INDPTR, INDICES, VALUES, VALUES)}, "targets: want a BipartiteGraph"),
        ({"targets": (INDPTR[:-1], INDICES)}, "targets: want 4 rows, got 3"),
        ({"targets": (INDPTR, INDICES + 2)}, r"targets: want indices in \[0, 6\)"),
        ({"targets": (INDPTR, INDICES, VALUES[:2])}, r"targets: want values as a floating tensor of shape \(3,\)"),
        ({"targets": (INDPTR, INDICES, VALUES.long())}, "targets: want values as a floating tensor"),
        ({"targets": (INDPTR, INDICES, -VALUES)}, "targets: want finite values of at least 0"),
        ({"targets": (INDPTR, INDICES, VALUES / 0)}, "targets: want finite values"),
        ({"targets": (INDPTR, INDICES, VALUES * float("nan"))}, "targets: want finite values"),
        ({"targets": (INDPTR, INDICES, VALUES.clone().requires_grad_())}, "targets: want values without a gradient"),
        ({"targets": BipartiteGraph.from_csr(INDPTR, INDICES, 7)}, "targets: want 6 columns, got 7"),
        ({"rows": torch.tensor([0, 1, 4, 0])}, r"rows: want entries in \[0, 4\)"),
        ({"rows": torch.tensor([0, 1, 2])}, r"rows: want one for each row of hidden \[4\], got \[3\]"),
        ({"rows": torch.tensor([0.0])}, "rows: want a 1-d int64 tensor"),
        ({"reduction": "median"}, "reduction"),
    ],
)
def test_multinomial_nll_rejects(changes, message):
    hidden, weight, bias = decoder(4, 8, 6)
    arguments = {"hidden": hidden, "weight": weight, "bias": bias, "targets": (INDPTR, INDICES)} | changes
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        losses.multinomial_nll(**arguments)
