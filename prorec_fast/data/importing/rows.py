"""Interactions as arrays: read from a table, and merged where a user has met an item more than once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .columns import Columns
from .tabular import Malformed, Table
from .values import Ids, Problems, as_ids, as_numbers, as_text, as_times

OnRows = Callable[[Table, int], None]


class Rows(NamedTuple):
    """Rows of a table, all arrays [n]; an absent number is NaN, an unknown id -1."""

    user: np.ndarray  # int32, numbers of the ids
    item: np.ndarray  # int32
    rating: np.ndarray  # float64
    time: np.ndarray  # float64
    place: np.ndarray  # int64, of the row in its table
    written: np.ndarray  # bool, whether it has a review

    def take(self, which: np.ndarray) -> Rows:
        return Rows(*(array[which] for array in self))


def read_rows(
    table: Table,
    columns: Columns,
    malformed: Malformed,
    user_codes: Callable[[list[str]], np.ndarray],
    item_codes: Callable[[list[str]], np.ndarray],
    on_rows: OnRows,
    *,
    needs_rating: bool = False,
    needs_time: bool = False,
) -> Rows:
    """Every row that is well formed; `user_codes` and `item_codes` number the ids (see `Ids`)."""
    chunks: list[Rows] = []
    for places, values in table.chunks(columns.names, malformed, columns.short):
        given = iter(values)
        count = len(places)
        users, problems = as_ids(next(given), "user")
        items, others = as_ids(next(given), "item")
        nothing = np.full(count, np.nan)
        rating, time = nothing, nothing
        if columns.rating is not None:
            rating, wrong = as_numbers(next(given), "rating", required=needs_rating)
            others |= wrong
        if columns.time is not None:
            time, wrong = as_times(next(given), "time", required=needs_time)
            others |= wrong
        written = np.zeros(count, dtype=bool)
        if columns.review is not None:
            written = np.fromiter((bool(as_text(value).strip()) for value in next(given)), dtype=bool, count=count)
        place = np.asarray(places, dtype=np.int64)
        good = _without(others | problems, place, malformed)
        if good is not None:
            users, items = [users[at] for at in good], [items[at] for at in good]
            rating, time, place, written = rating[good], time[good], place[good], written[good]
        chunks.append(Rows(user_codes(users), item_codes(items), rating, time, place, written))
        on_rows(table, count)
    return Rows(*map(np.concatenate, zip(*chunks, strict=True)))


def _without(problems: Problems, place: np.ndarray, malformed: Malformed) -> np.ndarray | None:
    """Positions of the rows without a problem, None for all; the others are noted."""
    if not problems:
        return None
    for at, reason in problems.items():
        malformed.add(int(place[at]), reason)
    return np.delete(np.arange(place.shape[0]), list(problems))


def one_a_pair(pair: np.ndarray, rows: Rows) -> np.ndarray:
    """Indices of one row of each pair, by ascending pair: the latest, of these the best rated, of these the last.

    Args:
        pair: int64 [n], the number of each row's (user, item).
    """
    order = np.argsort(pair, kind="stable")
    ordered = pair[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((np.nan_to_num(rows.rating, nan=-np.inf), np.nan_to_num(rows.time, nan=-np.inf), pair))
        ordered = pair[order]
    return order[np.append(ordered[1:] != ordered[:-1], True)] if order.size else order


class Kept:
    """The interactions that an import keeps, by row number, and the way there from the users' own ids.

    Attributes:
        user, item: int64 [n], rows, sorted by user and then item.
        user_keys, item_keys: own ids by row, in the order in which they first stand in the file.
    """

    def __init__(self, users: Ids, items: Ids, user_codes: np.ndarray, item_codes: np.ndarray) -> None:
        self._user_rows, self.user_keys = _renumbered(users, user_codes)
        self._item_rows, self.item_keys = _renumbered(items, item_codes)
        self.user, self.item = self._user_rows[user_codes], self._item_rows[item_codes]
        self._pairs = self.user * self.num_items + self.item

    @property
    def num_users(self) -> int:
        return len(self.user_keys)

    @property
    def num_items(self) -> int:
        return len(self.item_keys)

    def user_rows(self, codes: np.ndarray) -> np.ndarray:
        """int64: the rows of users by code; -1 for who was not kept, or has the code -1."""
        return self._user_rows[codes]

    def item_rows(self, codes: np.ndarray) -> np.ndarray:
        return self._item_rows[codes]

    def pairs(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """int64: the index among the interactions of each (user row, item row); -1 where there is none."""
        wanted = user * self.num_items + item  # below 0 for no user
        at = np.searchsorted(self._pairs, wanted).clip(max=self._pairs.shape[0] - 1)
        return np.where((self._pairs[at] == wanted) & (item >= 0), at, -1)


def _renumbered(ids: Ids, codes: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(row of every code, and a -1 at the end for the code -1; the ids by row)."""
    used = np.zeros(len(ids) + 1, dtype=bool)
    used[codes] = True
    rows = np.where(used, used.cumsum() - 1, -1)
    return rows, [key for key, kept in zip(ids, used, strict=False) if kept]
