"""Files of one JSON object a line, plain or gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from prorec_fast._files import replaced_atomically

from .errors import DataError


def find_jsonl(folder: Path, name: str) -> Path | None:
    """`folder/name.jsonl` or `folder/name.jsonl.gz`, or None where neither is there.

    Raises:
        DataError: both are there, and nothing says which one counts.
    """
    found = [path for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if path.is_file()]
    if len(found) == 2:
        raise DataError(f"{folder}: holds both {found[0].name} and {found[1].name}; remove one of them")
    return found[0] if found else None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, counted from 1; the object on it) of every line that is not blank, as they are read.

    Raises:
        DataError: naming file and line of what is no JSON object in UTF-8, or the file that cannot be read.
    """
    number = 0
    try:
        # gzip's own reader hands out lines at half the speed
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as raw, BufferedReader(raw) as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                value = json.loads(line.decode())
                if not isinstance(value, dict):
                    raise DataError(f"{path}:{number}: want a JSON object, got {line.decode().strip()[:40]}")
                yield number, value
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise DataError(f"{path}:{number}: not JSON (nested too deeply)") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason})") from error


def write_jsonl(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` (`.jsonl.gz`, or plain) by one line an object, in one step; equal objects make equal bytes."""
    with replaced_atomically(path, "wb") as raw:
        packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        for value in objects:
            packed.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        if packed is not raw:
            packed.close()
