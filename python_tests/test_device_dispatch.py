"""What serves CUDA tensors where their kernels cannot."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import prorec_fast
from prorec_fast import BipartiteGraph, _native, backends, losses


@pytest.fixture
def without_kernels(monkeypatch):
    """CPU tensors pass for CUDA tensors on a machine that has neither language's kernels."""
    monkeypatch.setattr(_native, "on_cuda", lambda t: True)
    monkeypatch.setattr(_native, "device_problem", lambda language, device: f"no {language} today")
    monkeypatch.setattr(_native, "cuda_call", lambda *_: pytest.fail("a kernel was launched"))
    _native._usable.cache_clear()
    yield
    _native._usable.cache_clear()


def _all_operations():
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randn(n, 8, generator=generator) for n in (6, 9))
    graph = BipartiteGraph.from_edges(torch.arange(6), torch.arange(6), 6, 9)
    scores, items = prorec_fast.topk(user, item, 3, exclude=graph)
    similar = torch.tensor([[1], [0], [3], [2], [5], [-1]])
    stacks = torch.stack([user.flip(0), user.flip(1)]), torch.stack([item.flip(0), item.flip(1)])
    triplets = torch.stack([torch.arange(6), torch.arange(6) + 1, torch.arange(6) + 3], 1)
    return [
        losses.distribution_kl(user, item, user.flip(0), item.flip(0)),
        losses.info_nce(user, user.flip(0)),
        losses.cross_view_info_nce(user, item[:6], user.flip(0), item[3:]),
        losses.bpr(user, item[:6], item[3:]),
        losses.multinomial_nll(user, item, None, graph),
        *losses.environment_bpr(user, item, *stacks, triplets, torch.tensor([[0.2, 0.8], [0.7, 0.3]])),
        *prorec_fast.propagate(graph, user, item),
        scores,
        items,
        *prorec_fast.ranking_metrics(items, graph, ks=(2, 3)).values(),
        prorec_fast.sample_negatives(graph, torch.arange(6), seed=3),
        *prorec_fast.retrieval.candidate_items(graph, similar),
    ]


def test_reference_serves_where_kernels_cannot_and_says_so_once(without_kernels):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        served = [_all_operations() for _ in range(2)][1]
    said = [str(warning.message) for warning in caught if "prorec_fast" in str(warning.message)]
    assert len(said) == 2
    assert any("no CUDA C++ kernels" in text and "no cuda today" in text for text in said)
    assert any("no Triton kernels" in text and "no triton today" in text for text in said)
    doubles = [t.double() if t.is_floating_point() else t for t in served]
    assert all(torch.isfinite(t).all() for t in doubles[:10])


def test_the_reference_that_serves_agrees_with_the_kernels(without_kernels, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = _all_operations()
    monkeypatch.setattr(_native, "on_cuda", lambda t: t.is_cuda)
    for got, want in zip(reference, _all_operations(), strict=True):
        torch.testing.assert_close(got, want)


def test_an_extension_without_cuda_says_how_to_build_it(monkeypatch):
    class WithoutCuda:
        pass

    monkeypatch.setattr(_native, "extension", lambda: WithoutCuda())
    with pytest.raises(ImportError, match=r"built without CUDA kernels.*PRF_CUDA=ON"):
        _native.cuda_extension()
    assert "PRF_CUDA=ON" in _native.device_problem.__wrapped__("cuda", 0)


def test_a_missing_extension_says_whether_these_are_the_sources(monkeypatch):
    monkeypatch.delattr(prorec_fast, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "prorec_fast._C", None)
    sources = Path(_native.__file__).parents[1].joinpath("CMakeLists.txt").exists()
    with pytest.raises(ImportError, match="start Python in another folder" if sources else "run 'pip install .' again"):
        _native.extension.__wrapped__()


def test_backends_name_what_serves_each_operation():
    found = backends.backends()
    assert set(found["operations"]) == set(backends.CUDA_LANGUAGE)
    for served in found["operations"].values():
        assert served["cpu"].startswith("compiled kernel")
        if not torch.cuda.is_available():
            assert served["cuda"].startswith("reference")


def test_what_serves_is_a_constant_of_compiled_code(monkeypatch):
    monkeypatch.setattr(_native, "on_cuda", lambda t: True)
    monkeypatch.setattr(_native, "device_problem", lambda *_: None if time.ctime() else "")  # cannot be traced
    _native._usable.cache_clear()
    compiled = torch.compile(lambda t: t + _native.runs_on_kernel("cuda", t), fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)) == 1
    _native._usable.cache_clear()
