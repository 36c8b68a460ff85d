"""Folders of pickles as RLMRec, ProEx and ProMax publish them, read without running anything in them.

The unpickler resolves only the names that NumPy arrays and SciPy sparse matrices are made of, and gives each a
harmless stand-in: a sparse matrix becomes a plain record of its arrays (so SciPy is not needed, and its compiled code
never sees indices that were not checked), a dtype must be numeric, everything else is refused by name.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .dataset import Dataset, Interactions, checked_profiles
from .errors import DataError

TRAIN = "trn_mat.pkl"
ENRICHED = "new_trn_rag_mat.pkl"

_NDARRAY = object()
_reconstruct_ndarray = np.empty(0).__reduce__()[0]
_rebuild_scalar = np.float64(0).__reduce__()[0]


class _Dtype:
    """A numeric dtype. Its byte order arrives as state, which NumPy would ignore on its own, shared dtype objects."""

    def __init__(self, spec: object, *_: object) -> None:
        kind = np.dtype(spec) if isinstance(spec, str) else None
        if kind is None or kind.kind not in "biuf":
            raise pickle.UnpicklingError(f"dtype {spec!r} is not numeric")
        self.dtype = kind

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        version, shape, dtype, fortran_order, content = state
        super().__setstate__((version, shape, dtype.dtype, fortran_order, content))


def _reconstruct(subtype: object, shape: object, code: object) -> np.ndarray:
    if subtype is not _NDARRAY:
        raise pickle.UnpicklingError("an array subclass")
    return _reconstruct_ndarray(_Array, (0,), b"b")


def _scalar(dtype: _Dtype, content: bytes) -> np.generic:
    return _rebuild_scalar(dtype.dtype, content)


def _frombuffer(buffer: Any, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: object) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


class _Sparse:
    """The state of a pickled sparse matrix: arrays by name, none of it trusted."""

    layout = ""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a sparse matrix without a dictionary as its state")
        self.state = state


_LAYOUTS = {name: type(f"_{name.capitalize()}", (_Sparse,), {"layout": name}) for name in ("coo", "csr", "csc")}
_NUMPY = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    ("multiarray", "_reconstruct"): _reconstruct,
    ("multiarray", "scalar"): _scalar,
    ("numeric", "_frombuffer"): _frombuffer,
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        layout, _, kind = name.partition("_")
        # scipy.sparse._coo since 1.8, scipy.sparse.coo before
        modules = (f"scipy.sparse._{layout}", f"scipy.sparse.{layout}")
        if layout in _LAYOUTS and kind in ("matrix", "array") and module in modules:
            return _LAYOUTS[layout]
        for core in ("numpy.core.", "numpy._core."):
            module = module.removeprefix(core)
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}; only NumPy arrays and SciPy sparse matrices are read")

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it holds a persistent id")


def _unpickle(path: Path) -> Any:
    try:
        return _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: refused: {reason}") from error


def _index_array(state: dict[str, Any], name: str, size: int | None, path: Path) -> np.ndarray:
    array = state.get(name)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{path}: '{name}' is not a 1-d integer array")
    if size is not None and array.shape[0] != size:
        raise DataError(f"{path}: '{name}' has {array.shape[0]} entries, expected {size}")
    return np.array(array, dtype=np.int64)


def _coordinates(matrix: _Sparse, path: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """(rows, columns, shape) of the nonzeros: int64, every index checked against the shape."""
    state = dict(matrix.state)
    data, shape = state.get("data"), state.get("_shape")
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(n, (int, np.integer)) for n in shape)):
        raise DataError(f"{path}: the matrix has no two-dimensional shape")
    if not all(0 < n < 2**31 for n in shape):
        raise DataError(f"{path}: shape {tuple(map(int, shape))} is out of range")
    if not isinstance(data, np.ndarray) or data.ndim != 1 or data.dtype.kind not in "biuf":
        raise DataError(f"{path}: the matrix has no 1-d numeric 'data'")
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        raise DataError(f"{path}: 'data' holds a value that is not finite")
    if matrix.layout == "coo":
        coords = state.get("coords")
        if isinstance(coords, tuple) and len(coords) == 2:
            state["row"], state["col"] = coords
        rows = _index_array(state, "row", data.shape[0], path)
        columns = _index_array(state, "col", data.shape[0], path)
    else:
        majors = int(shape[0] if matrix.layout == "csr" else shape[1])
        indptr = _index_array(state, "indptr", majors + 1, path)
        columns = _index_array(state, "indices", data.shape[0], path)
        if indptr[0] != 0 or indptr[-1] != data.shape[0] or (np.diff(indptr) < 0).any():
            raise DataError(f"{path}: 'indptr' is no partition of the {data.shape[0]} entries")
        rows = np.repeat(np.arange(majors, dtype=np.int64), np.diff(indptr))
        if matrix.layout == "csc":
            rows, columns = columns, rows
    for name, index, size in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if index.size and (index.min() < 0 or index.max() >= size):
            raise DataError(f"{path}: a {name} index lies outside [0, {int(size)})")
    kept = data != 0
    return rows[kept], columns[kept], (int(shape[0]), int(shape[1]))


def _interactions(path: Path, expected: tuple[int, int] | None = None) -> tuple[Interactions, tuple[int, int]]:
    matrix = _unpickle(path)
    if not isinstance(matrix, _Sparse) or not hasattr(matrix, "state"):
        raise DataError(f"{path}: expected a SciPy coo, csr or csc matrix, got {type(matrix).__name__}")
    rows, columns, shape = _coordinates(matrix, path)
    if expected is not None and shape != expected:
        raise DataError(f"{path}: shape {shape} differs from the training matrix's {expected}")
    keys = np.unique(rows * shape[1] + columns)
    indptr = np.zeros(shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(keys // shape[1], minlength=shape[0]), out=indptr[1:])
    return Interactions(indptr, (keys % shape[1]).astype(np.int32)), shape


def _profile_table(path: Path, rows: int) -> Tensor:
    array = _unpickle(path)
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected a NumPy array, got {type(array).__name__}")
    return checked_profiles(array, rows, str(path))


def _profile_pair(folder: Path, suffix: str, num_users: int, num_items: int) -> tuple[Tensor, Tensor] | None:
    users, items = folder / f"usr_emb_np{suffix}.pkl", folder / f"itm_emb_np{suffix}.pkl"
    present = [path for path in (users, items) if path.exists()]
    if not present:
        return None
    if len(present) == 1:
        missing = items if present[0] == users else users
        raise DataError(f"{missing}: missing, while {present[0].name} is there")
    return _profile_table(users, num_users), _profile_table(items, num_items)


def load_pickle_folder(folder: Path) -> Dataset:
    """Read `trn_mat.pkl`, `val_mat.pkl`, `tst_mat.pkl` and, where they are, `usr_emb_np.pkl` and `itm_emb_np.pkl`,
    further pairs `usr_emb_np_1.pkl`, `itm_emb_np_1.pkl` and on, and the enriched matrix `new_trn_rag_mat.pkl`.

    Matrices become binary: stored zeros are dropped and repeated pairs merged, as the authors' loaders do.

    Raises:
        DataError: naming the file and the problem; also for a pickle that names anything but arrays.
    """
    train, shape = _interactions(folder / TRAIN)
    valid, _ = _interactions(folder / "val_mat.pkl", shape)
    test, _ = _interactions(folder / "tst_mat.pkl", shape)
    enriched = _interactions(folder / ENRICHED, shape)[0] if (folder / ENRICHED).exists() else None
    main = _profile_pair(folder, "", *shape)
    further: list[tuple[Tensor, Tensor]] = []
    while main is not None and (pair := _profile_pair(folder, f"_{len(further) + 1}", *shape)) is not None:
        further.append(pair)
    provenance = "no profiles"
    if main is not None:
        provenance = f"usr_emb_np.pkl and itm_emb_np.pkl ({main[0].shape[1]}-d)"
        if further:
            provenance += f" and {len(further)} further pair(s)"
    users, items = main if main is not None else (None, None)
    return Dataset(
        name=folder.name,
        source=str(folder),
        num_users=shape[0],
        num_items=shape[1],
        train=train,
        valid=valid,
        test=test,
        train_enriched=enriched,
        user_profiles=users,
        item_profiles=items,
        further_profiles=tuple(further),
        provenance=provenance,
    )
