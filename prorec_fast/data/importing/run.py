"""`import_interactions`: a user's own files to a data folder, and a report of what became of every row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import prorec_fast

from ..dataset import SPLITS
from ..errors import DataError
from ..npz import INTERACTIONS
from .columns import Columns, NodeColumns
from .folder import REPORT, check_target, new_folder
from .kcore import k_core
from .rows import Kept, OnRows, Rows, one_a_pair, read_rows
from .settings import ImportSettings
from .sources import File, open_sources
from .splitting import split_interactions
from .tabular import Malformed, Table
from .texts import Reviews, read_nodes, write_nodes
from .values import Ids

Codes = Callable[[list[str]], np.ndarray]
Report = dict[str, Any]


def import_interactions(
    interactions: File,
    out: File,
    *,
    items: File | None = None,
    users: File | None = None,
    reviews: File | None = None,
    settings: ImportSettings | None = None,
    force: bool = False,
    on_rows: OnRows = lambda table, count: None,
) -> dict[str, Any]:
    """Make a data folder of interactions and texts in CSV, TSV, JSON lines (each plain or .gz) or Parquet.

    Rows rated below the minimum go first, then of several rows of one user and item the latest stays (of these the best
    rated, of these the last), then the k-core is taken, and each user's interactions are split (`splitting.split_sizes`
    has the rounding; at least one goes to training). Users and items are numbered as they first stand in the file; ids
    are strings and stay as they are, as the keys in `users.jsonl.gz` and `items.jsonl.gz` (see `data.own_ids`).

    Args:
        items, users: tables of texts by id.
        reviews: a table of user, item, text and perhaps rating and time; None for the review column of `interactions`.
        force: replace what an earlier import wrote to `out`.
        on_rows: told of every few ten thousand rows that were read.

    Returns:
        the report that is also written, as `import.json`.

    Raises:
        DataError: a file that cannot be used, naming the line where there is one; nothing left to keep; `out` in use.
    """
    settings = settings or ImportSettings()
    out = Path(out).expanduser()
    check_target(out, force=force)
    sources = open_sources(settings, interactions, users=users, items=items, reviews=reviews)

    user_ids, item_ids = Ids(), Ids()
    rows, facts = _read(*sources.interactions, settings, user_ids.codes, item_ids.codes, on_rows, needed=True)
    rows, which, dropped = _select(rows, settings, len(user_ids), len(item_ids), facts["file"])
    kept = Kept(user_ids, item_ids, rows.user[which], rows.item[which])
    time = rows.time[which] if settings.split == "time" else None
    arrays, sizes = _split(kept, split_interactions(kept.user, settings.ratios, settings.seed, time))
    report: Report = {
        "made_by": f"prorec-fast {prorec_fast.__version__}",
        "settings": asdict(settings),
        "interactions": {**facts, **dropped},
        "kept": {"users": kept.num_users, "items": kept.num_items, "interactions": kept.user.shape[0]},
        "splits": sizes,
    }

    def user_rows(own: list[str]) -> np.ndarray:
        return kept.user_rows(user_ids.known(own))

    def item_rows(own: list[str]) -> np.ndarray:
        return kept.item_rows(item_ids.known(own))

    users_words, report["users"] = _read_texts(sources.users, settings, user_rows, kept.num_users, on_rows)
    items_words, report["items"] = _read_texts(sources.items, settings, item_rows, kept.num_items, on_rows)
    found, report["reviews"] = None, None
    if sources.reviews is not None:
        facts = {}
        if reviews is not None:
            rows, facts = _read(*sources.reviews, settings, user_ids.known, item_ids.known, on_rows, needed=False)
        found = Reviews(*sources.reviews, rows, kept)
        report["reviews"] = {**facts, **found.counts}

    with new_folder(out, force=force) as folder:
        np.savez_compressed(folder / INTERACTIONS, **arrays)
        write_nodes(folder / "users.jsonl.gz", kept.user_keys, users_words)
        write_nodes(folder / "items.jsonl.gz", kept.item_keys, items_words)
        if found is not None:
            found.write(folder / "reviews.jsonl.gz")
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _read(
    table: Table,
    columns: Columns,
    settings: ImportSettings,
    user_codes: Codes,
    item_codes: Codes,
    on_rows: OnRows,
    *,
    needed: bool,
) -> tuple[Rows, Report]:
    """Rows and facts; `needed` says whether a row must have what the settings filter and split by."""
    malformed = Malformed(table)
    rows = read_rows(
        table,
        columns,
        malformed,
        user_codes,
        item_codes,
        on_rows,
        needs_rating=needed and settings.min_rating is not None,
        needs_time=needed and settings.split == "time",
    )
    return rows, _facts(table, columns, malformed, settings, rows.place.shape[0])


def _read_texts(
    source: tuple[Table, NodeColumns] | None, settings: ImportSettings, rows_of: Codes, count: int, on_rows: OnRows
) -> tuple[dict[int, dict[str, Any]], Report | None]:
    if source is None:
        return {}, None
    table, columns = source
    malformed = Malformed(table)
    nodes, counts = read_nodes(table, columns, malformed, rows_of, on_rows)
    facts = _facts(table, columns, malformed, settings, len(nodes) + sum(counts.values()))
    with_words = sum(map(bool, nodes.values()))
    return nodes, {**facts, **counts, "with_text": with_words, "without_text": count - with_words}


def _facts(
    table: Table, columns: Columns | NodeColumns, malformed: Malformed, settings: ImportSettings, well_formed: int
) -> Report:
    """What reading a table has shown.

    Raises:
        DataError: it has malformed rows and they are not to be skipped; or no others.
    """
    if malformed.count and not settings.skip_malformed:
        others = f"; {malformed.count} rows are malformed" if malformed.count > 1 else ""
        raise DataError(f"{malformed.first[0]}{others}; leave such rows out with skip_malformed (--skip-malformed)")
    if not well_formed:
        raise DataError(malformed.first[0] if malformed.count else f"{table.path}: no rows")
    return {
        "file": str(table.path),
        "columns": {role: name for role, name in asdict(columns).items() if name},
        "rows": well_formed + malformed.count,
        "malformed": malformed.count,
        "first_malformed": malformed.first,
        "over_several_lines": table.over_lines,
        "longest": f"{table.place(table.longest[1])}, {table.longest[0]} lines" if table.over_lines else None,
    }


def _select(
    rows: Rows, settings: ImportSettings, num_users: int, num_items: int, file: str
) -> tuple[Rows, np.ndarray, Report]:
    """(rows rated well enough, which of them are kept: one a pair, sorted by user and item; what was dropped)."""
    dropped: Report = {"below_rating": 0}
    if settings.min_rating is not None:
        enough = rows.rating >= settings.min_rating
        dropped["below_rating"] = int((~enough).sum())
        rows = rows.take(np.flatnonzero(enough))
        if not rows.place.size:
            raise DataError(f"{file}: no row is rated {settings.min_rating:g} or better")
    pairs = one_a_pair(rows.user.astype(np.int64) * num_items + rows.item, rows)
    dropped["duplicates"] = rows.place.shape[0] - pairs.shape[0]
    user, item = rows.user[pairs], rows.item[pairs]
    core = k_core(user, item, settings.k_core)
    if not core.size:
        raise DataError(f"{file}: the {settings.k_core}-core of its {pairs.shape[0]} interactions is empty (--k-core)")
    dropped["outside_core"] = {
        "interactions": pairs.shape[0] - core.shape[0],
        "users": np.unique(user).shape[0] - np.unique(user[core]).shape[0],
        "items": np.unique(item).shape[0] - np.unique(item[core]).shape[0],
    }
    return rows, pairs[core], dropped


def _split(kept: Kept, split: np.ndarray) -> tuple[dict[str, np.ndarray], Report]:
    """(the arrays of `interactions.npz`, the sizes of the splits)."""
    arrays = {"shape": np.array([kept.num_users, kept.num_items], dtype=np.int64)}
    sizes: Report = {}
    for number, name in enumerate(SPLITS):
        inside = split == number
        degrees = np.bincount(kept.user[inside], minlength=kept.num_users)
        arrays[f"{name}_indptr"] = np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64)
        arrays[f"{name}_indices"] = kept.item[inside].astype(np.int32)
        sizes[name] = int(inside.sum())
        if name != "train":
            sizes[f"users_without_{name}"] = int((degrees == 0).sum())
    trained = np.unique(arrays["train_indices"]).shape[0]
    return arrays, {**sizes, "items_without_train": kept.num_items - trained}
