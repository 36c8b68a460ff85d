"""The authors' folders of pickles: read exactly, and never executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from prorec_fast.data import DataError, load

sparse = pytest.importorskip("scipy.sparse", reason="SciPy is needed to write the pickles that are read here")

USERS, ITEMS = 12, 9


def _dump(path: Path, value: object, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(value, protocol=protocol))


def _matrix(seed: int, layout: str = "coo", kind: str = "matrix"):
    rng = np.random.default_rng(seed)
    dense = (rng.random((USERS, ITEMS)) < 0.3).astype(np.float32)
    dense[0, seed] = 1
    return getattr(sparse, f"{layout}_{kind}")(dense), dense


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed, name in enumerate(("trn_mat", "val_mat", "tst_mat")):
        _dump(tmp_path / f"{name}.pkl", _matrix(seed)[0])
    return tmp_path


def _dense(rows) -> np.ndarray:
    out = np.zeros((USERS, ITEMS), dtype=np.float32)
    out[np.repeat(np.arange(USERS), rows.degrees), rows.indices] = 1
    return out


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_data_pickles_every_layout(folder, layout, kind, protocol):
    matrix, dense = _matrix(5, layout, kind)
    _dump(folder / "trn_mat.pkl", matrix, protocol)
    np.testing.assert_array_equal(_dense(load(folder).train), dense)


def test_data_pickles_old_module_names(folder):
    matrix, dense = _matrix(5)
    raw = pickle.dumps(matrix, protocol=2)
    for new, old in ((b"scipy.sparse._coo\n", b"scipy.sparse.coo\n"), (b"numpy._core.", b"numpy.core.")):
        assert new in raw
        raw = raw.replace(new, old)
    (folder / "trn_mat.pkl").write_bytes(raw)
    np.testing.assert_array_equal(_dense(load(folder).train), dense)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_data_pickles_big_endian(folder, protocol):
    """Written on another machine: the values, not their bytes, are what counts."""
    matrix, dense = _matrix(5, "csr")
    matrix.data, matrix.indices = matrix.data.astype(">f4"), matrix.indices.astype(">i4")
    matrix.indptr = matrix.indptr.astype(">i4")
    _dump(folder / "trn_mat.pkl", matrix, protocol)
    tables = [np.arange(rows * 4.0).reshape(rows, 4) for rows in (USERS, ITEMS)]
    _dump(folder / "usr_emb_np.pkl", tables[0].astype(">f8"), protocol)
    _dump(folder / "itm_emb_np.pkl", np.asfortranarray(tables[1].astype(">f8")), protocol)
    data = load(folder)
    np.testing.assert_array_equal(_dense(data.train), dense)
    np.testing.assert_array_equal(data.user_profiles.numpy(), tables[0])
    np.testing.assert_array_equal(data.item_profiles.numpy(), tables[1])


def test_data_pickles_profiles_and_enrichment(folder):
    rng = np.random.default_rng(0)
    tables = {}
    for suffix in ("", "_1", "_2"):
        for side, rows in (("usr", USERS), ("itm", ITEMS)):
            tables[side + suffix] = rng.standard_normal((rows, 5))
            _dump(folder / f"{side}_emb_np{suffix}.pkl", tables[side + suffix])
    enriched, dense = _matrix(6)
    _dump(folder / "new_trn_rag_mat.pkl", enriched)
    data = load(folder)
    np.testing.assert_array_equal(_dense(data.train_enriched), dense)
    np.testing.assert_allclose(data.user_profiles.numpy(), tables["usr"].astype(np.float32))
    assert len(data.further_profiles) == 2
    np.testing.assert_allclose(data.further_profiles[1][1].numpy(), tables["itm_2"].astype(np.float32))
    assert "usr_emb_np.pkl" in data.provenance and "2 further" in data.provenance


def test_data_pickles_become_binary(folder):
    rows, columns = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 3, 4, 5])
    values = np.array([1.0, 1.0, 5.0, 0.0, 1.0])
    _dump(folder / "trn_mat.pkl", sparse.coo_matrix((values, (rows, columns)), shape=(USERS, ITEMS)))
    train = load(folder).train
    np.testing.assert_array_equal(train.indices, [1, 3, 5])
    np.testing.assert_array_equal(train.degrees[:3], [1, 1, 1])


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["trn_mat", "tst_mat"])
def test_data_pickles_malicious_is_refused(folder, tmp_path, name, protocol):
    marker = tmp_path / "executed"
    _dump(folder / f"{name}.pkl", _Malicious(marker), protocol)
    with pytest.raises(DataError, match=rf"{name}\.pkl: refused: it names (posix|nt)\.system"):
        load(folder)
    assert not marker.exists()


class _Smuggler:
    """A sparse matrix whose state hides a call."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return sparse.coo_matrix, (), {"data": _Malicious(self.marker)}


def test_data_pickles_malicious_inside_a_matrix(folder, tmp_path):
    _dump(folder / "trn_mat.pkl", _Smuggler(tmp_path / "executed"))
    with pytest.raises(DataError, match=r"refused: it names \w+\.system"):
        load(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.eye},
        np.array([{"x": 1}], dtype=object),
        np.random.default_rng(0),
        np.ma.masked_array([1.0], [True]),
        Path("x"),
    ],
    ids=["function", "objects", "generator", "masked", "path"],
)
def test_data_pickles_refuses_everything_else(folder, value):
    _dump(folder / "trn_mat.pkl", value)
    with pytest.raises(DataError, match=r"trn_mat\.pkl"):
        load(folder)


def test_data_pickles_globals_by_attribute_path(folder):
    # protocol 4 may name dotted attributes; none may lead out of the allowed names
    raw = b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.fft\x93."
    (folder / "trn_mat.pkl").write_bytes(raw)
    with pytest.raises(DataError, match=r"it names numpy\.ndarray\.fft"):
        load(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("row", np.array([0, 99]), "row index lies outside"),
        ("col", np.array([0, -1]), "column index lies outside"),
        ("row", np.array([0]), "has 1 entries, expected 2"),
        ("row", np.array([0.0, 1.0]), "not a 1-d integer array"),
        ("data", np.array([1.0, np.nan]), "not finite"),
        ("data", None, "no 1-d numeric 'data'"),
        ("_shape", (12, 9, 2), "no two-dimensional shape"),
        ("_shape", (12, 1 << 40), "out of range"),
        ("_shape", (12, 8), "differs from the training matrix"),
    ],
)
def test_data_pickles_bad_matrices(folder, field, value, message):
    good = sparse.coo_matrix((np.ones(2), ([0, 1], [2, 3])), shape=(USERS, ITEMS))
    state = dict(good.__dict__)
    coords = state.pop("coords", None)
    if coords is not None:
        state["row"], state["col"] = coords
    state[field] = value

    class Forged:
        def __reduce__(self):
            return sparse.coo_matrix, (), state

    # no argument: the class stand-in takes none, as in a real pickle (NEWOBJ without arguments)
    _dump(folder / "tst_mat.pkl", Forged())
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "tst_mat.pkl" in str(caught.value)


@pytest.mark.parametrize(
    ("indptr", "message"),
    [([0, 3] + [2] * 11, "no partition"), ([0, 2], "entries, expected 13"), ([0] * 12 + [5], "no partition")],
)
def test_data_pickles_bad_offsets(folder, indptr, message):
    good = sparse.csr_matrix((np.ones(2), ([0, 1], [2, 3])), shape=(USERS, ITEMS))
    good.indptr = np.array(indptr, dtype=np.int32)
    _dump(folder / "val_mat.pkl", good)
    with pytest.raises(DataError, match=message):
        load(folder)


def test_data_pickles_files_that_are_wrong(folder):
    (folder / "tst_mat.pkl").unlink()
    with pytest.raises(DataError, match=r"tst_mat\.pkl: cannot be read"):
        load(folder)
    (folder / "tst_mat.pkl").write_bytes(pickle.dumps(_matrix(1)[0])[:40])
    with pytest.raises(DataError, match=r"tst_mat\.pkl: refused"):
        load(folder)
    _dump(folder / "tst_mat.pkl", np.ones((USERS, ITEMS)))
    with pytest.raises(DataError, match="expected a SciPy"):
        load(folder)


def test_data_pickles_profiles_that_are_wrong(folder):
    _dump(folder / "usr_emb_np.pkl", np.ones((USERS, 4)))
    with pytest.raises(DataError, match=r"itm_emb_np\.pkl: missing"):
        load(folder)
    _dump(folder / "itm_emb_np.pkl", np.ones((ITEMS + 1, 4)))
    with pytest.raises(DataError, match=r"itm_emb_np\.pkl: 10 rows, expected 9"):
        load(folder)
    _dump(folder / "itm_emb_np.pkl", _matrix(0)[0])
    with pytest.raises(DataError, match="expected a NumPy array"):
        load(folder)
