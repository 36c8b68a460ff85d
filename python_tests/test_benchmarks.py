"""The cases of the benchmarks: every provider agrees with the definition, or is not timed and a reason is given."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("benchmarks", "compiles_nothing")


def test_every_operation_is_timed_and_every_size_is():
    from cases import CASES, FORWARD, cells
    from sizes import SIZES

    from prorec_fast.costs import FORMULAS

    operations = {case.operation for case in CASES.values()}
    assert set(FORMULAS) <= operations
    for operation in operations:
        found = {(cell.size, cell.passing) for cell in cells([operation], list(SIZES))}
        whole = operation not in FORMULAS or operation in ("similar_users", "teacher_distribution")  # of all users
        assert {size for size, _ in found} == {*SIZES} - ({"large"} if whole else set()), operation
        assert len({p for _, p in found}) == 1
    assert {cell.case.name for cell in cells(["distribution_kl, eps 1e-8"])} == {"distribution_kl, eps 1e-8"}
    forward = cells(["distribution_kl", "promax_step"], ["large"], [FORWARD])
    assert [cell.label for cell in forward] == ["distribution_kl, large, forward"]
    assert len(cells(["distribution_kl"], device="cuda")) > len(cells(["distribution_kl"]))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_every_provider_of_every_case_agrees():
    """In every pass and precision; cases that differ by their sizes alone are one here."""
    from cases import PASSES, cells
    from measure import measure, work
    from sizes import EAGER, OURS
    from timing import WallClock
    from work import WORK

    from prorec_fast.costs import FORMULAS

    once = {}
    for cell in cells(sizes=["tiny"], passes=list(PASSES)):
        of = cell.case
        once.setdefault((of.file, of.function, str(of.arguments), cell.passing, cell.precision), cell)
    absent = ("not importable", "need a CUDA device", "timed on a CPU", "has none", "nothing to fuse", "not compiled")
    for cell in once.values():
        result = measure(cell, WallClock(), 1)
        (mode,) = result["modes"].values()
        assert OURS in mode and len(mode) + len(result["skipped"]) > 1, cell
        assert cell.case.operation not in FORMULAS or not cell.case.agree or EAGER in mode, cell
        for provider, why in result["skipped"].items():
            unfit = "CSR" in provider and "not implemented for 'BFloat16'" in why
            assert unfit or any(reason in why for reason in absent), (cell, provider, why)
        assert cell.case.operation not in WORK or work(cell)["gb"] > 0, cell


def test_graphs_have_the_size_that_is_asked_for(tmp_path, monkeypatch):
    import numpy as np
    import sizes

    monkeypatch.setattr(sizes, "DATA", tmp_path)
    at = replace(sizes.TINY, num_items=49)
    sizes.graphs_of.clear()
    synthetic = at.graph()
    assert (synthetic.num_users, synthetic.num_items, synthetic.num_edges) == (60, 49, 300)
    assert sizes.graphs_of == {"synthetic"}
    sizes._stored_file.cache_clear()
    (tmp_path / "one").mkdir()
    indptr, indices = np.minimum(np.arange(61) * 5, 300), np.tile(np.arange(5), 60)
    np.savez(tmp_path / "one" / "interactions.npz", shape=[60, 49], train_indptr=indptr, train_indices=indices)
    assert at.graph().user_degree.tolist() == [5] * 60 and sizes.graphs_of == {"synthetic", "one"}
    assert replace(at, train_edges=301).graph().num_edges == 301
    sizes._stored_file.cache_clear()


def test_what_is_wrong_is_never_timed(monkeypatch):
    import bench_bpr
    from cases import Cell
    from measure import measure
    from sizes import OURS
    from timing import WallClock

    build, cell = bench_bpr.providers, Cell("bpr", "tiny", "forward")

    def spoiled(which):
        def providers(at, **arguments):
            found = build(at, **arguments)
            if not at.exact:
                right = found[which]
                found[which] = lambda: [1.01 * t for t in right()]
            return found

        return providers

    for which in ("torch.compile", OURS):
        monkeypatch.setattr(bench_bpr, "providers", spoiled(which))
        if which == OURS:
            with pytest.raises(AssertionError, match="ours: differs from the definition in float64 by"):
                measure(cell, WallClock(), 1)
        else:
            result = measure(cell, WallClock(), 1)
            assert set(result["modes"]["default"]) == {"eager reference", OURS}
            assert "differs" in result["skipped"][which]

    def nan(at, **arguments):
        found = build(at, **arguments)
        found[OURS] = lambda: [torch.full_like(t, torch.nan) for t in build(at, **arguments)[OURS]()]
        return found

    monkeypatch.setattr(bench_bpr, "providers", nan)
    with pytest.raises(AssertionError, match="by nan"):
        measure(cell, WallClock(), 1)


def test_eager_is_left_out_where_it_would_not_fit(monkeypatch):
    """And the definition gives way to what holds less."""
    import measure
    from bench_distribution_kl import CHUNKED
    from cases import Cell
    from sizes import EAGER, OURS
    from timing import WallClock

    cell = Cell("distribution_kl", "tiny", "forward+backward")
    needed = measure.eager_memory(cell.calls, cell.at, True, torch.float32)
    exact, built, called = cell.build(replace(cell.at, exact=True)), cell.build(cell.at), []
    truth = {name: lambda name=name, run=run: called.append(name) or run() for name, run in exact.items()}
    monkeypatch.setattr(Cell, "build", lambda self, at: truth if at.exact else built)
    for free, defines, fits in ((3.4, EAGER, True), (1.7, CHUNKED, True), (1.6, CHUNKED, False)):
        monkeypatch.setattr(measure, "free_memory", lambda device, free=free: int(free * needed))
        result = measure.measure(cell, WallClock(), 1)
        timed = set(result["modes"]["default"])
        assert {OURS, CHUNKED} <= timed and (EAGER in timed) == fits
        assert called.pop() == defines and not called  # in float64 it holds twice as much
        assert fits or "GiB are free" in result["skipped"][EAGER]


def test_what_hides_beside_larger_numbers_is_seen(monkeypatch):
    """A recall that is off beside a coverage that is right; a wrong item, and one that is to be left out, beside right
    scores."""
    import bench_ranking_metrics
    import bench_retrieval
    import bench_topk
    from cases import Cell
    from measure import prepare
    from sizes import OURS

    def spoil(patch, module, function, change):
        build = getattr(module, function)

        def providers(at, **arguments):
            found = build(at, **arguments)
            if not at.exact:
                right = found[OURS]
                found[OURS] = lambda: change(at, [t.clone() for t in right()])
            return found

        patch.setattr(module, function, providers)

    def lower_recall(_, results):
        results[0][0, 0] *= 0.99
        return results

    def wrong_item(_, results):
        results[1][3, 2] = (results[1][3, 2] + 1) % 50
        return results

    def own_item(at, results):
        indptr, indices = at.graph().csr()
        user = int(indptr.diff().argmax())
        row = int((at.distinct(at.num_users, at.test_users) >= user).nonzero()[0])
        user = int(at.distinct(at.num_users, at.test_users)[row])
        results[1][row, 0] = indices[indptr[user]]
        return results

    def self(_, results):
        results[0][4, 1] = 4
        return results

    for module, function, name, change in (
        (bench_ranking_metrics, "providers", "ranking_metrics", lower_recall),
        (bench_ranking_metrics, "evaluation_providers", "evaluation", lower_recall),
        (bench_topk, "providers", "topk", wrong_item),
        (bench_topk, "providers", "topk", own_item),
        (bench_retrieval, "similar_users_providers", "similar_users", self),
    ):
        cell = Cell(name, "tiny", "forward")
        prepare(cell)
        with monkeypatch.context() as patch:
            spoil(patch, module, function, change)
            with pytest.raises(AssertionError, match="ours: differs"):
                prepare(cell)


def test_what_takes_long_is_left_out(monkeypatch):
    import measure
    from sizes import COMPILED, OURS

    monkeypatch.setattr(measure, "SLOW_S", 0.0)
    runs = dict.fromkeys((OURS, COMPILED, "faiss"), lambda: [])
    found, skipped = measure.those_that_work(runs, lambda results: "")
    assert list(found) == [OURS, COMPILED] and skipped == {"faiss": "takes 0 s"}


def test_pytest_times_the_same(benchmarks):
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", benchmarks, "--size", "tiny", "-k", "ranking_metrics"]
    program = [sys.executable, *command, "--benchmark-disable"]
    done = subprocess.run(program, cwd=benchmarks, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
