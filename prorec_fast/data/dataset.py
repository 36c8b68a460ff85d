"""What a data set is: three splits of user-item interactions and, where there are any, profile vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prorec_fast._checks import positive_int

from .errors import DataError

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph

    from .facets import Profiles

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Interactions:
    """One split as compressed sparse rows: row = user, columns sorted and without repeats.

    Attributes:
        indptr: int64 [num_users + 1].
        indices: int32 [num_edges], item of each interaction.
    """

    indptr: np.ndarray
    indices: np.ndarray

    @property
    def num_edges(self) -> int:
        return int(self.indices.shape[0])

    @property
    def degrees(self) -> np.ndarray:
        """int64 [num_users]: interactions of each user."""
        return np.diff(self.indptr)

    def edges(self) -> tuple[Tensor, Tensor]:
        """(users, items), int64 tensors [num_edges], in row order."""
        users = np.repeat(np.arange(self.indptr.shape[0] - 1, dtype=np.int64), self.degrees)
        return torch.from_numpy(users), torch.from_numpy(self.indices.astype(np.int64))


def checked_interactions(
    indptr: np.ndarray, indices: np.ndarray, num_users: int, num_items: int, where: str
) -> Interactions:
    """`Interactions` from arrays that must already be proper CSR rows.

    Raises:
        DataError: wrong type or length, offsets that are no partition, an item outside the range, rows that are
            unsorted or repeat an item. `where` (file and array) starts the message.
    """
    for name, array in (("indptr", indptr), ("indices", indices)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{where}_{name}: expected a 1-d integer array, got {array.dtype} {array.shape}")
    if indptr.shape[0] != num_users + 1:
        raise DataError(f"{where}_indptr: {indptr.shape[0]} offsets for {num_users} users, expected {num_users + 1}")
    indptr = indptr.astype(np.int64)
    if indptr[0] != 0 or indptr[-1] != indices.shape[0]:
        raise DataError(
            f"{where}_indptr: runs from {indptr[0]} to {indptr[-1]}, expected 0 to {indices.shape[0]} (the indices)"
        )
    if np.any(np.diff(indptr) < 0):
        row = int(np.flatnonzero(np.diff(indptr) < 0)[0])
        raise DataError(f"{where}_indptr: offsets fall at user {row}")
    outside = (indices < 0) | (indices >= num_items)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise DataError(f"{where}_indices: item {int(indices[at])} at position {at} is outside [0, {num_items})")
    step = np.diff(indices.astype(np.int64))
    inside_row = np.ones(step.shape[0], dtype=bool)
    starts = indptr[1:-1]
    inside_row[starts[(starts > 0) & (starts < indices.shape[0])] - 1] = False
    wrong = inside_row & (step <= 0)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(indptr, at, side="right") - 1)
        problem = "repeats an item" if step[at] == 0 else "is not sorted"
        raise DataError(f"{where}_indices: the row of user {row} {problem} at position {at + 1}")
    return Interactions(indptr, np.ascontiguousarray(indices, dtype=np.int32))


def checked_profiles(array: np.ndarray, rows: int, where: str) -> Tensor:
    """float32 [rows, t] from any float array of that shape.

    Raises:
        DataError: not a float matrix, another number of rows, or a value that is not finite.
    """
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] == 0:
        raise DataError(f"{where}: expected a 2-d float array, got {array.dtype} {array.shape}")
    if array.shape[0] != rows:
        raise DataError(f"{where}: {array.shape[0]} rows, expected {rows}")
    profiles = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    finite = torch.isfinite(profiles).all(dim=1)
    if not bool(finite.all()):
        raise DataError(f"{where}: row {int((~finite).nonzero()[0])} holds a value that is not finite")
    return profiles


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Interactions of `num_users` x `num_items` in three splits, with optional profile vectors.

    Attributes:
        source: what `load` was given, made absolute where it is a folder; `load(source)` gives the same set again.
        train_enriched: the training rows plus interactions added before training, where the set brings them.
        user_profiles, item_profiles: float32 [num_users, t] and [num_items, t], both or neither.
        further_profiles: more such pairs, for methods that use several profiles of one user or item.
        provenance: where the profiles came from; to be printed with every result that rests on them.
        enriched_by: where the interactions added in `train_enriched` came from, in words.
    """

    name: str
    source: str
    num_users: int
    num_items: int
    train: Interactions
    valid: Interactions
    test: Interactions
    train_enriched: Interactions | None = None
    user_profiles: Tensor | None = None
    item_profiles: Tensor | None = None
    further_profiles: Sequence[tuple[Tensor, Tensor]] = ()
    provenance: str = "no profiles"
    enriched_by: str = "train_enriched, as published with the data set"

    def __post_init__(self) -> None:
        if self.num_users < 1 or self.num_items < 1:
            raise DataError(f"{self.name}: {self.num_users} users x {self.num_items} items; needs at least one of each")
        if (self.user_profiles is None) != (self.item_profiles is None):
            raise DataError(f"{self.name}: profiles are needed for users and items, or for neither")
        for users, items in self.profile_pairs:
            if users.shape[0] != self.num_users or items.shape[0] != self.num_items or users.shape[1] != items.shape[1]:
                raise DataError(
                    f"{self.name}: profiles {tuple(users.shape)} and {tuple(items.shape)} do not fit "
                    f"{self.num_users} users and {self.num_items} items in one space"
                )
        if self.train.num_edges == 0:
            raise DataError(f"{self.name}: the training split is empty")

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {self.num_users} users x {self.num_items} items, {self.train.num_edges} train / "
            f"{self.valid.num_edges} valid / {self.test.num_edges} test interactions, {self.provenance})"
        )

    @property
    def has_profiles(self) -> bool:
        return self.user_profiles is not None

    @property
    def profile_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Every (users, items) pair of profile tables, the main one first."""
        main = [] if self.user_profiles is None else [(self.user_profiles, self.item_profiles)]
        return [*main, *self.further_profiles]  # type: ignore[list-item]

    def _graph(self, split: Interactions) -> BipartiteGraph:
        from prorec_fast.graph import BipartiteGraph

        return BipartiteGraph.from_edges(*split.edges(), self.num_users, self.num_items, device="cpu")

    @cached_property
    def train_graph(self) -> BipartiteGraph:
        return self._graph(self.train)

    @cached_property
    def valid_graph(self) -> BipartiteGraph:
        return self._graph(self.valid)

    @cached_property
    def test_graph(self) -> BipartiteGraph:
        return self._graph(self.test)

    @cached_property
    def enriched_graph(self) -> BipartiteGraph:
        """The training graph with interactions added: the set's own enrichment, else one made from its profiles.

        Raises:
            DataError: the set has neither an enrichment nor profiles.
        """
        if self.train_enriched is not None:
            return self._graph(self.train_enriched)
        if self.user_profiles is None:
            raise DataError(
                f"{self.name}: no train_enriched and no profiles to make one from; "
                "use data.with_cooccurrence_profiles()"
            )
        from prorec_fast.retrieval import enrich

        return enrich(self.train_graph, self.user_profiles, self.item_profiles)

    @property
    def enrichment(self) -> str:
        """Where `enriched_graph` comes from, in words."""
        if self.train_enriched is not None:
            return self.enriched_by
        return "items of the 10 users most similar by profile, within each user's sparsity budget, no LLM re-ranking"

    def with_cooccurrence_profiles(self, dim: int = 64, *, seed: int = 0) -> Dataset:
        """This set with profile vectors derived from its training matrix alone (see `derived`)."""
        from .derived import cooccurrence_profiles

        users, items = cooccurrence_profiles(self.train, self.num_users, self.num_items, dim, seed=seed)
        provenance = (
            f"none in the data set; {items.shape[1]}-d co-occurrence vectors derived from the training matrix "
            "stand in (users: mean of their items)"
        )
        return replace(self, user_profiles=users, item_profiles=items, further_profiles=(), provenance=provenance)

    def profiles_for(self, num_profiles: int, *, seed: int = 0) -> Profiles:
        """K = `num_profiles` profile vectors of every user and item: (users, items, provenance).

        They are the first K of the data set (of those as wide as its first one: one network is to take them all), or
        where there are none, a co-occurrence vector. What is then wanting are facets: centroids of spherical k-means of
        the first profile vectors of a user's training items, and of an item's training users, larger clusters first. A
        node with fewer clusters than facets has them again; one without training interactions has its first profile.

        Args:
            seed: of the co-occurrence vectors; nothing else is drawn.

        Raises:
            ValueError: num_profiles is not a positive integer.
        """
        from .facets import profiles_for

        positive_int("num_profiles", num_profiles)  # before 2.0 finds what was made for 2
        if (num_profiles, seed) not in self._made_profiles:
            self._made_profiles[num_profiles, seed] = profiles_for(self, num_profiles, seed=seed)
        return self._made_profiles[num_profiles, seed]

    @cached_property
    def _made_profiles(self) -> dict[tuple[int, int], Profiles]:
        """What `profiles_for` has given: k-means takes seconds, and each run of a comparison asks."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the splits and profiles: equal for equal contents, whatever the name."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.array([self.num_users, self.num_items], dtype=np.int64).tobytes())
        for split in (self.train, self.valid, self.test, self.train_enriched):
            digest.update(b"|")
            if split is not None:
                digest.update(split.indptr.data)
                digest.update(split.indices.data)
        digest.update(self.profiles_hash.encode())
        return digest.hexdigest()

    @cached_property
    def profiles_hash(self) -> str:
        """Hex digest of the profile vectors."""
        digest = hashlib.blake2b(digest_size=16)
        for users, items in self.profile_pairs:
            digest.update(users.numpy().data)
            digest.update(items.numpy().data)
        return digest.hexdigest()

    @cached_property
    def split_hash(self) -> str:
        """Hex digest of the shape and the three splits: equal for equal interactions, split alike.

        Profiles and added interactions are no part of it, so what is made from the training split (profiles,
        enrichments) can name the split that it was made from.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.array([self.num_users, self.num_items], dtype="<i8").tobytes())
        for split in (self.train, self.valid, self.test):
            digest.update(split.indptr.astype("<i8").tobytes())
            digest.update(split.indices.astype("<i4").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """Plain numbers and words about the set, ready for JSON."""
        degrees = self.train.degrees
        quartiles = [float(q) for q in np.quantile(degrees, [0.25, 0.5, 0.75])]
        item_degrees = np.bincount(self.train.indices, minlength=self.num_items)
        return {
            "name": self.name,
            "source": self.source,
            "users": self.num_users,
            "items": self.num_items,
            "train": self.train.num_edges,
            "valid": self.valid.num_edges,
            "test": self.test.num_edges,
            "train_enriched": None if self.train_enriched is None else self.train_enriched.num_edges,
            "enrichment": None if self.train_enriched is None else self.enriched_by,
            "density": self.train.num_edges / (self.num_users * self.num_items),
            "train_per_user_quartiles": quartiles,
            "train_per_user_max": int(degrees.max()),
            "train_per_item_max": int(item_degrees.max()),
            "items_never_trained": int((item_degrees == 0).sum()),
            "profile_width": None if self.user_profiles is None else int(self.user_profiles.shape[1]),
            "profile_tables": len(self.profile_pairs),
            "profiles": self.provenance,
        }
