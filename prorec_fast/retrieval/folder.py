"""Retrieval for a data folder: candidates found by its profile vectors, and the enrichment that is made of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from prorec_fast.data import DataError, Dataset, load, own_ids
from prorec_fast.data.enriched import ENRICHED, save_enrichment, write_enrichment_table

from .candidates import RankedCandidates, rank_candidates, sparsity_levels
from .enrichment import Enrichment, choose
from .whitening import Whitening


class Choices(Protocol):
    """What a language model chose (`prorec_fast.profiles.Reranking`)."""

    @property
    def answers(self) -> Mapping[int, Iterable[int]]: ...
    @property
    def how(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Level:
    """Users between two quartiles of interactions per user.

    Attributes:
        low, high: fewest and most interactions of a user here.
        with_budget: of the users, those who may get new interactions.
        candidates, added: of them all.
    """

    low: int
    high: int
    users: int
    with_budget: int
    candidates: int
    added: int


@dataclass(frozen=True, eq=False)
class Found:
    """The candidates of a data folder's users.

    Attributes:
        how: how they were found, ready for JSON.
    """

    data: Dataset
    candidates: RankedCandidates
    how: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """Where the data was loaded from; None for a built-in set."""
        source = Path(self.data.source)
        return source if source.is_absolute() else None

    def choose(self, choices: Choices | None = None) -> Enrichment:
        """The training graph with the best candidates, or those of `choices`, added."""
        return choose(self.data.train_graph, self.candidates, None if choices is None else choices.answers)

    def save(
        self, enrichment: Enrichment, choices: Choices | None = None, *, out: str | os.PathLike[str] | None = None
    ) -> list[str]:
        """Write `out`, by default the enriched.npz of the folder, where `data.load` finds it, and beside it a table for
        people with the users' own ids, .tsv in place of .npz; returns both paths.

        Raises:
            DataError: no `out` for a built-in set, whose folder is nobody's to write to.
        """
        if out is None and self.folder is None:
            raise DataError(f"{self.data.name}: a built-in set; say where its enrichment is to go")
        out = self.folder / ENRICHED if out is None else Path(out)
        sizes = self.data.num_users, self.data.num_items
        ids = [list(map(str, range(size))) for size in sizes] if self.folder is None else own_ids(self.folder, *sizes)
        how = {**self.how, "rerank": None if choices is None else dict(choices.how)}
        save_enrichment(out, self.data, enrichment, how)
        write_enrichment_table(out.with_suffix(".tsv"), enrichment, *ids)
        return [str(out), str(out.with_suffix(".tsv"))]

    def levels(self, enrichment: Enrichment | None = None) -> list[Level]:
        """By sparsity level, the sparsest first; levels without a user are left out."""
        counts = self.data.train_graph.user_degree
        zeros = torch.zeros_like(counts)
        candidates = zeros.index_add(0, self.candidates.users, self.candidates.indptr.diff())
        budget = zeros.index_add(0, self.candidates.users, self.candidates.budget)
        added = zeros if enrichment is None else torch.bincount(enrichment.user, minlength=counts.numel())
        level = sparsity_levels(counts)[1]
        return [
            Level(
                int(counts[here].min()),
                int(counts[here].max()),
                int(here.sum()),
                int((budget[here] > 0).sum()),
                int(candidates[here].sum()),
                int(added[here].sum()),
            )
            for here in (level == number for number in range(4))
            if here.any()
        ]


def search(folder: str | os.PathLike[str], *, num_similar: int = 10, whiten: int | None = None) -> Found:
    """The ranked candidates of a data folder, by its first profile vectors.

    Args:
        folder: as `data.load` takes it.
        num_similar: users whose items are candidates.
        whiten: the width that users' and items' vectors are whitened to first, each side by itself; as they are without
            it.

    Raises:
        DataError: no profile vectors, or an enrichment that was published with the data.
        ValueError: an argument out of range; the message names it.
    """
    data = load(folder, enriched=False)
    if data.train_enriched is not None:
        raise DataError(
            f"{data.source}: its train_enriched came with the data; take it out, or {ENRICHED} would be a second one"
        )
    if data.user_profiles is None or data.item_profiles is None:
        raise DataError(
            f"{data.source}: no profile vectors to search by; `prorec-fast profile --embed-model` makes them"
        )
    tables = data.user_profiles, data.item_profiles
    if whiten is not None:
        tables = tuple(Whitening(whiten).fit(table).transform(table) for table in tables)
    candidates = rank_candidates(data.train_graph, *tables, num_similar=num_similar)
    return Found(data, candidates, {"num_similar": num_similar, "whiten": whiten, "profiles": data.provenance})
