"""Tables of a user's own: whatever the format, chunks of columns, and the rows that could not be read, by place."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError
from ..jsonl import opened, parse_line

CHUNK = 1 << 16
FORMATS = ("csv", "tsv", "jsonl", "parquet")
_SUFFIXES = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_SHOWN = 5
_KEYS_FROM = 1000  # lines of a JSON file whose keys are its columns

Chunk = tuple[Sequence[int], list[list[Any]]]


class Malformed:
    """Rows of one table that cannot be used: how many, and the first few with their reasons."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.count = 0
        self._first: list[tuple[int, str]] = []

    def add(self, place: int, reason: str) -> None:
        self.count += 1
        insort(self._first, (place, reason))
        del self._first[_SHOWN:]

    @property
    def first(self) -> list[str]:
        """The first of them in the file, as "file:line: reason"."""
        return [f"{self.table.place(place)}: {reason}" for place, reason in self._first]


class Table(Protocol):
    """A file of rows.

    Attributes:
        columns: their names; without a header, their numbers, counted from 1.
        over_lines: rows over several lines that the last pass met; `longest` is (lines, place) of the longest.
    """

    path: Path
    columns: list[str]
    over_lines: int
    longest: tuple[int, int]

    def place(self, number: int) -> str:
        """How a message names a row."""

    def chunks(self, names: Sequence[str], malformed: Malformed, one_line: Collection[str] = ()) -> Iterator[Chunk]:
        """(place of each row, values of each column in `names`), some ten thousand rows at a time.

        Values are strings, or for JSON and Parquet whatever they are there; None where there is none. Rows that cannot
        be read go to `malformed`, as do those with a line break in a column of `one_line`.
        """


def open_table(
    path: Path, format: str | None = None, *, delimiter: str | None = None, header: bool = True, quotes: bool = True
) -> Table:
    """The table in a file, by its format, else by its delimiter or its name's ending (.gz aside).

    Raises:
        DataError: no such file, no format that is known, or a file without columns; and what reading it raises.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; it is read more than once, so it cannot be a pipe")
    if format is None:
        suffixes = [suffix.lower() for suffix in path.suffixes]
        if suffixes[-1:] == [".gz"]:
            suffixes.pop()
        format = "csv" if delimiter else _SUFFIXES.get(suffixes[-1] if suffixes else "")
    if format not in FORMATS:
        raise DataError(f"{path}: its name does not tell its format; say which of {', '.join(FORMATS)} (--format)")
    if format in ("csv", "tsv"):
        from .delimited import DelimitedTable

        return DelimitedTable(path, delimiter or {"csv": ",", "tsv": "\t"}[format], quotes=quotes, header=header)
    if delimiter or not header:
        raise DataError(f"{path}: {format} has columns with names; leave out --delimiter and --no-header")
    if format == "jsonl":
        return JsonTable(path)
    from .parquet import ParquetTable

    return ParquetTable(path)


class JsonTable:
    """One JSON object a line; columns are the keys."""

    over_lines, longest = 0, (1, 0)

    def __init__(self, path: Path) -> None:
        self.path = path
        keys: dict[str, None] = {}
        with opened(path) as file:
            for _, line in zip(range(_KEYS_FROM), file, strict=False):
                try:
                    keys |= dict.fromkeys(parse_line(line))
                except ValueError:
                    continue  # reading the rows will name it
        self.columns = list(keys)
        if not keys:
            raise DataError(f"{path}: no JSON object on its first {_KEYS_FROM} lines")

    def place(self, number: int) -> str:
        return f"{self.path}:{number}"

    def chunks(self, names: Sequence[str], malformed: Malformed, one_line: Collection[str] = ()) -> Iterator[Chunk]:
        places: list[int] = []
        columns: list[list[Any]] = [[] for _ in names]
        columns_of_names = list(zip(columns, names, strict=True))
        with opened(self.path) as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                try:
                    get = parse_line(line).get
                except ValueError as error:
                    malformed.add(number, str(error))
                    continue
                places.append(number)
                for column, name in columns_of_names:
                    column.append(get(name))
                if len(places) == CHUNK:
                    yield places, columns
                    places, columns = [], [[] for _ in names]
                    columns_of_names = list(zip(columns, names, strict=True))
        yield places, columns
