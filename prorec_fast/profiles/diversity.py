"""How different the K profiles of one user or item are from one another, and which profiles would fit anybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prorec_fast._checks import positive_int

from .errors import ProfileError

THRESHOLD = 0.95
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BINS = 80  # of width 1/40 over [-1, 1]: the same for every report, so that reports can be laid side by side
_NUMBERS = 1 << 22  # of the tables, held at a time beside them


@dataclass(frozen=True)
class Generic:
    """A profile that is near to everybody's.

    Attributes:
        row, key: whose it is, and their own id.
        profile: which of the K, from 0.
        cosine: its mean cosine to the profiles of all others.
        text: None where it is not known.
    """

    row: int
    profile: int
    cosine: float
    key: str = ""
    text: str | None = None


@dataclass(frozen=True)
class Diversity:
    """One side's profiles. Nodes are the users or items that have profile texts; others do not count.

    Attributes:
        nodes, num_profiles, width: n, K and t.
        quantiles: of the mean cosine between a node's own profiles, over the nodes, by level; None where K is 1.
        histogram: nodes by that mean, in bins from -1 to 1 of width 1/40; None where K is 1.
        between_tables: [K][K], the mean cosine between the i-th and the j-th profile of a node.
        between_nodes: the mean cosine between profiles of different nodes, against which the others are to be read:
            there are spaces in which all texts are near to one another. None for a single node.
        threshold: what makes two profiles of a node near-duplicates: a cosine above it.
        duplicate_pairs: share of such pairs among all pairs of profiles of one node.
        duplicate_nodes: share of nodes with such a pair.
        generic: the profiles nearest to those of all other nodes, nearest first.
    """

    nodes: int
    num_profiles: int
    width: int
    quantiles: dict[str, float] | None
    histogram: list[int] | None
    between_tables: list[list[float]]
    between_nodes: float | None
    threshold: float
    duplicate_pairs: float
    duplicate_nodes: float
    generic: list[Generic]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def diversity(
    tables: Tensor, has_text: Tensor | None = None, *, threshold: float = THRESHOLD, top: int = 10
) -> Diversity | None:
    """How different the profiles in tables [K, n, t] are; None where no node has any.

    Takes time linear in n, and memory for a few thousand rows beside the tables: the mean cosine of a unit vector to
    all others is its product with their sum.

    Args:
        tables: floating, finite.
        has_text: bool [n], the nodes that count; None: all.
        threshold: see `Diversity`. At 0.95 two profiles are within 18 degrees of each other.
        top: how many generic profiles to name.

    Raises:
        ProfileError, ValueError: a threshold that is no cosine, or tables of another shape.
    """
    positive_int("top", top)
    if not -1 <= threshold < 1:
        raise ProfileError(f"threshold: want a cosine of at least -1 and below 1, got {threshold!r}")
    if tables.dim() != 3 or 0 in tables.shape:
        raise ProfileError(f"tables: want shape [K, n, t], got {tuple(tables.shape)}")
    count, _, width = tables.shape
    rows = (torch.ones(tables.shape[1], dtype=torch.bool) if has_text is None else has_text).nonzero().flatten()
    nodes = len(rows)
    if nodes == 0:
        return None
    upper = torch.triu_indices(count, count, offset=1)
    means, gram = torch.zeros(nodes), torch.zeros(count, count, dtype=torch.float64)
    everybody, within = torch.zeros(width, dtype=torch.float64), 0.0
    duplicate_pairs = duplicate_nodes = done = 0
    for units, _ in _unit_rows(tables, rows):
        cosines = units @ units.transpose(1, 2)  # [c, K, K]
        own = cosines[:, upper[0], upper[1]]
        duplicates = (own > threshold).sum(1)
        duplicate_pairs += int(duplicates.sum())
        duplicate_nodes += int((duplicates > 0).sum())
        if count > 1:
            means[done : done + len(units)] = own.mean(1)
        done += len(units)
        gram += cosines.double().sum(0)
        everybody += units.double().sum((0, 1))
        within += float(cosines.double().sum())
    others = (nodes - 1) * count
    between = (float(everybody @ everybody) - within) / (nodes * count * others) if others else None
    spread = means.double().numpy()
    return Diversity(
        nodes=nodes,
        num_profiles=count,
        width=width,
        quantiles=_quantiles(spread) if count > 1 else None,
        histogram=np.histogram(spread, bins=_BINS, range=(-1, 1))[0].tolist() if count > 1 else None,
        between_tables=(gram / nodes).tolist(),
        between_nodes=between,
        threshold=threshold,
        duplicate_pairs=duplicate_pairs / max(1, nodes * upper.shape[1]),
        duplicate_nodes=duplicate_nodes / nodes,
        generic=_generic(tables, rows, everybody, top) if others else [],
    )


def _unit_rows(tables: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(float32 [c, K, t] of unit vectors, their rows), a portion at a time."""
    count, _, width = tables.shape
    for part in rows.split(max(1, _NUMBERS // (count * width))):
        yield F.normalize(tables[:, part].float(), dim=2).transpose(0, 1).contiguous(), part


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, QUANTILES)
    return {f"{level:g}": float(value) for level, value in zip(QUANTILES, found, strict=True)}


def _generic(tables: Tensor, rows: Tensor, everybody: Tensor, top: int) -> list[Generic]:
    best: list[Generic] = []
    others = (len(rows) - 1) * tables.shape[0]
    for units, part in _unit_rows(tables, rows):
        rest = everybody - units.double().sum(1)  # [c, t]: without the node's own
        cosines = (units.double() @ rest.unsqueeze(2)).squeeze(2) / others  # [c, K]
        values, places = cosines.flatten().topk(min(top, cosines.numel()))
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            node, profile = divmod(place, tables.shape[0])
            best.append(Generic(int(part[node]), profile, value))
        best = sorted(best, key=lambda one: (-one.cosine, one.row, one.profile))[:top]
    return best


def named(
    found: Diversity, keys: Sequence[str] | None = None, texts: Mapping[int, Sequence[str]] | None = None
) -> Diversity:
    """With the own ids (else row numbers) and texts of the profiles that are named."""
    generic = [
        replace(
            one,
            key=str(one.row) if keys is None else keys[one.row],
            text=None if texts is None or one.row not in texts else texts[one.row][one.profile],
        )
        for one in found.generic
    ]
    return replace(found, generic=generic)
