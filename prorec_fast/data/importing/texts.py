"""The words of an import: titles, descriptions and attributes of users and items, and reviews."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..jsonl import write_jsonl
from .columns import Columns, NodeColumns
from .rows import Kept, OnRows, Rows, one_a_pair
from .tabular import Malformed, Table
from .values import as_ids, as_text


def read_nodes(
    table: Table,
    columns: NodeColumns,
    malformed: Malformed,
    rows_of: Callable[[list[str]], np.ndarray],
    on_rows: OnRows,
) -> tuple[dict[int, dict[str, Any]], dict[str, int]]:
    """({row: its fields that are not empty}, counts of the table's lines); of lines with one id the first counts.

    Args:
        rows_of: from own ids to rows, -1 for those of no kept interaction.
    """
    fields = [name for name in (columns.title, columns.text) if name is not None] + list(columns.attributes)
    nodes: dict[int, dict[str, Any]] = {}
    seen: set[str] = set()
    counts = {"without_interactions": 0, "repeated": 0}
    for places, (own, *values) in table.chunks([columns.id, *fields], malformed, [columns.id]):
        ids, problems = as_ids(own, "id")
        on_rows(table, len(places))
        for at, (key, row) in enumerate(zip(ids, rows_of(ids).tolist(), strict=True)):
            if at in problems:
                malformed.add(places[at], problems[at])
            elif key in seen:
                counts["repeated"] += 1
            else:
                seen.add(key)
                counts["without_interactions"] += row < 0
                if row >= 0:
                    nodes[row] = _fields(columns, dict(zip(fields, (column[at] for column in values), strict=True)))
    return nodes, counts


def _fields(columns: NodeColumns, values: dict[str, Any]) -> dict[str, Any]:
    attributes = {name: as_text(values[name]) for name in columns.attributes}
    fields = {
        "title": as_text(values.get(columns.title)),
        "text": as_text(values.get(columns.text), "\n"),
        "attributes": {name: text for name, text in attributes.items() if text},
    }
    return {name: value for name, value in fields.items() if value}


def write_nodes(path: Path, keys: list[str], nodes: dict[int, dict[str, Any]]) -> None:
    """A line for every row, with its own id."""
    write_jsonl(path, ({"id": row, "key": key, **nodes.get(row, {})} for row, key in enumerate(keys)))


class Reviews:
    """The one review of each kept interaction that has any, chosen by place and written in a second pass.

    Texts may be larger than memory; places are not. The review is the latest, of these the best rated.
    """

    def __init__(self, table: Table, columns: Columns, rows: Rows, kept: Kept) -> None:
        self.table, self.columns = table, columns
        pair = kept.pairs(kept.user_rows(rows.user), kept.item_rows(rows.item))
        known, written = pair >= 0, rows.written
        which = np.flatnonzero(known & written)
        rows, pair = rows.take(which), pair[which]
        chosen = one_a_pair(pair, rows)
        in_file = chosen[np.argsort(rows.place[chosen])]
        self.rows, self._pair, self._kept = rows.take(in_file), pair[in_file], kept
        self.counts = {
            "without_interaction": int((~known & written).sum()),
            "empty": int((~written).sum()),
            "duplicates": which.shape[0] - in_file.shape[0],
            "kept": in_file.shape[0],
        }

    def write(self, path: Path) -> None:
        """Raises DataError if the table is no longer what it was."""
        written = 0

        def lines() -> Iterator[dict[str, Any]]:
            nonlocal written
            for line in self._lines():
                written += 1
                yield line

        write_jsonl(path, lines())
        if written != self.counts["kept"]:
            raise DataError(f"{self.table.path}: has changed while it was read")

    def _lines(self) -> Iterator[dict[str, Any]]:
        rows = self.rows
        if not rows.place.size:
            return
        # the columns of the first pass, so that the same lines are records
        for places, values in self.table.chunks(self.columns.names, Malformed(self.table), self.columns.short):
            place = np.asarray(places, dtype=np.int64)
            at = np.searchsorted(rows.place, place).clip(max=rows.place.shape[0] - 1)
            for here in np.flatnonzero(rows.place[at] == place).tolist():
                text, row = as_text(values[-1][here], "\n"), at[here]
                if not text.strip():  # another file by now, which `write` will notice
                    return
                pair = self._pair[row]
                line: dict[str, Any] = {"user": int(self._kept.user[pair]), "item": int(self._kept.item[pair])}
                line["text"] = text
                for name, number in (("rating", float(rows.rating[row])), ("time", float(rows.time[row]))):
                    if number == number:
                        line[name] = int(number) if number.is_integer() and abs(number) < 2**53 else number
                yield line
