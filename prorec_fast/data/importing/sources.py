"""The files of an import, opened, and which of their columns is which: all that can be wrong before rows are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from .columns import LEFT_OUT, Columns, NodeColumns, find_column
from .settings import ImportSettings
from .tabular import Table, open_table

File = str | os.PathLike[str]


class Sources(NamedTuple):
    """(table, its columns) of each file that was given; `reviews` is that of the interactions if they have some."""

    interactions: tuple[Table, Columns]
    users: tuple[Table, NodeColumns] | None
    items: tuple[Table, NodeColumns] | None
    reviews: tuple[Table, Columns] | None


def open_sources(
    settings: ImportSettings, interactions: File, *, users: File | None, items: File | None, reviews: File | None
) -> Sources:
    """Open every file and find its columns.

    Raises:
        DataError: a file that is not there or lacks a column; a setting that would have no effect.
    """
    table = open_table(
        Path(interactions),
        settings.format,
        delimiter=settings.delimiter,
        header=settings.header,
        quotes=settings.quotes,
    )
    columns = _interaction_columns(table, settings, with_reviews=reviews is None)
    own_reviews = (table, columns) if columns.review is not None else None
    sources = Sources(
        (table, columns),
        None if users is None else _open_nodes(Path(users), "user", settings, columns.user),
        None if items is None else _open_nodes(Path(items), "item", settings, columns.item),
        own_reviews if reviews is None else _open_reviews(Path(reviews), settings, columns),
    )
    _require_effect(settings, [pair[0] for pair in (sources.users, sources.items) if pair is not None])
    return sources


def _interaction_columns(table: Table, settings: ImportSettings, *, with_reviews: bool) -> Columns:
    def find(role: str, *, required: bool = False) -> str | None:
        given = getattr(settings, f"{role}_column")
        if given is None and not settings.header and not required:
            return None  # a number is no name to go by
        return find_column(table, role, given, required=required)

    columns = Columns(
        user=find("user", required=True),  # type: ignore[arg-type]
        item=find("item", required=True),  # type: ignore[arg-type]
        rating=find("rating", required=settings.min_rating is not None),
        time=find("time", required=settings.split == "time"),
        review=find("review") if with_reviews else None,
    )
    if len(set(columns.names)) != len(columns.names):
        raise DataError(f"{table.path}: one column cannot be two things, of {', '.join(map(repr, columns.names))}")
    return columns


def _open_reviews(path: Path, settings: ImportSettings, like: Columns) -> tuple[Table, Columns]:
    """Its columns may be called as those of the interactions are, or as usual."""
    table = open_table(path, quotes=settings.quotes)

    def find(role: str, *, required: bool = False) -> str | None:
        names = (getattr(settings, f"{role}_column"), getattr(like, role))
        given = next((name for name in names if name == LEFT_OUT or name in table.columns), None)
        return find_column(table, role, given, required=required)

    review = find_column(table, "review", settings.review_column, required=True)
    return table, Columns(
        user=find("user", required=True),  # type: ignore[arg-type]
        item=find("item", required=True),  # type: ignore[arg-type]
        rating=find("rating"),
        time=find("time"),
        review=review,
    )


def _open_nodes(path: Path, role: str, settings: ImportSettings, id_in_interactions: str) -> tuple[Table, NodeColumns]:
    table = open_table(path, quotes=settings.quotes)

    def find(role: str, given: str | None) -> str | None:
        return find_column(table, role, given if given in (*table.columns, LEFT_OUT) else None)

    given = getattr(settings, f"{role}_id_column")
    if given is None and id_in_interactions in table.columns:
        given = id_in_interactions
    return table, NodeColumns(
        id=find_column(table, f"{role} id", given, required=True),  # type: ignore[arg-type]
        title=find("title", settings.title_column) if role == "item" else None,
        text=find("text", settings.text_column),
        attributes=tuple(
            find_column(table, "attributes", name, required=True)  # type: ignore[misc]
            for name in settings.attributes
            if name in table.columns
        ),
    )


def _require_effect(settings: ImportSettings, tables: list[Table]) -> None:
    wanted = [("attributes", "--attributes", name) for name in settings.attributes]
    wanted += [("title_column", "--title-column", settings.title_column)]
    wanted += [("text_column", "--text-column", settings.text_column)]
    for setting, option, name in wanted:
        if name in (None, LEFT_OUT) or any(name in table.columns for table in tables):
            continue
        places = " and ".join(str(table.path) for table in tables) or "tables of items or users: none are given"
        raise DataError(f"{setting} ({option}): no column {name!r} in {places}")
