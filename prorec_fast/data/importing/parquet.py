"""Parquet files, through pyarrow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError
from .tabular import CHUNK, Chunk, Malformed

_NOT_UTF8 = object()


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f'{path}: Parquet needs pyarrow: pip install "prorec-fast[parquet]"') from error
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (OSError, OverflowError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


class ParquetTable:
    """A Parquet file; rows are counted from 1."""

    over_lines, longest = 0, (1, 0)

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(path) as file:
            self.columns = list(file.schema_arrow.names)

    def place(self, number: int) -> str:
        return f"{self.path}: row {number}"

    def chunks(self, names: Sequence[str], malformed: Malformed, one_line: Collection[str] = ()) -> Iterator[Chunk]:
        start = 1
        with _reading(self.path) as file:
            for batch in file.iter_batches(batch_size=CHUNK, columns=list(dict.fromkeys(names))):
                places: Sequence[int] = range(start, start + batch.num_rows)
                columns = [_values(batch.column(name)) for name in names]
                start += batch.num_rows
                bad = {at for column in columns for at, value in enumerate(column) if value is _NOT_UTF8}
                if bad:
                    for at in bad:
                        malformed.add(places[at], "not UTF-8")
                    columns = [[value for at, value in enumerate(column) if at not in bad] for column in columns]
                    places = [place for at, place in enumerate(places) if at not in bad]
                yield places, columns


def _values(column: Any) -> list[Any]:
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):  # a datetime holds no nanoseconds
        column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_text(value) for value in column.cast(pyarrow.binary()).to_pylist()]


def _text(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return _NOT_UTF8
