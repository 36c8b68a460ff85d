"""Tables as people keep them, in every format that an import reads."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest

USERS = ["007", "7", "07", "ünï 小😀", 'quo"te', "com,ma", " space ", "tab\tbed", "None", "nan", "1e3", "-", "'", "#x"]
ITEMS = ["B0", "b0", "0", "00", "\\n", "a;b", '"', "é", "e\u0301", "{}", "null", "x" * 300]
HEADER = ("user_id", "item_id", "rating", "timestamp", "review")


def interactions(count: int = 400) -> list[tuple]:
    """Rows with repeats, half ratings, equal times and texts on several lines."""
    rng = np.random.default_rng(0)
    rows = []
    for at in range(count):
        user, item = USERS[rng.zipf(1.3) % len(USERS)], ITEMS[rng.zipf(1.3) % len(ITEMS)]
        text = rng.choice(["", f"text {at}", f'two\nlines, "{at}"', "   "])
        rows.append((user, item, float(rng.integers(1, 11)) / 2, int(rng.integers(1000, 1050)), str(text)))
    return rows


def write(path: Path, rows: list[tuple], header: tuple = HEADER) -> Path:
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pyarrow.table(columns), path, row_group_size=37)
        return path
    text = io.StringIO()
    if kind == "jsonl":
        text.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    else:
        csv.writer(text, delimiter="," if kind == "csv" else "\t").writerows([header, *rows])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
