from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import run_python

from prorec_fast import BipartiteGraph, retrieval
from prorec_fast.ops.pair_scores import pair_scores
from prorec_fast.reference.candidate_items import candidate_items as candidate_items_reference
from prorec_fast.reference.pair_scores import pair_scores as pair_scores_reference
from prorec_fast.reference.similar_users import similar_users as similar_users_reference

DATA = Path(__file__).parents[2] / "shared" / "data"


def profiles(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed + rows))


def random_graph(users: int, items: int, density: float = 0.05) -> BipartiteGraph:
    """Degrees from none to many."""
    generator = torch.Generator().manual_seed(users + items)
    popularity = torch.rand(users, 1, generator=generator) * 2 * density
    mask = torch.rand(users, items, generator=generator) < popularity
    return BipartiteGraph.from_edges(*mask.nonzero(as_tuple=True), users, items)


# Whitening


def test_whitening_makes_unit_covariance_of_the_principal_components():
    x = profiles(400, 20) * torch.logspace(1, -2, 20) + 3
    white = retrieval.Whitening(8).fit(x)
    out = white.transform(x)
    assert out.dtype == torch.float32 and out.shape == (400, 8)
    torch.testing.assert_close(out.double().T @ out.double() / 399, torch.eye(8).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.double().mean(0), torch.zeros(8).double(), atol=1e-6, rtol=0)
    centred = (x - x.mean(0)).double()
    largest = torch.linalg.svdvals(centred)[:8].square() / 399
    torch.testing.assert_close(white.eigenvalues, largest, rtol=1e-5, atol=0)
    assert (white.projection.gather(0, white.projection.abs().argmax(0, keepdim=True)) > 0).all()


def test_whitening_keeps_its_map():
    x = profiles(300, 12)
    white = retrieval.Whitening(5).fit(x)
    torch.testing.assert_close(white.transform(x[7:9]), white.transform(x)[7:9])
    copy = retrieval.Whitening(5).load_state_dict(white.state_dict())
    assert torch.equal(copy.transform(x), white.transform(x))
    assert white.transform(x.double()).dtype == torch.float64
    half = retrieval.Whitening(5).fit(x.half())
    assert half.transform(x.half()).dtype == torch.float32
    # Adding a constant and turning the space change nothing but the sign of a component.
    turned = torch.linalg.qr(profiles(12, 12).double()).Q
    moved = x.double() @ turned + 5
    again = retrieval.Whitening(5).fit(moved).transform(moved)
    torch.testing.assert_close(again.abs(), white.transform(x.double()).abs(), atol=1e-6, rtol=0)


def test_whitening_refuses_what_is_no_component():
    low_rank = profiles(50, 3) @ profiles(3, 10)
    assert retrieval.Whitening(3).fit(low_rank.double()).transform(low_rank).isfinite().all()
    with pytest.raises(ValueError, match=r"dim: want at most 3, the rank of the 50 centred rows of x, got 4"):
        retrieval.Whitening(4).fit(low_rank.double())
    with pytest.raises(ValueError, match="dim: want at most 2"):
        retrieval.Whitening(3).fit(profiles(3, 10))
    with pytest.raises(ValueError, match="dim: want at most 0"):
        retrieval.Whitening(1).fit(torch.full((20, 4), 0.1))
    with pytest.raises(ValueError, match="x: want at least 2 rows"):
        retrieval.Whitening(1).fit(profiles(1, 4))
    with pytest.raises(ValueError, match="x: want finite"):
        retrieval.Whitening(1).fit(torch.full((4, 4), float("nan")))
    with pytest.raises(RuntimeError, match="call fit first"):
        retrieval.Whitening(1).transform(profiles(3, 4))
    with pytest.raises(ValueError, match="x: want shape"):
        retrieval.Whitening(1).fit(profiles(9, 4)).transform(profiles(9, 5))
    with pytest.raises(ValueError, match="dim: want an integer"):
        retrieval.Whitening(0)


# similar_users


@pytest.mark.every_level
@pytest.mark.parametrize("users, dim, k", [(1, 4, 2), (129, 33, 10), (507, 384, 5)])
def test_similar_users_matches_reference(users, dim, k):
    x = profiles(users, dim) * torch.logspace(-3, 3, users)[:, None]
    similar = retrieval.similar_users(x, k)
    cosine = F.normalize(x.double()) @ F.normalize(x.double()).T
    cosine.fill_diagonal_(-2)
    found = min(k, users - 1)
    assert similar.shape == (users, k) and (similar[:, found:] == -1).all()
    best = cosine.topk(found).values
    for of in (similar[:, :found], similar_users_reference(x, found)):
        assert (cosine.gather(1, of) >= best - 1e-6).all()


def test_similar_users_duplicates_and_zero_profiles():
    x = profiles(6, 8).repeat(4, 1)
    assert retrieval.similar_users(x, 3)[13].tolist() == [1, 7, 19]
    x[7] = 0
    similar = retrieval.similar_users(x, 23)
    assert (similar[7] == -1).all() and not (similar == 7).any()
    assert ((similar == -1).sum(1) == torch.where(torch.arange(24) == 7, 23, 1)).all()
    assert torch.equal(retrieval.similar_users(x * 1e30, 5), retrieval.similar_users(x, 5))
    with pytest.raises(ValueError, match="user_profiles: want finite"):
        retrieval.similar_users(torch.full((3, 3), float("inf")))
    with pytest.raises(ValueError, match="k: want an integer"):
        retrieval.similar_users(x, 0)


def test_similar_users_of_some_users():
    x = profiles(50, 8)
    x[4] = 0
    rows = torch.tensor([7, 4, 49, 7])
    assert torch.equal(retrieval.similar_users(x, 5, users=rows), retrieval.similar_users(x, 5)[rows])
    assert retrieval.similar_users(x, 5, users=rows[:0]).shape == (0, 5)
    with pytest.raises(IndexError, match=r"users: want entries in \[0, 50\)"):
        retrieval.similar_users(x, 5, users=rows + 1)


# candidate_items


@pytest.mark.every_level
@pytest.mark.parametrize("users, items, k", [(1, 5, 3), (129, 507, 10), (257, 5000, 4)])
def test_candidate_items_matches_reference(users, items, k):
    graph = random_graph(users, items)
    similar = torch.randint(-1, users, (users, k), generator=torch.Generator().manual_seed(users))
    got = retrieval.candidate_items(graph, similar)
    for ours, want in zip(got, candidate_items_reference(*graph.csr(), items, similar), strict=True):
        assert ours.dtype == want.dtype and torch.equal(ours, want)
    for form in (graph.to_sparse_csr(), graph.csr()):
        assert all(torch.equal(a, b) for a, b in zip(retrieval.candidate_items(form, similar), got, strict=True))


def test_candidate_items_hand_computed():
    graph = BipartiteGraph.from_edges([0, 1, 1, 2, 2, 2], [4, 4, 70, 4, 70, 6], 4, 80)
    indptr, items, counts = retrieval.candidate_items(graph, torch.tensor([[1, 2], [2, 0], [-1, -1], [2, 2]]))
    assert indptr.tolist() == [0, 2, 3, 3, 6]
    assert items.tolist() == [6, 70, 6, 4, 6, 70]
    assert counts.tolist() == [1, 2, 1, 2, 2, 2]


@pytest.mark.every_level
def test_pair_scores_matches_reference():
    graph = random_graph(100, 300)
    user, item = profiles(100, 37), profiles(300, 37)
    truth = pair_scores_reference(user.double(), item.double(), *graph.csr())
    assert torch.equal(pair_scores(user.double(), item.double(), *graph.csr()), truth)
    torch.testing.assert_close(pair_scores(user, item, *graph.csr()).double(), truth, atol=1e-5, rtol=1e-5)
    low = user.bfloat16(), item.bfloat16()
    got = pair_scores(*low, *graph.csr())
    torch.testing.assert_close(got, pair_scores_reference(*(t.double() for t in low), *graph.csr()).bfloat16())


def test_candidate_items_registers_and_rejects():
    graph = random_graph(20, 50)
    similar = retrieval.similar_users(profiles(20, 4), 3)
    torch.library.opcheck(torch.ops.prorec_fast.candidate_items, (*graph.csr(), 50, similar))
    for bad, message in (
        (similar.float(), "similar: want a 2-d int64"),
        (similar[:-1], "graph: want 19 rows, got 20"),
        (similar + 20, "similar: want entries in"),
    ):
        with pytest.raises((TypeError, ValueError, IndexError), match=message):
            retrieval.candidate_items(graph, bad)


# sparsity_level_budget


def test_sparsity_level_budget_follows_the_quartiles():
    counts = torch.tensor([1, 3, 5, 5, 7, 7, 7, 9, 11, 11, 30])
    assert np.percentile(counts.numpy(), [25, 50, 75]).tolist() == [5, 7, 10]
    assert retrieval.sparsity_level_budget(counts).tolist() == [5, 3, 3, 3, 4, 4, 4, 2, 0, 0, 0]
    fractional = torch.tensor([0, 1, 2, 10])  # quartiles 0.75, 1.5, 4
    assert retrieval.sparsity_level_budget(fractional).tolist() == [1, 1, 3, 0]
    assert retrieval.sparsity_level_budget(counts[:0]).tolist() == []
    assert retrieval.sparsity_level_budget(torch.full((9,), 4)).tolist() == [0] * 9
    with pytest.raises(TypeError, match="counts: want a 1-d integer tensor"):
        retrieval.sparsity_level_budget(counts.float())


@pytest.mark.parametrize("name", ["amazon_book", "yelp"])
def test_sparsity_level_budget_is_what_the_published_matrices_show(name):
    path = DATA / name / "interactions.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with np.load(path, allow_pickle=False) as data:
        before, after = (torch.from_numpy(np.diff(data[f"{s}_indptr"])) for s in ("train", "train_enriched"))
    budget, new = retrieval.sparsity_level_budget(before), after - before
    # A language model that names too few items leaves users short, here 2% and 6% of them; nobody gets more.
    assert (new <= budget).all() and (new == budget).double().mean() > 0.94
    for count in before.unique():
        users = before == count
        assert new[users].mode().values == budget[users][0]


# rank_candidates and choose


def test_rank_candidates_orders_what_candidate_items_finds():
    graph = random_graph(120, 90, 0.1)
    users, items = profiles(120, 16), profiles(90, 24)
    items[45:] = items[:45]  # equal cosines, which votes and then indices must order
    ranked = retrieval.rank_candidates(graph, users, items, num_similar=4)
    budget = retrieval.sparsity_level_budget(graph.user_degree)
    assert torch.equal(ranked.users, budget.nonzero().flatten()) and torch.equal(ranked.budget, budget[ranked.users])
    similar = retrieval.similar_users(users, 4)
    assert torch.equal(ranked.similar, similar[ranked.users])
    indptr, found, counts = retrieval.candidate_items(graph, similar)
    dense = graph.to_sparse_csr().to_dense()
    for row, user in enumerate(ranked.users.tolist()):
        part = slice(*ranked.indptr[row : row + 2].tolist())
        own = slice(*indptr[user : user + 2].tolist())
        votes = dict(zip(found[own].tolist(), counts[own].tolist(), strict=True))
        assert dict(zip(ranked.items[part].tolist(), ranked.votes[part].tolist(), strict=True)) == votes
        mean = items[dense[user] > 0].mean(0) if dense[user].any() else torch.zeros(24)
        cosine = F.cosine_similarity(mean[None].double(), items[ranked.items[part]].double())
        torch.testing.assert_close(ranked.cosine[part].double(), cosine, atol=1e-6, rtol=0)
        order = torch.stack([-ranked.cosine[part].double(), -ranked.votes[part], ranked.items[part]], 1).tolist()
        assert order == sorted(order)
    few = retrieval.rank_candidates(graph, users, items, num_similar=4, limit=3)
    sizes = few.indptr.diff()
    assert torch.equal(sizes, ranked.indptr.diff().clamp_max(3))
    kept = torch.cat([torch.arange(a, a + n) for a, n in zip(ranked.indptr.tolist(), sizes.tolist(), strict=False)])
    for name in ("items", "cosine", "votes"):
        assert torch.equal(getattr(few, name), getattr(ranked, name)[kept])


def test_rank_candidates_in_parts(monkeypatch):
    graph, tables = random_graph(60, 40, 0.1), (profiles(60, 8), profiles(40, 8))
    whole = retrieval.rank_candidates(graph, *tables, limit=7)
    monkeypatch.setattr(retrieval.candidates, "_USERS", 11)
    monkeypatch.setattr(retrieval.tables, "_ENTRIES", 24)
    parts = retrieval.rank_candidates(graph, *tables, limit=7)
    for name in ("users", "budget", "similar", "indptr", "items", "cosine", "votes"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name


def test_choose_says_where_each_pair_came_from():
    graph = random_graph(100, 80, 0.1)
    ranked = retrieval.rank_candidates(graph, profiles(100, 16), profiles(80, 16), num_similar=6)
    row = int((ranked.indptr.diff() > ranked.budget + 2).nonzero()[0])
    user, budget = int(ranked.users[row]), int(ranked.budget[row])
    own = ranked.items[ranked.indptr[row] : ranked.indptr[row + 1]].tolist()
    named = own[: -budget - 3 : -1]  # from the last one on, two more than there may be
    added = retrieval.choose(graph, ranked, {user: named})
    assert added.item[added.user == user].tolist() == named[:budget]
    assert torch.equal(added.reranked, added.user == user)
    assert edge_set(added.graph) - edge_set(graph) == set(zip(added.user.tolist(), added.item.tolist(), strict=True))
    assert added.user.numel() == added.graph.num_edges - graph.num_edges
    assert (added.user.diff() >= 0).all()
    dense = graph.to_sparse_csr().to_dense() > 0
    for at, (u, i) in enumerate(zip(added.user.tolist(), added.item.tolist(), strict=True)):
        r = int((ranked.users == u).nonzero())
        entry = int(ranked.indptr[r]) + int(added.rank[at]) - 1
        assert ranked.items[entry] == i and entry < ranked.indptr[r + 1]
        assert added.cosine[at] == ranked.cosine[entry] and added.votes[at] == ranked.votes[entry]
        having = [s for s in ranked.similar[r].tolist() if s >= 0 and dense[s, i]]
        assert added.nearest[at] == having[0] and added.votes[at] == len(having)


def test_choose_refuses_an_answer_for_nobody():
    graph = random_graph(40, 30, 0.2)
    ranked = retrieval.rank_candidates(graph, profiles(40, 4), profiles(30, 4))
    rich = int(graph.user_degree.argmax())
    with pytest.raises(ValueError, match=f"answers: user {rich} has no candidates"):
        retrieval.choose(graph, ranked, {rich: []})


def test_retrieval_memory_stays_at_one_copy_of_a_table():
    """Of a table of 88 MiB; a float64 copy would add 176."""
    grown = run_python(
        """
        import torch
        from processes import peak_memory
        from prorec_fast import BipartiteGraph, retrieval

        def rank(users, items):
            edges = torch.arange(users).repeat_interleave(5), torch.arange(5 * users) * 7919 % items.size(0)
            graph = BipartiteGraph.from_edges(*edges, users, items.size(0))
            graph = BipartiteGraph.from_edges(*(e[:-4] for e in graph.edges()), users, items.size(0))
            assert retrieval.rank_candidates(graph, items[:users], items).items.numel() > 0
            retrieval.similar_users(items, users=torch.arange(0, items.size(0), items.size(0) // 40))

        rank(20, torch.randn(1000, 384))
        large = torch.randn(60_000, 384)
        before = peak_memory()
        rank(500, large)
        print((peak_memory() - before) / 2**20)
        """
    )
    assert 80 < float(grown) < 160, f"{float(grown):.0f} MiB"


# enrich


def enrich_in_a_loop(graph, user_profiles, item_profiles, num_similar):
    """The new edges, user by user."""
    rows = [set(r.nonzero().flatten().tolist()) for r in graph.to_sparse_csr().to_dense()]
    budget = retrieval.sparsity_level_budget(graph.user_degree)
    new = set()
    for user, neighbours in enumerate(retrieval.similar_users(user_profiles, num_similar).tolist()):
        counts: dict[int, int] = {}
        for neighbour in neighbours:
            for item in rows[neighbour] - rows[user] if neighbour >= 0 else ():
                counts[item] = counts.get(item, 0) + 1
        own = item_profiles[sorted(rows[user])].mean(0) if rows[user] else torch.zeros(item_profiles.size(1))
        scores = {i: F.cosine_similarity(own.double(), item_profiles[i].double(), dim=0).item() for i in counts}
        order = sorted(counts, key=lambda i: (-scores[i], -counts[i], i))
        new |= {(user, item) for item in order[: int(budget[user])]}
    return new


def edge_set(graph: BipartiteGraph) -> set[tuple[int, int]]:
    return set(zip(*(t.tolist() for t in graph.edges()), strict=True))


def test_enrich_matches_a_loop_over_users():
    graph = random_graph(150, 80, 0.1)
    users, items = profiles(150, 16), profiles(80, 24)
    assert (graph.user_degree == 0).any()
    enriched = retrieval.enrich(graph, users, items, num_similar=4)
    assert edge_set(enriched) - edge_set(graph) == enrich_in_a_loop(graph, users, items, 4)
    assert edge_set(graph) <= edge_set(enriched)
    added = enriched.user_degree - graph.user_degree
    assert (added <= retrieval.sparsity_level_budget(graph.user_degree)).all()
    assert enriched.user_values is None
    halves = retrieval.enrich(graph, users.half(), items.half(), num_similar=4)
    assert len(edge_set(halves) ^ edge_set(enriched)) < 0.02 * enriched.num_edges


def test_enrich_keeps_weights_and_gives_new_edges_one():
    graph = random_graph(60, 40, 0.1)
    weights = torch.arange(1.0, graph.num_edges + 1)
    weighted = BipartiteGraph.from_edges(*graph.edges(), 60, 40, weights=weights)
    enriched = retrieval.enrich(weighted, profiles(60, 8), profiles(40, 8))
    before, after = (g.to_sparse_csr().to_dense() for g in (weighted, enriched))
    assert torch.equal(after[before > 0], before[before > 0])
    assert enriched.num_edges > weighted.num_edges and (after[(before == 0) & (after > 0)] == 1).all()


def test_enrich_reranks_but_never_invents():
    graph = random_graph(100, 80, 0.1)
    users, items = profiles(100, 16), profiles(80, 16)
    plain = retrieval.enrich(graph, users, items)
    assert edge_set(retrieval.enrich(graph, users, items, rerank=lambda _, ids: ids)) == edge_set(plain)
    offered: dict[int, list[int]] = {}

    def last_first(user: int, ids: torch.Tensor) -> list[int]:
        offered[user] = ids.tolist()
        return [*ids.flip(0).tolist(), int(ids[0])]

    budget = retrieval.sparsity_level_budget(graph.user_degree)
    new = edge_set(retrieval.enrich(graph, users, items, rerank=last_first)) - edge_set(graph)
    assert new == {(u, i) for u, ids in offered.items() for i in ids[::-1][: int(budget[u])]}
    with pytest.warns(UserWarning, match=f"rerank: dropped {2 * len(offered)} ids"):
        few = retrieval.enrich(graph, users, items, rerank=lambda u, ids: [10**6, -1, ids[0]])
    assert edge_set(few) - edge_set(graph) == {(u, ids[0]) for u, ids in offered.items()}
    assert edge_set(retrieval.enrich(graph, users, items, rerank=lambda u, ids: [])) == edge_set(graph)


def test_enrich_without_anything_to_add():
    everything = BipartiteGraph.from_edges(*torch.ones(5, 4).nonzero(as_tuple=True), 5, 4)
    assert edge_set(retrieval.enrich(everything, profiles(5, 3), profiles(4, 3))) == edge_set(everything)
    nothing = BipartiteGraph.from_edges([], [], 5, 4)
    assert retrieval.enrich(nothing, profiles(5, 3), profiles(4, 3)).num_edges == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"graph": None}, "graph: want a BipartiteGraph"),
        ({"user_profiles": profiles(9, 4)}, "user_profiles: want shape"),
        ({"item_profiles": profiles(9, 4)}, "item_profiles: want shape"),
        ({"item_profiles": torch.full((30, 4), float("nan"))}, "item_profiles: want finite"),
        ({"num_similar": 0}, "num_similar: want an integer"),
    ],
)
def test_enrich_rejects(arguments, message):
    good = {"graph": random_graph(20, 30), "user_profiles": profiles(20, 4), "item_profiles": profiles(30, 4)}
    retrieval.enrich(**good)
    with pytest.raises((TypeError, ValueError), match=message):
        retrieval.enrich(**{**good, **arguments})
