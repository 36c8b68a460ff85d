"""The operations under whatever the user's program has set: torch's defaults, determinism, loss scaling, tracing."""

from __future__ import annotations

import pytest
import torch
from processes import run_python

import prorec_fast
from prorec_fast import losses


def everything() -> dict[str, torch.Tensor]:
    """One result, or gradient, of every operation on float32 CPU tensors."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    user, item = (
        torch.randn(n, 20, generator=generator, device="cpu", dtype=torch.float32).requires_grad_() for n in (40, 70)
    )
    users, items = (torch.randint(n, (90,), generator=generator, device="cpu") for n in (40, 70))
    graph = prorec_fast.BipartiteGraph.from_edges(users, items, 40, 70)
    teacher = losses.TeacherDistribution(user.flip(0), item.flip(0))
    propagated = prorec_fast.propagate(graph, user, item, 2, noise=0.1, keep_prob=0.8, seed=3)
    weights = torch.rand(3, 2, generator=generator, device="cpu", dtype=torch.float32)
    stacks = (torch.stack([t.flip(0), t.flip(1)]) for t in (user, item))
    found = {
        "bpr": losses.bpr(user[users], item[items], item[items.flip(0)]),
        "distribution_kl": losses.distribution_kl(user, item, None, None, users=users, teacher=teacher),
        "distribution_kl rows": losses.distribution_kl(user, item, user, item, divergence="js", reduction="none").sum(),
        "environment_bpr": losses.environment_bpr(user, item, *stacks, (users, items, items.flip(0)), weights).total,
        "info_nce": losses.info_nce(user, user.flip(0), symmetric=True, eps=1e-5),
        "cross_view": losses.cross_view_info_nce(user, item, user, item, users=users, items=items),
        "propagate": propagated[0].sum() + propagated[1].square().sum(),
        "concat": prorec_fast.propagate(graph, user, item, 2, combine="concat")[0].square().sum(),
    }
    for name, loss in list(found.items()):
        grads = torch.autograd.grad(loss, (user, item), allow_unused=True)
        found |= {f"{name}, gradient {i}": grad for i, grad in enumerate(grads) if grad is not None}
    scores, ranked = prorec_fast.topk(user, item, 5, exclude=graph)
    found |= {"topk": ranked, "scores": scores, "entropy": teacher.entropy}
    found |= prorec_fast.ranking_metrics(ranked, graph, ks=(3, 5))
    found["negatives"] = prorec_fast.sample_negatives(graph, users, 2, seed=1)
    found["popular negatives"] = prorec_fast.sample_negatives(graph, users, seed=1, popularity=0.75)
    similar = prorec_fast.retrieval.similar_users(user.detach(), 3)
    found["candidates"] = prorec_fast.retrieval.candidate_items(graph, similar).counts
    found["enriched"] = torch.stack(prorec_fast.retrieval.enrich(graph, user.detach(), item.detach()).edges())
    return {name: t.detach() for name, t in found.items()}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype and torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_do_not_follow_the_default_dtype(dtype):
    want = everything()
    torch.set_default_dtype(dtype)
    try:
        got = everything()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(got, want)


def test_results_do_not_follow_the_default_device():
    want = everything()
    with torch.device("meta"):
        got = everything()
    assert_same(got, want)


def test_results_under_deterministic_algorithms_and_from_poisoned_memory():
    """Deterministic mode fills every torch.empty with NaN: what a kernel does not write shows."""
    want = everything()
    torch.use_deterministic_algorithms(True)
    try:
        got = everything()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(got, want)


@pytest.mark.parametrize("num_items", [60_000, 3_000])
def test_gradients_do_not_depend_on_threads_or_on_block_sizes(num_items):
    """At 60,000 items the rows of a block depend on the number of threads."""
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randn(n, 8, generator=generator).requires_grad_() for n in (150, num_items))
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            loss = losses.distribution_kl(user, item, user.flip(0), item.flip(0))
            results.append((loss.detach(), *torch.autograd.grad(loss, (user, item))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["distribution_kl", "info_nce", "bpr"])
def test_float16_gradients_survive_under_loss_scaling(name):
    """A mean over a large batch has gradients below float16's smallest number until the loss scale lifts them."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = ((torch.randn(4096, 16, generator=generator) * 4).half().requires_grad_() for _ in range(3))
    loss = {
        "distribution_kl": lambda: losses.distribution_kl(a, b, a, b, teacher_temperature=0.5),
        "info_nce": lambda: losses.info_nce(a, b),
        "bpr": lambda: losses.bpr(a, b, c),
    }[name]
    (grad,) = torch.autograd.grad(loss() * 1024, a)
    wide = [t.detach().float().requires_grad_() for t in (a, b, c)]
    a, b, c = wide
    (truth,) = torch.autograd.grad(loss() * 1024, a)
    lost = (grad == 0) & (truth.abs() > 1e-7)
    assert lost.float().mean() < 1e-3


def test_float16_mean_does_not_overflow():
    zero = torch.zeros(200_000, 4, dtype=torch.float16)
    torch.testing.assert_close(losses.bpr(zero, zero, zero), torch.tensor(0.6931).half())


def test_indices_out_of_range_are_refused_when_compiled():
    table, graph = torch.randn(5, 8), prorec_fast.BipartiteGraph.from_edges(*torch.tensor([[0, 1], [1, 0]]), 5, 5)
    teacher = losses.TeacherDistribution(table, table)
    calls = {
        "rows": lambda index: losses.info_nce(table, table, rows=index),
        "users": lambda index: losses.distribution_kl(table, table, None, None, users=index, teacher=teacher),
        "items": lambda index: losses.cross_view_info_nce(
            table, table, table, table, users=index.clamp(0, 4), items=index
        ),
        "users of topk": lambda index: prorec_fast.topk(table, table, 2, users=index),
        "users of sample_negatives": lambda index: prorec_fast.sample_negatives(graph, index, seed=0),
    }
    for name, call in calls.items():
        compiled = torch.compile(call, fullgraph=True, backend="eager")
        compiled(torch.tensor([0, 4]))
        for wrong in (10**9, -1):
            with pytest.raises(IndexError, match=f"{name.split()[0]}: want entries in|index out of range"):
                compiled(torch.tensor([0, wrong]))


def test_a_gathered_batch_beside_a_whole_table():
    generator = torch.Generator().manual_seed(0)
    user, item, teacher_user, teacher_item = (torch.randn(n, 8, generator=generator) for n in (30, 50, 30, 50))
    users = torch.tensor([4, 4, 29])
    teacher = losses.TeacherDistribution(teacher_user, teacher_item)
    want = losses.distribution_kl(user, item, teacher_user, teacher_item, users=users)
    for arguments in (
        (user[users], item, None, None),
        (user[users], item, teacher_user, teacher_item),
        (user, item, teacher_user, teacher_item),
    ):
        torch.testing.assert_close(losses.distribution_kl(*arguments, users=users, teacher=teacher), want)
    torch.testing.assert_close(losses.distribution_kl(user, item, teacher_user[users], teacher_item, users=users), want)
    torch.testing.assert_close(
        losses.distribution_kl(*(t.double() for t in (user, item, teacher_user[users], teacher_item)), users=users),
        want.double(),
    )


def test_work_made_by_one_thread_count_is_kept_apart_from_another():
    """A process that changes torch's thread count between calls has no worker left over that hangs."""
    run_python(
        """
        import torch
        from prorec_fast import losses
        x, y = torch.randn(500, 32), torch.randn(4000, 32)
        for threads in (2, 1, 4, 2):
            torch.set_num_threads(threads)
            losses.distribution_kl(x, y, x, y)
            torch.mm(x, y.T)
        """
    )
