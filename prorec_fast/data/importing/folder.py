"""The folder that an import leaves: there whole, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from ..npz import INTERACTIONS

REPORT = "import.json"
WRITTEN = (INTERACTIONS, "items.jsonl.gz", "users.jsonl.gz", "reviews.jsonl.gz", REPORT)


def check_target(out: Path, *, force: bool) -> None:
    """Refuse what would be lost by putting a new folder at `out`.

    Raises:
        DataError: it is a file; it has content and `force` is false; it has content that no import has written; it
            cannot be made, as far as can be told before.
    """
    if not out.exists():
        place = next(parent for parent in out.absolute().parents if parent.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise DataError(f"{out}: cannot be made in {place}; choose another place")
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; give a folder")
    content = sorted(path.name for path in out.iterdir())
    others = [name for name in content if name not in WRITTEN]
    if others:
        raise DataError(f"{out}: holds {others[0]}, which no import wrote; choose another folder or move that away")
    if content and not force:
        raise DataError(f"{out}: already holds data; replace it with force (--force), or choose another folder")


@contextmanager
def new_folder(out: Path, *, force: bool) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends well, and vanishes when it does not.

    With `force` the old folder stays until the new one is complete. Between the two renames a crash leaves it beside
    `out`, under a hidden name.
    """
    out = out.resolve()
    check_target(out, force=force)
    scratch, old = (out.with_name(f".{out.name}.{secrets.token_hex(4)}.{kind}") for kind in ("new", "old"))
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror}); choose another place") from error
    try:
        yield scratch
        for path in scratch.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        check_target(out, force=force)
        if not out.exists():
            os.rename(scratch, out)
            return
        os.rename(out, old)
        try:
            os.rename(scratch, out)
        except OSError:
            os.rename(old, out)
            raise
        shutil.rmtree(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
