"""CSV and its kin. A quote that is never closed costs its own line, not the rest of the file."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from io import BufferedReader, BytesIO
from operator import itemgetter
from pathlib import Path

from ..errors import DataError
from ..jsonl import opened
from .tabular import CHUNK, Chunk, Malformed

LONGEST = 1000  # lines in one record; where more follow a quote, it was never closed
_BLOCK = 1 << 16  # bytes that are tried at once; a record over several lines makes its block a slow one
_REASONS = {
    "unexpected end of data": "a quote is never closed",
    "expected after": "a quote is closed before the field ends",
    "new-line character": "a carriage return outside quotes",
}


class DelimitedTable:
    """Records of fields between delimiters, in UTF-8; a quoted field may hold delimiters, line breaks and "" for ".

    A delimiter of several characters rules out quoting.
    """

    def __init__(self, path: Path, delimiter: str, *, quotes: bool = True, header: bool = True) -> None:
        self.path, self.delimiter, self.header = path, delimiter, header
        self.quotes = quotes and len(delimiter) == 1
        self.over_lines, self.longest = 0, (1, 0)
        problems: list[tuple[int, str]] = []
        for places, rows in self._records(lambda number, reason: problems.append((number, reason))):
            if problems and (not rows or problems[0][0] < places[0]):
                raise DataError(f"{self.place(problems[0][0])}: {problems[0][1]}")
            if rows:
                first = rows[0]
                break
        else:
            raise DataError(f"{path}: is empty")
        self.columns = first if header else [str(number) for number in range(1, len(first) + 1)]

    def place(self, number: int) -> str:
        return f"{self.path}:{number}"

    def chunks(self, names: Sequence[str], malformed: Malformed, one_line: Collection[str] = ()) -> Iterator[Chunk]:
        width, at = len(self.columns), [self.columns.index(name) for name in names]
        short = [self.columns.index(name) for name in one_line]

        def problem(row: list[str]) -> str | None:
            if len(row) != width:
                return f"want {width} columns, got {len(row)}"
            return next((f"a line break in column {self.columns[at]}" for at in short if "\n" in row[at]), None)

        to_skip = 1 if self.header else 0
        gathered: list[int] = []
        columns: list[list[str]] = [[] for _ in names]
        for places, rows in self._records(malformed.add, problem):
            if to_skip and rows:
                places, rows, to_skip = places[1:], rows[1:], 0
            if set(map(len, rows)) - {width}:
                for place, row in zip(places, rows, strict=True):
                    if len(row) != width:
                        malformed.add(place, f"want {width} columns, got {len(row)}")
                places = [place for place, row in zip(places, rows, strict=True) if len(row) == width]
                rows = [row for row in rows if len(row) == width]
            gathered.extend(places)
            for column, position in zip(columns, at, strict=True):
                column.extend(map(itemgetter(position), rows))
            if len(gathered) >= CHUNK:
                yield gathered, columns
                gathered, columns = [], [[] for _ in names]
        yield gathered, columns

    def _records(
        self,
        report: Callable[[int, str], None],
        problem: Callable[[list[str]], str | None] = lambda row: None,
    ) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
        """(first lines, fields) of the records of a block, some thousand; blank lines are passed over.

        `problem` judges the records over several lines. One that is refused is reported by its first line. Where it
        has another number of fields than the others, or cannot be parsed, a quote was never closed: the rest of its
        lines are read again, as records of their own.
        """
        self.over_lines, self.longest = 0, (1, 0)
        number = 1
        with opened(self.path) as file:
            while block := file.read(_BLOCK) + file.readline():
                rows = self._one_line_each(block)
                if rows is not None:
                    yield range(number, number + len(rows)), rows
                    number += len(rows)
                else:
                    places, rows, number = self._with_care(block, file, number, report, problem)
                    yield places, rows

    def _one_line_each(self, block: bytes) -> list[list[str]] | None:
        """The records of whole lines; None where some are blank, or over several lines, or cannot be parsed."""
        try:
            lines = block.decode().split("\n")
            if not lines[-1]:
                lines.pop()
            rows = list(self._parsed(lines))
        except (csv.Error, UnicodeDecodeError):
            return None
        return rows if len(rows) == len(lines) and all(rows) else None

    def _with_care(
        self,
        block: bytes,
        file: BufferedReader,
        number: int,
        report: Callable[[int, str], None],
        problem: Callable[[list[str]], str | None],
    ) -> tuple[list[int], list[list[str]], int]:
        """(first lines, fields) of the records that start in `block`, whose first line is `number`; the next line."""
        places: list[int] = []
        rows: list[list[str]] = []
        again = deque(BytesIO(block))
        held: list[bytes] = []  # the lines of the record being read

        def lines() -> Iterator[str]:
            while line := again.popleft() if again else file.readline():
                held.append(line)
                if len(held) > LONGEST:
                    raise csv.Error(f"more than {LONGEST}")
                yield line.decode()

        while again:
            try:
                for row in self._parsed(lines()):
                    reason = problem(row) if len(held) > 1 else None
                    if reason is not None and len(row) != len(self.columns):
                        raise csv.Error(reason)
                    if reason is not None:  # a whole record: its lines are no records of their own
                        report(number, _several(held) + reason)
                        row = []
                    elif len(held) > 1:
                        self.over_lines += 1
                        self.longest = max(self.longest, (len(held), number))
                    if row:
                        places.append(number)
                        rows.append(row)
                    number += len(held)
                    held.clear()
                    if not again:
                        break
            except (csv.Error, UnicodeDecodeError) as error:
                report(number, _several(held) + _reason(error))
                again.extendleft(reversed(held[1:]))
                held.clear()
                number += 1
        return places, rows, number

    def _parsed(self, lines: Iterable[str]) -> Iterator[list[str]]:
        if self.quotes:
            return csv.reader(lines, delimiter=self.delimiter, strict=True)
        texts = (line.rstrip("\r\n") for line in lines)
        return (text.split(self.delimiter) if text else [] for text in texts)


def _several(held: Sequence[bytes]) -> str:
    return f"a quote opened here takes in {len(held)} lines: " if len(held) > 1 else ""


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start + 1} of a line)"
    return next((reason for part, reason in _REASONS.items() if part in str(error)), str(error))
