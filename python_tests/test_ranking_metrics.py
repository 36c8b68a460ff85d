from __future__ import annotations

import math

import pytest
import torch

import prorec_fast
from prorec_fast import BipartiteGraph
from prorec_fast.reference.ranking_metrics import METRICS
from prorec_fast.reference.ranking_metrics import ranking_metrics as reference


def case(users: int, items: int, width: int, density: float = 0.1):
    """Ranked lists of distinct items, some cut short by -1, and truth with a full row and empty ones."""
    generator = torch.Generator().manual_seed(users * 31 + items)
    ranked = torch.rand(users, items, generator=generator).argsort(1)[:, :width]
    lengths = torch.randint(0, 2 * width, (users, 1), generator=generator)
    ranked[torch.arange(width) >= lengths] = -1
    truth = torch.rand(users, items, generator=generator) < density
    truth[0], truth[1::7] = True, False
    return ranked, BipartiteGraph.from_edges(*truth.nonzero(as_tuple=True), users, items)


def by_hand(ranked: list[int], truth: set[int], k: int) -> dict[str, float]:
    """One user's metrics, straight from their definitions."""
    hits = [rank for rank, item in enumerate(ranked[:k], 1) if item in truth]
    possible = min(len(truth), k)
    return {
        "recall": len(hits) / len(truth),
        "precision": len(hits) / k,
        "hit_rate": float(bool(hits)),
        "mrr": 1 / hits[0] if hits else 0.0,
        "ndcg": sum(1 / math.log2(r + 1) for r in hits) / sum(1 / math.log2(r + 1) for r in range(1, possible + 1)),
        "map": sum(n / rank for n, rank in enumerate(hits, 1)) / possible,
    }


def test_ranking_metrics_hand_computed():
    """Truth {2, 5} against 5, 1, 2: hits at ranks 1 and 3. The second user has no truth, the third no hit."""
    truth = BipartiteGraph.from_edges([0, 0, 2], [2, 5, 0], 3, 8)
    got = prorec_fast.ranking_metrics(torch.tensor([[5, 1, 2], [0, 6, 7], [3, 1, -1]]), truth, ks=(1, 3))
    ideal = 1 + 1 / math.log2(3)
    want = {
        "recall@1": 0.5 / 2, "precision@1": 1 / 2, "hit_rate@1": 1 / 2, "mrr@1": 1 / 2, "ndcg@1": 1 / 2,
        "map@1": 1 / 2, "coverage@1": 2 / 8,
        "recall@3": 1 / 2, "precision@3": (2 / 3) / 2, "hit_rate@3": 1 / 2, "mrr@3": 1 / 2,
        "ndcg@3": (1 + 1 / math.log2(4)) / ideal / 2, "map@3": (1 + 2 / 3) / 2 / 2, "coverage@3": 4 / 8,
    }  # fmt: skip
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].shape == () and got[name].dtype == torch.float32
        assert got[name].item() == pytest.approx(value, rel=1e-6), name


@pytest.mark.every_level
@pytest.mark.parametrize("users, items, width", [(2, 30, 5), (129, 507, 20), (507, 60, 60), (300, 1100, 10)])
def test_ranking_metrics_matches_reference(users, items, width):
    ranked, truth = case(users, items, width)
    ks = (1, width // 2 + 1, width)
    got = prorec_fast.ranking_metrics(ranked, truth, ks)
    table = reference(ranked, truth.csr(), items, ks)
    for i, k in enumerate(ks):
        for j, name in enumerate(METRICS):
            assert got[f"{name}@{k}"].item() == pytest.approx(table[i, j].item(), rel=1e-6, abs=1e-9), (name, k)
    relevant = truth.to_sparse_csr().to_dense().bool()
    per_user = [
        by_hand(row.tolist(), set(own.nonzero().flatten().tolist()), width)
        for row, own in zip(ranked, relevant, strict=True)
        if own.any()
    ]
    for name in per_user[0]:
        mean = sum(m[name] for m in per_user) / len(per_user)
        assert got[f"{name}@{width}"].item() == pytest.approx(mean, rel=1e-5), name


@pytest.mark.every_level
def test_ranking_metrics_properties():
    ranked, truth = case(600, 200, 12)
    got = prorec_fast.ranking_metrics(ranked, truth, ks=(12, 3, 3))
    assert next(iter(got)) == "recall@12" and len(got) == 2 * len(METRICS)
    assert all(0 <= value <= 1 for value in got.values())
    for name in ("recall", "hit_rate", "mrr", "coverage"):
        assert got[f"{name}@12"] >= got[f"{name}@3"]
    counted = truth.user_degree > 0
    own = BipartiteGraph.from_csr(*truth.csr(), 200).to_sparse_csr().to_dense()[counted]
    alone = BipartiteGraph.from_edges(*own.nonzero(as_tuple=True), int(counted.sum()), 200)
    again = prorec_fast.ranking_metrics(ranked[counted], alone, ks=(12, 3))
    for name, value in again.items():
        torch.testing.assert_close(value, got[name])
    perfect = own.sort(dim=1, descending=True, stable=True).indices[:, :5].contiguous()
    best = prorec_fast.ranking_metrics(perfect, alone, ks=(5,))
    assert all(best[f"{name}@5"] == pytest.approx(1) for name in ("ndcg", "map", "mrr", "hit_rate"))


def test_ranking_metrics_forms_of_truth_agree():
    ranked, truth = case(50, 100, 20)
    want = prorec_fast.ranking_metrics(ranked, truth)
    indptr, indices = truth.csr()
    assert prorec_fast.ranking_metrics(ranked, truth.to_sparse_csr()) == want
    assert prorec_fast.ranking_metrics(ranked, (indptr, indices.long()), num_items=100) == want
    strided = torch.stack([ranked, ranked], dim=2)[:, :, 0]
    assert prorec_fast.ranking_metrics(strided, truth) == want


def test_ranking_metrics_without_anyone_to_count():
    nobody = BipartiteGraph.from_edges([], [], 3, 8)
    for ranked, truth in ((torch.zeros(3, 10, dtype=torch.int64), nobody), (torch.zeros(0, 10).long(), None)):
        truth = truth or BipartiteGraph.from_edges([], [], 0, 8)
        assert all(value == 0 for value in prorec_fast.ranking_metrics(ranked, truth, ks=(10,)).values())


def test_ranking_metrics_does_not_depend_on_threads():
    ranked, truth = case(3000, 300, 20)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(prorec_fast.ranking_metrics(ranked, truth))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_ranking_metrics_compiles_and_registers():
    ranked, truth = case(40, 90, 20)
    torch.library.opcheck(torch.ops.prorec_fast.ranking_metrics, (ranked, *truth.csr(), 90, [10, 20]))
    compiled = torch.compile(prorec_fast.ranking_metrics, fullgraph=True, backend="aot_eager")
    want = prorec_fast.ranking_metrics(ranked, truth)
    assert compiled(ranked, truth) == want
    assert compiled(ranked, truth.csr(), num_items=90) == want


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"items": torch.zeros(4, 5)}, "items: want a 2-d int64 tensor"),
        ({"items": torch.zeros(4, dtype=torch.int64)}, "items: want a 2-d int64 tensor"),
        ({"items": torch.full((4, 5), 9)}, "items: want entries in"),
        ({"items": torch.full((4, 5), -2)}, "items: want entries in"),
        ({"ks": (3, 6)}, "ks: want cut-offs of at most 5, .* got 6"),
        ({"ks": (0,)}, "ks: want an integer of at least 1"),
        ({"ks": 5}, r"ks: want cut-offs, \(10, 20\) for example, got int 5"),
        ({"truth": torch.zeros(4, 9)}, "truth: want a BipartiteGraph"),
        ({"truth": BipartiteGraph.from_edges([0], [0], 3, 9)}, "truth: want 4 rows, got 3"),
        ({"truth": (torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))}, "num_items: want"),
        ({"num_items": 8}, "truth: want 8 columns, got 9"),
    ],
)
def test_ranking_metrics_rejects(arguments, message):
    good = {
        "items": torch.zeros(4, 5, dtype=torch.int64),
        "truth": BipartiteGraph.from_edges([0], [0], 4, 9),
        "ks": (5,),
    }
    prorec_fast.ranking_metrics(**good)
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        prorec_fast.ranking_metrics(**{**good, **arguments})
