"""Files of one JSON object a line, plain or gzipped."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prorec_fast._files import replaced_atomically

from .errors import DataError

BOM = b"\xef\xbb\xbf"


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A plain or gzipped file as bytes, after the mark that some programs put before UTF-8.

    Raises:
        DataError: it cannot be opened, or while it is open, read or decompressed.
    """
    try:
        # gzip's own reader hands out lines at half the speed
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as raw, io.BufferedReader(raw) as file:
            if file.peek(len(BOM)).startswith(BOM):
                file.read(len(BOM))
            yield file
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason})") from error


def find_jsonl(folder: Path, name: str) -> Path | None:
    """`folder/name.jsonl` or `folder/name.jsonl.gz`, or None where neither is there.

    Raises:
        DataError: both are there, and nothing says which one counts.
    """
    found = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.is_file()]
    if len(found) == 2:
        raise DataError(f"{folder}: holds both {found[0].name} and {found[1].name}; remove one of them")
    return found[0] if found else None


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        ValueError: it is none, or not in UTF-8, or has a string that UTF-8 cannot hold; the message is the reason.
    """
    try:
        value = json.loads(line.decode())
        if b"\\ud" in line or b"\\uD" in line:  # perhaps half of a surrogate pair, which no file or service would take
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    except UnicodeEncodeError as error:
        raise ValueError("a string with half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON (nested too deeply)") from error
    if not isinstance(value, dict):
        raise ValueError(f"want a JSON object, got {line.decode().strip()[:40]}")
    return value


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, counted from 1; the object on it) of every line that is not blank, as they are read.

    Raises:
        DataError: naming file and line of what is no JSON object in UTF-8, or the file that cannot be read.
    """
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                try:
                    value = parse_line(line)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: {error}") from error
                yield number, value


def write_jsonl(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` (`.jsonl.gz`, or plain) by one line an object, in one step; equal objects make equal bytes."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with replaced_atomically(path, "wb") as raw:
        packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        for value in objects:
            packed.write(encode(value).encode() + b"\n")
        if packed is not raw:
            packed.close()
