"""k-means of many groups against a loop over them, and the profiles made of its centroids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from training_data import tiny, write_tiny

from prorec_fast.data import Interactions, load
from prorec_fast.data.facets import facets
from prorec_fast.data.kmeans import kmeans


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("facets") / "tiny")


def rows(sizes, generator, num_points):
    """(indptr, indices) of groups of these sizes, their points drawn with repeats."""
    indptr = torch.tensor([0, *np.cumsum(sizes)])
    return indptr, torch.randint(num_points, (int(indptr[-1]),), generator=generator, dtype=torch.int32)


def objective(points, centroids):
    """Sum of the cosines of float64 points to the centroid nearest to each."""
    return (points @ centroids.T).max(1).values.sum()


def slow_kmeans(points, num_clusters):
    """(centroids, labels) of one group, float64, a cluster at a time; for points that are not zero."""

    def first_least(values):
        return points[int((values <= values.min() + 1e-5).nonzero()[0])]

    centroids = [first_least(-points @ normalize(points.sum(0), dim=0))]
    while len(centroids) < num_clusters:
        centroids.append(first_least((points @ torch.stack(centroids).T).max(1).values))
    labels = None
    while True:
        nearest = (points @ torch.stack(centroids).T).argmax(1)
        if labels is not None and bool((nearest == labels).all()):
            break
        labels = nearest
        centroids = [normalize(points[labels == c].sum(0), dim=0) for c in range(num_clusters)]
    order = sorted(range(num_clusters), key=lambda c: -int((labels == c).sum()))
    return torch.stack([centroids[c] for c in order]), torch.tensor([order.index(c) for c in labels.tolist()])


def test_kmeans_finds_planted_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(5, 32, generator=generator), dim=1)
    true = torch.tensor([0] * 60 + [1] * 40 + [2] * 30 + [3] * 20 + [4] * 10)
    points = centres[true] + 0.05 * torch.randn(160, 32, generator=generator)
    points *= torch.rand(160, 1, generator=generator) + 0.1  # lengths say nothing
    order = torch.randperm(160, generator=generator)
    found = kmeans(points, torch.tensor([0, 160]), order, 5)
    assert torch.equal(found.labels, true[order]) and found.sizes.tolist() == [[60, 40, 30, 20, 10]]
    assert (found.centroids[0] * centres).sum(1).min() > 0.99


@pytest.mark.parametrize("num_clusters", [1, 2, 3, 7])
def test_kmeans_of_groups_is_a_loop_over_them(num_clusters):
    generator = torch.Generator().manual_seed(num_clusters)
    table = torch.randn(90, 6, generator=generator)
    sizes = [0, 1, 2, 3, 4, 5, 0, 8, 9, 17, 33, 64, 65, 130, 0]
    indptr, indices = rows(sizes, generator, 90)
    found = kmeans(table, indptr, indices, num_clusters)
    unit = normalize(table.double(), dim=1)
    for group, size in enumerate(sizes):
        members = slice(int(indptr[group]), int(indptr[group + 1]))
        if size == 0:
            assert not found.sizes[group].any() and not found.centroids[group].any()
            continue
        points = unit[indices[members].long()]
        centroids, labels = slow_kmeans(points, num_clusters)
        assert torch.equal(found.labels[members], labels)
        torch.testing.assert_close(found.centroids[group].double(), centroids, atol=1e-6, rtol=0)
        assert found.sizes[group].tolist() == labels.bincount(minlength=num_clusters).tolist()


def test_kmeans_result_is_a_fixed_point_and_better_than_its_start():
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(400, 5, generator=generator)
    found = kmeans(table, torch.tensor([0, 400]), torch.arange(400), 6)
    points, centroids = normalize(table.double(), dim=1), found.centroids[0].double()
    assert torch.equal((points @ centroids.T).argmax(1), found.labels)
    start = kmeans(table, torch.tensor([0, 400]), torch.arange(400), 6, max_iterations=1).centroids[0].double()
    assert objective(points, centroids) > 1.02 * objective(points, start)


@pytest.mark.parametrize("chunk_points", [1, 50, 300])
def test_kmeans_does_not_depend_on_the_chunks(chunk_points):
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(70, 24, generator=generator)
    indptr, indices = rows([int(n) for n in torch.randint(40, (60,), generator=generator)], generator, 70)
    whole = kmeans(table, indptr, indices, 3, chunk_points=1 << 20)
    parts = kmeans(table, indptr, indices, 3, chunk_points=chunk_points)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_kmeans_zero_rows_move_nothing():
    generator = torch.Generator().manual_seed(5)
    table = torch.cat([torch.randn(9, 4, generator=generator), torch.zeros(3, 4)])
    alone = kmeans(table, torch.tensor([0, 9]), torch.arange(9), 2)
    beside = kmeans(table, torch.tensor([0, 12, 14]), torch.tensor([10, *range(9), 9, 11, 10, 9]), 2)
    torch.testing.assert_close(beside.centroids[:1], alone.centroids)
    assert torch.equal(beside.sizes[:1], alone.sizes) and torch.equal(beside.labels[1:10], alone.labels)
    assert not beside.centroids[1].any() and not beside.sizes[1].any()


def test_facets_repeat_and_stand_in():
    others = normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(7)), dim=1)
    own = 2 * normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(8)), dim=1)
    # no neighbours, one, the same one three times with another, two
    indptr, indices = torch.tensor([0, 0, 1, 5, 7]), torch.tensor([3, 1, 1, 2, 1, 0, 4])
    first, second, third = facets(own, others, indptr, indices, 3)
    assert torch.equal(first[0], own[0]) and torch.equal(second[0], own[0]) and torch.equal(third[0], own[0])
    for table in (first, second, third):
        torch.testing.assert_close(table[1], 2 * others[3])
        torch.testing.assert_close(table.norm(dim=1), torch.full((4,), 2.0))
    torch.testing.assert_close(first[2], 2 * others[1])
    torch.testing.assert_close(second[2], 2 * others[2])
    torch.testing.assert_close(third[2], first[2])
    assert torch.equal(third[3], first[3]) and not torch.allclose(first[3], second[3])


def dense_facets(own, others, edges, num_facets):
    """One node at a time."""
    length = own.double().norm(dim=1)
    length, out = length[length > 0].mean(), own.double().unsqueeze(0).repeat(num_facets, 1, 1)
    for node in edges[0].unique().tolist():
        points = normalize(others.double()[edges[1][edges[0] == node]], dim=1)
        centroids, labels = slow_kmeans(points, num_facets)
        centroids = centroids[: len(labels.unique())]
        for facet in range(num_facets):
            out[facet, node] = length * centroids[facet % len(centroids)]
    return out


def test_profiles_of_a_set_with_one(data):
    users, items, provenance = data.profiles_for(4)
    assert len(users) == len(items) == 4
    assert users[0] is data.user_profiles and items[0] is data.item_profiles
    edges = data.train.edges()
    for got, own, other, pairs in (
        (users, data.user_profiles, data.item_profiles, edges),
        (items, data.item_profiles, data.user_profiles, edges[::-1]),
    ):
        want = dense_facets(own, other, pairs, 3)
        assert all(table.dtype == torch.float32 for table in got)
        torch.testing.assert_close(torch.stack(got[1:]).double(), want, atol=1e-6, rtol=0)
    assert provenance == (
        f"1 profile of the data set ({data.provenance}); 3 facet profiles (k-means centroids of a user's training "
        "items' vectors and of an item's readers'), made without a language model"
    )
    assert "1 facet profile (" in data.profiles_for(2).provenance
    again = data.profiles_for(4)
    assert all(torch.equal(a, b) for a, b in zip(users + items, again.users + again.items, strict=True))


def test_profiles_rest_on_training_interactions_alone(data):
    empty = Interactions(np.zeros(data.num_users + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    for source in (data, replace(data, user_profiles=None, item_profiles=None)):
        want, got = source.profiles_for(3), replace(source, valid=empty, test=source.valid).profiles_for(3)
        assert all(torch.equal(a, b) for a, b in zip(want.users + want.items, got.users + got.items, strict=True))
    fewer = replace(data, train=data.valid).profiles_for(3)
    assert not torch.equal(fewer.users[1], data.profiles_for(3).users[1])


def test_profiles_of_a_set_with_enough_are_its_own(data):
    further = ((data.user_profiles + 1, data.item_profiles + 1), (data.user_profiles - 1, data.item_profiles - 1))
    rich = replace(data, further_profiles=further)
    users, items, provenance = rich.profiles_for(2)
    assert [id(t) for t in users] == [id(data.user_profiles), id(further[0][0])]
    assert [id(t) for t in items] == [id(data.item_profiles), id(further[0][1])]
    assert provenance == f"2 of 3 profiles of the data set, the first that are 12-d: {data.provenance}"
    assert len(rich.profiles_for(3).users) == 3 and "facet" not in rich.profiles_for(3).provenance
    users, items, provenance = rich.profiles_for(5)
    assert [id(t) for t in users[:3]] == [id(data.user_profiles), id(further[0][0]), id(further[1][0])]
    facets_of_two = data.profiles_for(3)
    for got, want in ((users, facets_of_two.users), (items, facets_of_two.items)):
        assert all(torch.equal(a, b) for a, b in zip(got[3:], want[1:], strict=True))
    assert provenance.startswith("3 profiles of the data set (") and "; 2 facet profiles (" in provenance
    (only,), _, provenance = data.profiles_for(1)
    assert only is data.user_profiles and provenance == f"1 profile of the data set: {data.provenance}"


def test_profiles_share_the_width_of_the_first(data):
    """A folder may hold one text in two embeddings."""
    wider = (torch.ones(data.num_users, 20), torch.ones(data.num_items, 20))
    same = (data.user_profiles + 1, data.item_profiles + 1)
    users, items, provenance = replace(data, further_profiles=(wider, same)).profiles_for(3)
    assert users[1] is same[0] and items[1] is same[1]
    assert all(table.shape[1] == 12 for table in users + items)
    assert provenance.startswith("2 of 3 profiles of the data set, the first that are 12-d (")
    assert "; 1 facet profile (" in provenance


def test_profiles_of_a_set_without_any(tmp_path):
    bare = load(write_tiny(tmp_path / "bare", profiles=False))
    stand_in = bare.with_cooccurrence_profiles(seed=3)
    users, items, provenance = bare.profiles_for(3, seed=3)
    assert torch.equal(users[0], stand_in.user_profiles) and torch.equal(items[0], stand_in.item_profiles)
    assert provenance.startswith(stand_in.provenance + "; 2 facet profiles (k-means")
    assert [len(tables) for tables in bare.profiles_for(1)[:2]] == [1, 1]
    assert bare.profiles_for(1, seed=3).provenance == stand_in.provenance


@pytest.mark.parametrize("num_profiles", [0, -1, 2.0, True, None])
def test_profiles_rejects(data, num_profiles):
    with pytest.raises(ValueError, match="num_profiles: want an integer of at least 1, got"):
        data.profiles_for(num_profiles)
