"""multinomial_nll on the device path. Tiny sizes: without a device, Triton's interpreter runs the kernel."""

from __future__ import annotations

import pytest
import torch
from helpers import check_against_reference, leaves
from test_multinomial_nll import decoder, given, targets

from prorec_fast import BipartiteGraph, losses
from prorec_fast.reference.multinomial_nll import multinomial_nll as reference


def on(device, tensors):
    return [None if t is None else t.to(device) for t in tensors]


@pytest.fixture
def small_chunks(monkeypatch):
    kernel = pytest.importorskip("prorec_fast.triton_kernels.multinomial_nll")
    monkeypatch.setattr(kernel, "_LOGIT_BYTES", 4 * 129 * 9)
    monkeypatch.setattr(kernel, "_PRODUCT_BYTES", 4 * 24 * 50)
    monkeypatch.setattr(kernel, "_ROWS", 2)
    monkeypatch.setattr(kernel, "_BLOCK_N", 512)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_multinomial_nll_on_device_matches_reference(device, reduction, dtype):
    for batch, depth, num_items in ((1, 1, 1), (12, 24, 5), (9, 33, 129), (5, 16, 2500)):
        found = tuple(on(device, targets(batch, num_items, valued=num_items % 2 == 1)))
        check_against_reference(
            lambda *t, x=found: losses.multinomial_nll(*t, given(x), reduction=reduction),
            lambda *t, x=found: reference(*t, x, reduction=reduction),
            on(device, decoder(batch, depth, num_items, dtype)),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_multinomial_nll_on_device_in_chunks_of_rows_given_by_index(device, dtype, small_chunks):
    found = tuple(on(device, targets(20, 129, 1.0, valued=True)))
    rows = torch.randint(20, (30,), generator=torch.Generator().manual_seed(0)).to(device)
    check_against_reference(
        lambda *t: losses.multinomial_nll(*t, found, rows=rows, reduction="none"),
        lambda *t: reference(*t, found, rows=rows, reduction="none"),
        on(device, decoder(30, 24, 129, dtype)),
    )


def test_multinomial_nll_on_device_without_bias_strided_and_confident(device):
    hidden, weight, bias = on(device, decoder(30, 32, 100, scale=8.0))
    found = tuple(on(device, targets(15, 50)))
    for tables in ((hidden[::2, 1::2], weight[::2, ::2], bias[1::2]), (hidden[:15, :20], weight[:20, :].T[:, :20])):
        items = tables[1].size(0)
        x = found if items == 50 else tuple(on(device, targets(15, items, valued=True)))
        b = () if len(tables) == 3 else (None,)
        check_against_reference(
            lambda *t, x=x, b=b: losses.multinomial_nll(*t, *b, given(x)),
            lambda *t, x=x, b=b: reference(*t, *b, x),
            tables,
        )


def test_multinomial_nll_on_device_of_masked_items_and_values_of_zero(device, small_chunks):
    """A whole block of columns is masked, the first, and some targets would be, if their values were not 0."""
    hidden, weight, bias = on(device, decoder(9, 8, 1200))
    masked = (torch.arange(1200) // 512 != 1).to(device)
    bias[masked] = -torch.inf
    indptr, indices, values = on(device, targets(9, 1200, 0.02, valued=True))
    values[masked[indices.long()]] = 0
    ours, truth = leaves((hidden, weight, bias)), leaves((hidden, weight, bias), torch.float64)
    got = losses.multinomial_nll(*ours, (indptr, indices, values), reduction="none")
    want = reference(*truth, (indptr, indices, values), reduction="none")
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)
    assert not ours[1].grad[masked].any() and not ours[2].grad[masked].any()


def test_multinomial_nll_on_device_properties(device, small_chunks):
    hidden, weight, bias = leaves(on(device, decoder(12, 8, 700)))
    found = given(tuple(on(device, targets(12, 700))))
    for which in range(3):
        tensors = [t.detach().requires_grad_(i == which) for i, t in enumerate((hidden, weight, bias))]
        losses.multinomial_nll(*tensors, found).backward()
        assert [t.grad is None for t in tensors] == [i != which for i in range(3)]
    with torch.no_grad():
        huge = losses.multinomial_nll(1e4 * hidden, weight, bias, found, reduction="none")
        assert torch.isfinite(huge).all() and not huge[1::3].any()
        hidden[6, 3] = float("nan")
    loss = losses.multinomial_nll(hidden, weight, bias, found, reduction="none")
    assert loss.isnan().nonzero().tolist() == [[6]]
    loss.sum().backward()
    assert hidden.grad.isnan().any(1).nonzero().tolist() == [[6]]
    with torch.no_grad():
        bias[500] = float("nan")
    loss = losses.multinomial_nll(hidden, weight, bias, found, reduction="none")
    assert torch.equal(loss.isnan(), torch.arange(12, device=device) % 3 != 1)


def test_multinomial_nll_on_device_of_empty_inputs(device):
    hidden, weight, bias = leaves(on(device, decoder(6, 8, 40)))
    nothing = torch.zeros(7, dtype=torch.int64, device=device), torch.zeros(0, dtype=torch.int32, device=device)
    for batch, items in ((6, 0), (6, 40), (0, 40)):
        inputs = hidden[:batch], weight[:items], bias[:items]
        found = losses.multinomial_nll(*inputs, (nothing[0][: batch + 1], nothing[1]), reduction="none")
        assert torch.equal(found, torch.zeros(batch, device=device))
        grads = torch.autograd.grad(found.sum(), (hidden, weight, bias))
        assert not any(g.any() for g in grads)


def test_multinomial_nll_on_device_takes_a_graph(device):
    tensors = on(device, decoder(30, 8, 70))
    indptr, indices, values = on(device, targets(30, 70, valued=True))
    graph = BipartiteGraph.from_csr(indptr, indices, 70, values=values)
    assert losses.multinomial_nll(*tensors, graph) == losses.multinomial_nll(*tensors, (indptr, indices, values))
