"""`enriched.npz`: written from an enrichment, found by `load`, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import write_tiny

from prorec_fast import retrieval
from prorec_fast.data import DataError, load, save_enrichment, with_enrichment
from prorec_fast.data.enriched import write_enrichment_table

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HOW = {"num_similar": 4, "rerank": None}


def enrich(data, answers=None):
    ranked = retrieval.rank_candidates(data.train_graph, data.user_profiles, data.item_profiles, num_similar=4)
    return retrieval.choose(data.train_graph, ranked, answers)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_tiny(tmp_path / "tiny")


def test_enriched_is_loaded_as_it_was_made(folder):
    data = load(folder)
    poorest = int(data.train_graph.user_degree.argmin())
    ranked = retrieval.rank_candidates(data.train_graph, data.user_profiles, data.item_profiles, num_similar=4)
    row = int((ranked.users == poorest).nonzero())
    last = int(ranked.items[ranked.indptr[row + 1] - 1])
    made = retrieval.choose(data.train_graph, ranked, {poorest: [last]})
    save_enrichment(folder / "enriched.npz", data, made, HOW)
    first = (folder / "enriched.npz").read_bytes()
    again = load(folder)
    assert again.enriched_graph.csr()[0].tolist() == made.graph.csr()[0].tolist()
    assert again.enriched_graph.csr()[1].tolist() == made.graph.csr()[1].tolist()
    assert again.fingerprint != data.fingerprint and again.split_hash == data.split_hash
    added = made.user.numel()
    assert (
        again.enrichment
        == again.describe()["enrichment"]
        == (
            "enriched.npz: items of the 4 users most similar by profile, within each user's sparsity budget, "
            f"no LLM re-ranking, {added} added"
        )
    )
    assert load(folder, enriched=False).train_enriched is load(folder, profiles=False).train_enriched is None
    with np.load(folder / "enriched.npz", allow_pickle=False) as arrays:
        for name, column in (
            ("user", made.user), ("item", made.item), ("rank", made.rank), ("cosine", made.cosine),
            ("similar", made.votes), ("nearest", made.nearest),
        ):  # fmt: skip
            np.testing.assert_array_equal(arrays[f"added_{name}"], column.numpy())
        assert (arrays["added_source"] == np.where(made.user == poorest, "llm", "profile")).all()
        assert json.loads(str(arrays["how"])) == HOW
    save_enrichment(folder / "enriched.npz", data, made, HOW)
    assert (folder / "enriched.npz").read_bytes() == first, "equal contents, equal bytes"


def test_enriched_says_who_ranked(folder):
    data = load(folder)
    rerank = {"model": "m-1", "without": 0}
    save_enrichment(folder / "e.npz", data, enrich(data), {"num_similar": 4, "rerank": rerank})
    assert ", re-ranked by m-1, " in with_enrichment(data, folder / "e.npz").enrichment
    save_enrichment(folder / "e.npz", data, enrich(data), {"num_similar": 4, "rerank": {**rerank, "without": 7}})
    said = with_enrichment(data, folder / "e.npz").enrichment
    assert "re-ranked by m-1 (7 users without a valid answer got none)" in said


def test_enriched_of_nothing(folder):
    data = load(folder)
    silent = enrich(data, {user: [] for user in set(enrich(data).user.tolist())})
    save_enrichment(folder / "enriched.npz", data, silent, HOW)
    assert load(folder).train_enriched.num_edges == data.train.num_edges
    assert load(folder).enrichment.endswith(", 0 added")


def damage(folder: Path, **change) -> None:
    path = folder / "enriched.npz"
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    for name, value in change.items():
        arrays[name] = value(arrays[name]) if callable(value) else value
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def without_first_edge(data):
    """The rows of training and the added pairs, but for the first training interaction."""

    def change(indices):
        kept = np.ones(indices.size, bool)
        kept[np.flatnonzero(indices == data.train.indices[0])[0]] = False
        return indices[kept]

    return {
        "train_enriched_indices": change,
        "train_enriched_indptr": lambda p: np.where(np.arange(p.size) > 0, p - 1, p),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": np.array("another")}, "made from other interactions, or another split"),
        ({"format": np.array(2)}, "format 2, this is for 1"),
        ({"added_rank": None}, "no array 'added_rank'"),
        ({"added_cosine": lambda a: a[:-1]}, "added_cosine: expected"),
        ({"added_source": lambda a: np.arange(a.size)}, "added_source: expected"),
        ({"added_item": lambda a: np.append(a[:-1], a[-1] - 1)}, "are not the pairs that train_enriched adds"),
        ({"train_enriched_indices": lambda a: a[::-1].copy()}, "train_enriched_indices: the row of user"),
        ({"how": np.array("{}")}, "'how' does not say"),
    ],
)
def test_enriched_rejects(folder, change, message):
    data = load(folder)
    save_enrichment(folder / "enriched.npz", data, enrich(data), HOW)
    damage(folder, **change)
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "enriched.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_enriched_refuses_a_lost_interaction(folder):
    data = load(folder)
    save_enrichment(folder / "enriched.npz", data, enrich(data), HOW)
    damage(folder, **without_first_edge(data))
    item = int(data.train.indices[0])
    with pytest.raises(DataError, match=rf"enriched\.npz: train_enriched lacks item {item} of user 0, a training"):
        load(folder)


def test_enriched_refuses_another_split_and_a_second_enrichment(folder):
    data = load(folder)
    save_enrichment(folder / "enriched.npz", data, enrich(data), HOW)
    with np.load(folder / "interactions.npz") as archive:
        arrays = dict(archive)
    for part in ("indptr", "indices"):
        arrays[f"valid_{part}"], arrays[f"test_{part}"] = arrays[f"test_{part}"], arrays[f"valid_{part}"]
    np.savez(folder / "interactions.npz", **arrays)
    with pytest.raises(DataError, match=r"enriched\.npz: made from other interactions"):
        load(folder)
    for part in ("indptr", "indices"):
        arrays[f"train_enriched_{part}"] = arrays[f"train_{part}"]
    np.savez(folder / "interactions.npz", **arrays)
    with pytest.raises(DataError, match=r"enriched\.npz: tiny has an enrichment of its own already; remove one"):
        load(folder)
    assert load(folder, enriched=False).enrichment == "train_enriched, as published with the data set"


def test_enriched_table_speaks_the_users_language(folder):
    data = load(folder)
    made = enrich(data)
    users = [f"reader {u}" for u in range(data.num_users)]
    items = [f"book\t{i}" for i in range(data.num_items)]
    write_enrichment_table(folder / "enriched.tsv", made, users, items)
    header, *lines = (folder / "enriched.tsv").read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == ["user", "item", "rank", "cosine", "similar_users", "nearest_user", "source"]
    assert len(lines) == made.user.numel()
    for at, line in enumerate(lines):
        user, item, rank, cosine, similar, nearest, source = line.split("\t")
        assert (user, item) == (users[made.user[at]], json.dumps(items[made.item[at]]))
        assert (int(rank), int(similar)) == (made.rank[at], made.votes[at])
        assert abs(float(cosine) - float(made.cosine[at])) < 1e-6
        assert (nearest, source) == (users[made.nearest[at]], "profile")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")
@pytest.mark.parametrize("name", ["amazon_book", "yelp"])
def test_enriching_gives_as_many_as_the_authors_did(name):
    """Theirs were chosen by a language model; one that named too few left users short, and nobody has more."""
    data = load(SHARED / name)
    profiles = data.with_cooccurrence_profiles()
    ranked = retrieval.rank_candidates(data.train_graph, profiles.user_profiles, profiles.item_profiles)
    made = retrieval.choose(data.train_graph, ranked)
    before = data.train_graph.user_degree
    ours, theirs = (graph.user_degree - before for graph in (made.graph, data.enriched_graph))
    short = ranked.users[ranked.indptr.diff() < ranked.budget]
    enough = torch.ones(data.num_users, dtype=torch.bool).index_fill(0, short, False)
    assert enough.double().mean() > 0.999
    assert (theirs <= ours)[enough].all() and (theirs == ours)[enough].double().mean() > 0.94
