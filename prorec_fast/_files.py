"""Files that are there whole or not at all, and lines of tables in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old file or the new one."""
    with replaced_atomically(path, "wb") as file:
        file.write(content)


@contextmanager
def replaced_atomically(path: Path, mode: str = "w") -> Iterator[Any]:
    """A file to write to, which becomes `path` when the block ends, and is forgotten where it does not."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(scratch, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def tsv_line(cells: Iterable[object]) -> str:
    """Tab-separated cells and a line end. An id that would break a line or a column is quoted as JSON."""
    texts = map(str, cells)
    quoted = (json.dumps(t, ensure_ascii=False) if any(mark in t for mark in '\t\n\r"') else t for t in texts)
    return "\t".join(quoted) + "\n"
