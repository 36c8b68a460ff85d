"""Data sets from folders of NumPy archives, the built-in set and derived profiles."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import HERE

from prorec_fast.data import DataError, Dataset, Interactions, load, synthetic
from prorec_fast.data.synthetic import SyntheticConfig, make_synthetic

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = SyntheticConfig(
    num_users=40, num_items=30, min_degree=6, max_degree=20, profile_width=8, num_facets=4, facet_concentration=0.25
)


def write_folder(folder: Path, interactions: dict, profiles: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "interactions.npz", **interactions)
    if profiles is not None:
        np.savez(folder / "profiles_test.npz", **profiles)
    return folder


@pytest.fixture
def arrays() -> tuple[dict, dict]:
    return make_synthetic(SMALL)


def test_data_npz_folder_reads_what_was_written(tmp_path, arrays):
    interactions, profiles = arrays
    data = load(write_folder(tmp_path / "small", interactions, profiles))
    assert (data.name, data.num_users, data.num_items) == ("small", 40, 30)
    for split in ("train", "valid", "test"):
        rows = getattr(data, split)
        assert rows.indptr.dtype == np.int64 and rows.indices.dtype == np.int32
        np.testing.assert_array_equal(rows.indptr, interactions[f"{split}_indptr"])
        np.testing.assert_array_equal(rows.indices, interactions[f"{split}_indices"])
    assert data.train_enriched is None
    assert data.user_profiles.dtype == torch.float32 and data.user_profiles.shape == (40, 8)
    np.testing.assert_array_equal(data.item_profiles.numpy(), profiles["items"])
    assert "profiles_test.npz" in data.provenance
    users, items = data.train.edges()
    assert users.dtype == items.dtype == torch.int64
    assert torch.equal(users.bincount(minlength=40), torch.from_numpy(data.train.degrees))


def test_data_half_precision_profiles_and_further_tables(tmp_path, arrays):
    interactions, profiles = arrays
    folder = write_folder(tmp_path / "s", interactions, {k: v.astype(np.float16) for k, v in profiles.items()})
    np.savez(folder / "profiles_other.npz", items=profiles["items"][:, :3], users_item_mean=profiles["users"][:, :3])
    data = load(folder)
    assert data.user_profiles.dtype == torch.float32 and data.user_profiles.shape == (40, 3)
    assert len(data.further_profiles) == 1 and data.further_profiles[0][0].shape == (40, 8)
    assert "mean of their training items" in data.provenance


def test_data_users_without_text_are_named(tmp_path, arrays):
    interactions, profiles = arrays
    has_text = np.zeros(40, dtype=bool)
    has_text[:10] = True
    folder = write_folder(
        tmp_path / "s",
        interactions,
        {**profiles, "user_has_text": has_text, "users_item_mean": np.empty((0, 8), dtype=np.float16)},
    )
    assert "25 % of users" in load(folder).provenance


def test_data_enriched_split(tmp_path, arrays):
    interactions, _ = arrays
    interactions["train_enriched_indptr"] = interactions["train_indptr"]
    interactions["train_enriched_indices"] = interactions["train_indices"]
    data = load(write_folder(tmp_path / "s", interactions))
    assert data.train_enriched.num_edges == data.train.num_edges
    assert data.user_profiles is None and data.provenance == "no profiles"


def _drop(key):
    return lambda a: a.pop(key)


def _set(key, index, value):
    def change(a):
        a[key] = a[key].copy()
        a[key][index] = value

    return change


def _replace(key, make):
    return lambda a: a.update({key: make(a[key])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("shape"), "no array 'shape'"),
        (_drop("valid_indices"), "no array 'valid_indices'"),
        (_replace("shape", lambda s: np.array([0, 3])), "two positive integers"),
        (_replace("shape", lambda s: s.astype(np.float64)), "two positive integers"),
        (_replace("shape", lambda s: s + np.array([1, 0])), "offsets for 41 users"),
        (_set("train_indices", 0, -1), "outside"),
        (_set("test_indices", -1, 30), "outside"),
        (_replace("train_indices", lambda x: x.astype(np.float32)), "integer array"),
        (_replace("train_indices", lambda x: x[:-1]), "runs from 0"),
        (_set("train_indptr", 3, 0), "offsets fall at user 2"),
        (_set("train_indptr", 0, 1), "runs from 1"),
    ],
)
def test_data_npz_rejects(tmp_path, arrays, change, message):
    interactions, _ = arrays
    change(interactions)
    with pytest.raises(DataError, match=message) as caught:
        load(write_folder(tmp_path / "bad", interactions))
    assert "interactions.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_data_npz_rejects_unsorted_and_repeated_rows(tmp_path):
    def folder(indices):
        rows = {"shape": np.array([3, 5])}
        for split in ("train", "valid", "test"):
            rows[f"{split}_indptr"] = np.array([0, 2, 2, 4])
            rows[f"{split}_indices"] = np.array(indices, dtype=np.int32)
        return write_folder(tmp_path / "rows", rows)

    assert load(folder([1, 4, 0, 2])).train.num_edges == 4  # falls only from one row to the next
    with pytest.raises(DataError, match="user 2 is not sorted"):
        load(folder([1, 4, 2, 0]))
    with pytest.raises(DataError, match="user 0 repeats an item"):
        load(folder([4, 4, 0, 2]))


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({"users": np.ones((40, 4), np.float32)}, "no array 'items'"),
        ({"items": np.ones((30, 4), np.float32)}, "no array 'users'"),
        ({"users": np.ones((39, 4), np.float32), "items": np.ones((30, 4), np.float32)}, "39 rows, expected 40"),
        ({"users": np.ones((40, 4), np.float32), "items": np.ones((30, 5), np.float32)}, "share one space"),
        ({"users": np.ones((40, 4), np.float32), "items": np.full((30, 4), np.nan, np.float32)}, "row 0 .* not finite"),
        ({"users": np.ones((40, 4), np.int32), "items": np.ones((30, 4), np.float32)}, "2-d float array"),
    ],
)
def test_data_profiles_rejects(tmp_path, arrays, profiles, message):
    with pytest.raises(DataError, match=message) as caught:
        load(write_folder(tmp_path / "bad", arrays[0], profiles))
    assert "profiles_test.npz" in str(caught.value)


def test_data_load_rejects_paths_without_data(tmp_path):
    with pytest.raises(DataError, match=r"no such folder.*'synthetic'"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match="holds neither"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        load(tmp_path / "file")


def test_data_damaged_and_pickled_archives_are_refused(tmp_path):
    (tmp_path / "interactions.npz").write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"interactions\.npz: not a readable"):
        load(tmp_path)
    np.savez(tmp_path / "interactions.npz", shape=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(DataError, match=r"interactions\.npz: not a readable"):
        load(tmp_path)


def test_data_synthetic_is_made_once_and_is_reproducible(tmp_path, monkeypatch):
    monkeypatch.setenv("PRORECFAST_CACHE", str(tmp_path / "one"))
    first = load()
    file = next((tmp_path / "one").glob("synthetic-v*/interactions.npz"))
    written = file.stat().st_mtime_ns
    again = load("synthetic")
    assert file.stat().st_mtime_ns == written
    monkeypatch.setenv("PRORECFAST_CACHE", str(tmp_path / "two"))
    other = load("synthetic")
    assert first.fingerprint == again.fingerprint == other.fingerprint
    assert not list((tmp_path / "one").glob(".*")), "scratch folders must not stay behind"
    assert first.source == "synthetic" and "synthetic" in first.provenance
    # a heavy tail in both directions, and every user with something to test on
    items = np.bincount(first.train.indices, minlength=first.num_items)
    assert first.train.degrees.max() > 5 * np.median(first.train.degrees)
    assert items.max() > 5 * np.median(items)
    assert first.test.degrees.min() >= 1 and first.valid.degrees.min() >= 1


def test_data_synthetic_splits_are_disjoint():
    interactions, _ = make_synthetic(SMALL)
    keys = []
    for split in ("train", "valid", "test"):
        users = np.repeat(np.arange(40), np.diff(interactions[f"{split}_indptr"]))
        keys.append(users * 30 + interactions[f"{split}_indices"])
    together = np.concatenate(keys)
    assert np.unique(together).size == together.size


def test_data_synthetic_profiles_tell_something_but_not_all():
    interactions, profiles = make_synthetic()
    users = np.repeat(np.arange(profiles["users"].shape[0]), np.diff(interactions["test_indptr"]))
    rng = np.random.default_rng(0)
    liked = (profiles["users"][users] * profiles["items"][interactions["test_indices"]]).sum(1)
    other = (profiles["users"][users] * profiles["items"][rng.integers(0, len(profiles["items"]), users.size)]).sum(1)
    wins = float((liked > other).mean())
    assert 0.6 < wins < 0.95


def test_data_synthetic_cached_with_other_settings_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PRORECFAST_CACHE", str(tmp_path))
    fingerprint = load().fingerprint
    monkeypatch.setattr(synthetic.SyntheticConfig.__init__, "__defaults__", (300, *_defaults()[1:]))
    assert load().fingerprint != fingerprint and len(list(tmp_path.glob("synthetic-v*"))) == 2


def _defaults() -> tuple:
    return synthetic.SyntheticConfig.__init__.__defaults__


def test_data_synthetic_in_an_unwritable_place(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRORECFAST_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="PRORECFAST_CACHE"):
        load()


def test_data_synthetic_made_by_several_processes_at_once(tmp_path):
    code = "from prorec_fast.data import load; print(load().fingerprint)"
    env = {**os.environ, "PRORECFAST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, cwd=HERE)
        for _ in range(3)
    ]
    prints = {run.communicate(timeout=300)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0] and len(prints) == 1


def test_data_cooccurrence_profiles(tmp_path, arrays):
    interactions, _ = arrays
    data = load(write_folder(tmp_path / "plain", interactions))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    derived = data.with_cooccurrence_profiles(dim=6)
    assert torch.equal(before, torch.get_rng_state())
    assert "derived from the training matrix" in derived.provenance
    users, items = derived.user_profiles, derived.item_profiles
    assert users.shape == (40, 6) and items.shape == (30, 6)
    rows, columns = data.train.edges()
    mean = torch.zeros(40, 6).index_add_(0, rows, items[columns])
    torch.testing.assert_close(users, torch.nn.functional.normalize(mean, dim=1))
    # the definition, dense: right singular vectors of the normalised matrix, the first one left out
    dense = torch.zeros(40, 30, dtype=torch.float64)
    dense[rows, columns] = 1
    scaled = dense / dense.sum(1, keepdim=True).clamp(min=1).sqrt() / dense.sum(0).clamp(min=1).sqrt()
    _, spectrum, right = torch.linalg.svd(scaled, full_matrices=False)
    want = torch.nn.functional.normalize(right.T[:, 1:7] * spectrum[1:7], dim=1).float()
    torch.testing.assert_close(items @ items.T, want @ want.T, atol=1e-4, rtol=0)
    assert torch.equal(items, data.with_cooccurrence_profiles(dim=6).item_profiles)


def test_data_describe_and_fingerprint(tmp_path, arrays):
    interactions, profiles = arrays
    plain = load(write_folder(tmp_path / "plain", interactions))
    full = load(write_folder(tmp_path / "full", interactions, profiles))
    facts = full.describe()
    assert facts["users"] == 40 and facts["profile_width"] == 8 and facts["train"] == full.train.num_edges
    assert plain.fingerprint != full.fingerprint
    assert full.fingerprint == load(tmp_path / "full").fingerprint


def _rows(*rows, dtype=np.int32) -> Interactions:
    return Interactions(np.cumsum([0, *map(len, rows)]).astype(np.int64), np.concatenate([*rows, []]).astype(dtype))


def test_data_split_hash_sees_the_splits_and_nothing_else():
    train, valid, test = _rows([0, 2], [1]), _rows([1], []), _rows([], [0])
    data = Dataset("a", "a", 2, 3, train, valid, test)
    same = replace(
        data,
        name="b",
        source="c",
        train=_rows([0, 2], [1], dtype=np.int64),
        train_enriched=_rows([0, 1, 2], [1]),
        user_profiles=torch.zeros(2, 4),
        item_profiles=torch.ones(3, 4),
        provenance="d",
    )
    assert same.fingerprint != data.fingerprint
    assert data.split_hash == same.split_hash == "24551d6f87d5ef02b32c641eae7afd4f"  # files on disk name it
    others = [
        replace(data, num_items=4),
        replace(data, train=_rows([0], [1, 2])),
        replace(data, train=_rows([0, 1], [1])),
        replace(data, valid=test, test=valid),
        replace(data, valid=_rows([2], [])),
        replace(data, test=_rows([0], [])),
    ]
    assert len({data.split_hash, *(other.split_hash for other in others)}) == 7


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the repository")
@pytest.mark.parametrize(
    ("name", "shape", "enriched", "width"),
    [("amazon_book", (11000, 9332), 144663, None), ("movielens_personas", (1000, 3292), None, 384)],
)
def test_data_shared_sets(name, shape, enriched, width):
    facts = load(SHARED / name).describe()
    assert (facts["users"], facts["items"]) == shape
    assert facts["train_enriched"] == enriched and facts["profile_width"] == width
