"""What works with what: every operation under what training code uses of PyTorch, and README's table of it.

`python python_tests/test_support.py` prints the table.
"""

from __future__ import annotations

import copy
import pickle
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from support_calls import CALLS
from support_features import FEATURES, OF_GRADIENTS, OF_TABLES, SIZES, assert_same, outputs
from torch import Tensor
from training_data import tiny

from prorec_fast import BipartiteGraph, _native, losses, propagate, topk
from prorec_fast.frameworks import ProEx, ProMax
from prorec_fast.frameworks.profile_head import ProfileHead, ProfileTables
from prorec_fast.models import LightGCN, MultVAE

README = Path(__file__).parent.parent / "README.md"
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@cache
def entry(operation: str, feature: str, device: str = "cpu") -> str:
    """Whether they work together, in a word; an exception where that is not what happens."""
    call = CALLS[operation](device)
    if (feature in OF_GRADIENTS and not call.differentiable) or (feature in OF_TABLES and not call.shapes):
        return "-"
    return FEATURES[feature](call) or "yes"


def markdown() -> str:
    """README's table; "no" where an entry's check fails."""

    def tried(operation: str, feature: str) -> str:
        try:
            return entry(operation, feature)
        except Exception:
            return "no"

    lines = [["", *FEATURES], ["---"] * (1 + len(FEATURES))]
    lines += [[f"`{operation}`", *(tried(operation, feature) for feature in FEATURES)] for operation in CALLS]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("operation", CALLS)
def test_support(operation, feature):
    entry(operation, feature)


def test_support_is_what_readme_says():
    assert markdown() in README.read_text(encoding="utf-8"), "run python_tests/test_support.py for README's table"


@pytest.mark.parametrize("operation", [name for name, call in CALLS.items() if call.shapes])
def test_support_of_autocast_without_kernels(operation, monkeypatch):
    """Where plain PyTorch serves, its products are not narrowed either."""
    monkeypatch.setattr(_native, "device_has_kernel", lambda *_: False)
    call = CALLS[operation]()
    want = outputs(call)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(outputs(call), want)


@pytest.mark.parametrize("model, framework", [(LightGCN, ProMax), (LightGCN, ProEx), (MultVAE, ProEx)])
def test_support_of_models_and_objectives(tmp_path, model, framework):
    """A training step under autocast, and after it one of copies, are those of the objective."""
    data = tiny(tmp_path / "tiny")
    objective = framework().bind(model(data, dim=8), data)
    triplets = *(index[:30] for index in data.train.edges()), torch.arange(30)
    batch = triplets if model is LightGCN else (triplets[0].unique(),)

    def step(objective, *, narrowed: bool = False) -> list[Tensor]:
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=narrowed):
            loss = sum(objective.terms(*batch).values())
        grads = torch.autograd.grad(loss, objective.all_parameters(), allow_unused=True)
        return [loss.detach(), *(grad for grad in grads if grad is not None)]

    kept = [copy.deepcopy(objective) for _ in range(2)]
    with torch.no_grad():
        kept[0].eval().representation()
        with torch.autocast("cpu", torch.bfloat16):
            narrowed = kept[0].representation()
        assert all(torch.isfinite(table).all() for table in narrowed)
    want = step(objective)
    for got, plain in zip(step(kept[1], narrowed=True), want, strict=True):
        assert got.dtype == plain.dtype and (got - plain).abs().max() <= 0.03 * plain.abs().max()
    found = [copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))]
    want = step(objective)
    for other in found:
        assert_same(step(other), want, rtol=0, atol=0)


def test_profile_head_refuses_a_second_derivative():
    tables = ProfileTables([torch.randn(6, 4)], torch.device("cpu"))
    head = ProfileHead(4, 2, seed=0, device=torch.device("cpu"))
    parameters = list(head.parameters())
    grads = torch.autograd.grad(head(tables, torch.arange(6)).square().sum(), parameters, create_graph=True)
    for grad, parameter in zip(grads, parameters, strict=True):
        with pytest.raises(RuntimeError, match="ProfileHead: its second derivative is not implemented"):
            torch.autograd.grad(grad.sum() + parameter.sum(), parameter, retain_graph=True)


@pytest.mark.parametrize("operation", [name for name, call in CALLS.items() if call.captured])
def test_support_captured_without_a_device(operation, simulated_device, never_waits):
    """Nothing that a step with the operation does waits for a device, or cannot be held by a CUDA graph."""
    call = CALLS[operation]()
    batch = call.batch(SIZES[0])
    call(*batch)  # what is looked at once
    with never_waits:
        found = call(*batch)
        found = [t for t in (found if isinstance(found, tuple) else (found,)) if t.requires_grad]
        if found:
            torch.autograd.grad(found, list(call.parameters()), [torch.ones_like(t) for t in found])
    assert never_waits.calls


@pytest.mark.parametrize("operation", [pytest.param(n, marks=needs_gpu) for n, call in CALLS.items() if call.captured])
def test_support_captured(operation):
    call = CALLS[operation]("cuda")
    call.seed = 3
    batch = call.batch(SIZES[0])

    def step() -> list[Tensor]:
        found = call(*batch)
        found = list(found if isinstance(found, tuple) else (found,))
        wanted = [t for t in found if t.requires_grad]
        grads = [torch.ones_like(t) for t in wanted]
        return found + (list(torch.autograd.grad(wanted, list(call.parameters()), grads)) if wanted else [])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        for table in call.parameters():
            table.mul_(1.5)
    graph.replay()
    assert_same(replayed, step(), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's default compiler wants a C++ compiler")
def test_torch_compile_as_it_comes():
    """The table's entries are compiled by a backend that takes less time."""
    graph = BipartiteGraph.from_edges(torch.arange(12) % 6, torch.arange(12) % 5, 6, 5)
    user, item = (torch.randn(n, 8, requires_grad=True) for n in (6, 5))
    teacher = losses.TeacherDistribution(torch.randn(6, 4), torch.randn(5, 4))

    def step(user, item):
        a, b = propagate(graph, user, item, 2)
        loss = losses.distribution_kl(a, b, None, None, teacher=teacher) + losses.bpr(a[:5], b, b.flip(0))
        return loss, topk(a, b, 3, exclude=graph)[0]

    found = []
    for function in (step, torch.compile(step, fullgraph=True)):
        loss, scores = function(user, item)
        found.append([loss, scores, *torch.autograd.grad(loss, [user, item])])
    assert_same(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operation", [pytest.param(operation, marks=needs_gpu) for operation in CALLS])
def test_support_on_a_device(operation):
    for feature in ("autocast", "GradScaler", "compile", "accumulate", "checkpoint", "2nd derivative"):
        assert entry(operation, feature, "cuda") == entry(operation, feature), feature


if __name__ == "__main__":
    print(markdown(), end="")
