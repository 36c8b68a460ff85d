"""Which column of a user's own table is which, by the names that such columns usually have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError
from .tabular import Table

LEFT_OUT = "-"  # in place of a column's name: there is to be none

# by letters and digits alone; the first group with a match decides, and two matches in one group do not
_USERS = (
    ("userid", "uid", "reviewerid", "customerid", "visitorid", "memberid", "accountid", "steamid"),
    ("user", "username", "reviewer", "customer", "reviewername"),
)
_ITEMS = (
    ("parentasin",),
    (
        "itemid", "iid", "asin", "productid", "businessid", "bookid", "movieid", "gameid", "appid", "placeid",
        "gmapid", "trackid", "songid", "artistid", "isbn", "articleid", "newsid", "videoid",
    ),
    ("item", "product", "business", "book", "movie", "game", "place", "track", "song", "artist", "article", "video"),
)  # fmt: skip
USUAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "user": _USERS,
    "item": _ITEMS,
    "rating": (("rating",), ("stars", "overall", "score"), ("reviewrating", "userrating", "bookrating")),
    "time": (
        ("timestamp", "unixreviewtime"),
        ("time", "datetime", "date", "reviewtime", "reviewdate", "createdat", "dateadded"),
    ),
    "review": (("reviewtext",), ("review", "reviewbody"), ("text", "comment", "content")),
    "user id": (*_USERS[:1], ("id", "key"), *_USERS[1:]),
    "item id": (*_ITEMS[:2], ("id", "key"), *_ITEMS[2:]),
    "title": (("title",), ("name", "itemname", "productname", "booktitle", "movietitle", "producttitle")),
    "text": (("description",), ("text",), ("summary", "overview", "synopsis", "plot", "about")),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The columns of a table of interactions or reviews, by name; None for what it has not."""

    user: str
    item: str
    rating: str | None = None
    time: str | None = None
    review: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that there are, the review last."""
        return [name for name in (self.user, self.item, self.rating, self.time, self.review) if name is not None]

    @property
    def short(self) -> list[str]:
        """Those whose values are words or numbers on one line."""
        return self.names[:-1] if self.review is not None else self.names


@dataclass(frozen=True)
class NodeColumns:
    """The columns of a table of users or items, by name."""

    id: str
    title: str | None
    text: str | None
    attributes: tuple[str, ...] = ()


def find_column(table: Table, role: str, given: str | None, *, required: bool = False) -> str | None:
    """The column of `table` for a role in `USUAL`: the one `given`, else the one usually called so, else None.

    Raises:
        DataError: the one given is not there, or is there twice; several could be it; none is and it is required.
    """
    option = role if role == "attributes" else f"{role.replace(' ', '_')}_column"
    if given == LEFT_OUT and not required:
        return None
    if given is not None:
        _require(table, given, f"{option} (--{option.replace('_', '-')})")
        return given
    names = {column: "".join(letter for letter in column.casefold() if letter.isalnum()) for column in table.columns}
    for group in USUAL[role]:
        found = [column for column, name in names.items() if name in group]
        if len(found) == 1:
            _require(table, found[0], option)
            return found[0]
        if found:
            both = " and ".join(map(repr, found))
            raise _undecided(table, f"{both} could each be the {role} column", option)
    if required:
        raise _undecided(table, f"no column has a usual name of a {role} column", option)
    return None


def _require(table: Table, name: str, what: str) -> None:
    times = table.columns.count(name)
    if times != 1:
        problem = f"has {times} columns {name!r}" if times else f"has no column {name!r}"
        raise DataError(f"{table.path}: {problem} for {what}; it has {_listed(table.columns)}")


def _undecided(table: Table, problem: str, option: str) -> DataError:
    return DataError(
        f"{table.path}: {problem}; name it with {option} (--{option.replace('_', '-')}), or if the file has no "
        f"header, say so (--no-header) and give its number; the columns are {_listed(table.columns)}"
    )


def _listed(columns: Sequence[str]) -> str:
    shown = [repr(column if len(column) <= 40 else column[:37] + "...") for column in columns[:30]]
    return ", ".join(shown) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "")
