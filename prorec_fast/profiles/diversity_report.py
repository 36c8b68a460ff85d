"""The diversity of a data folder's profiles as JSON, as text and as a picture."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prorec_fast._files import write_atomically
from prorec_fast.data import load
from prorec_fast.data.profile_tensors import ProfileVectors

from .diversity import THRESHOLD, Diversity, diversity, named
from .errors import ProfileError
from .texts import ProfileTexts, read_profile_texts
from .vectors import load_vectors

_SHOWN = 100  # characters of a text
_ROOM = 1.35  # height of a picture where its bars have 1, for the legend


@dataclass(frozen=True)
class DiversityReport:
    """Both sides, as far as they have profiles.

    Attributes:
        source: the file of vectors; provenance: where those came from.
    """

    source: str
    provenance: str
    users: Diversity | None
    items: Diversity | None

    def sides(self) -> list[tuple[str, Diversity]]:
        return [(name, side) for name, side in (("user", self.users), ("item", self.items)) if side is not None]

    def as_json(self) -> dict[str, Any]:
        sides = {f"{name}s": side.as_json() for name, side in self.sides()}
        return {"source": self.source, "provenance": self.provenance, **sides}

    def as_text(self) -> str:
        return "\n".join([f"{self.source}: {self.provenance}", *(_side_text(*side) for side in self.sides())])


def report_diversity(
    folder: str | os.PathLike[str], *, name: str = "llm", threshold: float = THRESHOLD, top: int = 10
) -> DiversityReport:
    """How different the profiles are whose vectors are `profiles_<name>.safetensors` of a data folder.

    Args:
        threshold, top: as for `diversity`.

    Raises:
        ProfileError, DataError, ValueError: no such vectors, of another split than the data's, or damaged.
    """
    folder = Path(folder)
    data = load(folder, profiles=False)
    path = folder / f"profiles_{name}.safetensors"
    if not path.is_file():
        raise ProfileError(f"{path}: no such file; embed the profiles first")
    vectors = load_vectors(path, num_users=data.num_users, num_items=data.num_items)
    vectors.check_split(data.split_hash, str(path))
    found = []
    for side, tables, has_text, keys, count in (
        ("users", vectors.users, vectors.user_has_text, vectors.user_keys, data.num_users),
        ("items", vectors.items, vectors.item_has_text, vectors.item_keys, data.num_items),
    ):
        one = diversity(tables, has_text, threshold=threshold, top=top)
        if one is not None:
            texts = read_profile_texts(folder, side, count, data.split_hash)
            one = named(one, keys, texts.texts if _same(texts, vectors) else None)
        found.append(one)
    return DiversityReport(str(path), vectors.provenance_in(folder), *found)


def _same(texts: ProfileTexts, vectors: ProfileVectors) -> bool:
    """Whether these are the texts that were embedded, and not what was written since."""
    lineage = vectors.lineage
    pairs = (("model", "chat_models"), ("settings", "chat_settings"), ("prompt", "prompts"))
    return texts.num_profiles == vectors.num_profiles and all(
        set(texts.lineage[ours]) - {None} <= set(lineage.get(theirs, ())) for ours, theirs in pairs
    )


def _side_text(side: str, found: Diversity) -> str:
    lines = [f"{side}s: {found.nodes} with profiles, {found.num_profiles} each, {found.width}-d"]
    between = "" if found.between_nodes is None else f"; of different {side}s' {found.between_nodes:.3f}"
    if found.quantiles is not None:
        low, middle, high = (found.quantiles[level] for level in ("0.05", "0.5", "0.95"))
        lines += [
            f"  cosine of a{'n' * (side == 'item')} {side}'s own profiles, mean over their pairs: median {middle:.3f}, "
            f"5 % below {low:.3f}, 5 % above {high:.3f}{between}",
            f"  near-duplicates (cosine above {found.threshold:g}): {100 * found.duplicate_pairs:.1f} % of pairs, "
            f"{100 * found.duplicate_nodes:.1f} % of {side}s",
        ]
        if found.num_profiles > 2:
            first = ", ".join(f"{value:.3f}" for value in found.between_tables[0][1:])
            lines.append(f"  cosine of the first profile to each of the others: {first}")
    elif between:
        lines.append(f"  mean cosine of different {side}s' profiles: {found.between_nodes:.3f}")
    if found.generic:
        lines.append(f"  most generic, by mean cosine to the profiles of all other {side}s:")
    for one in found.generic:
        text = "" if one.text is None else f": {_shortened(one.text)}"
        lines.append(f"    {one.cosine:.3f}  {one.key}, profile {one.profile + 1}{text}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


def plot_diversity(report: DiversityReport, path: str | os.PathLike[str]) -> None:
    """Histograms of the mean cosine between a node's own profiles, as a PNG that replaces `path` in one step.

    Raises:
        ProfileError: matplotlib is not installed, or there are no several profiles of any node.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ProfileError('matplotlib is not installed; pip install "prorec-fast[plot]"') from error
    sides = [(name, side) for name, side in report.sides() if side.histogram is not None]
    if not sides:
        raise ProfileError(f"{report.source}: one profile a node, and no cosines between them to draw")
    figure = Figure(figsize=(4.6 * len(sides), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, side) in zip(np.atleast_1d(figure.subplots(1, len(sides))), sides, strict=True):
        _draw(axes, name, side)
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Title": "Cosine between profiles"})
    write_atomically(Path(path), content.getvalue())


def _draw(axes: Any, name: str, side: Diversity) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = np.linspace(-1, 1, len(side.histogram) + 1)
    axes.stairs(side.histogram, edges, fill=True, color="#4477aa")
    line = {"ymax": 1 / _ROOM, "linewidth": 1}
    axes.axvline(side.threshold, color="#cc3311", label=f"pairs above {side.threshold:g}: near-duplicates", **line)
    left = edges[np.flatnonzero(side.histogram)[0]]
    if side.between_nodes is not None:
        label = f"mean between {name}s: {side.between_nodes:.2f}"
        axes.axvline(side.between_nodes, color="#555555", linestyle="--", label=label, **line)
        left = min(left, side.between_nodes)
    axes.set_xlim(left - 0.05, 1.02)
    axes.set_ylim(0, _ROOM * max(side.histogram))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(f"{side.nodes:,} {name}s, {side.num_profiles} profiles each", fontsize=10)
    axes.set_xlabel(f"cosine between one {name}'s profiles, mean over pairs")
    axes.set_ylabel(f"number of {name}s")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
