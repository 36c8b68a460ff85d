"""What a service's reply to a call for embeddings holds, taken for nothing that it is not."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np


def read_embeddings(body: str, count: int, width: int | None) -> np.ndarray:
    """float32 [count, t]: the vectors in the JSON text of a reply, in the order of the texts that were sent.

    Args:
        width: what t must be; None: whatever it is, as long as all are alike.

    Raises:
        ValueError: no such reply, another number of vectors, an index that is missing, repeated or out of range, or
            vectors of another width. Whether the numbers are any good is left to the caller.
    """
    data = _data(body)
    if len(data) != count:
        raise ValueError(f"{len(data)} vectors for {count} texts")
    rows: list[np.ndarray | None] = [None] * count
    for entry in data:
        index = entry.get("index") if isinstance(entry, dict) else None
        if type(index) is not int or not 0 <= index < count or rows[index] is not None:
            raise ValueError(f"vectors for {count} texts, with {index!r} as the index of one, out of range or repeated")
        row = rows[index] = _vector(entry.get("embedding"))
        width = width or len(row)
        if len(row) != width:
            raise ValueError(f"a vector of {len(row)} numbers where others, or the dimensions asked for, are {width}")
    return np.stack(rows)  # type: ignore[arg-type]


def read_tokens(body: str) -> int | None:
    """What the reply says that the call is charged for; None where it does not."""
    try:
        tokens = json.loads(body)["usage"]["prompt_tokens"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return tokens if type(tokens) is int and tokens >= 0 else None


def _data(body: str) -> list[Any]:
    try:
        data = json.loads(body)["data"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a reply that holds no embeddings: {body[:80]!r}") from error
    if not isinstance(data, list):
        raise ValueError(f"a reply that holds no embeddings: {body[:80]!r}")
    return data


def _vector(given: Any) -> np.ndarray:
    """float32 from base64, or from a list of numbers, which some servers send whatever they are asked for."""
    try:
        if isinstance(given, str):
            row = np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4")
        elif isinstance(given, list) and {float, int}.issuperset(map(type, given)):
            with np.errstate(over="ignore"):
                row = np.array(given, dtype=np.float64).astype(np.float32)
        else:
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise ValueError("an embedding that is neither a list of numbers nor float32 in base64") from error
    if not len(row):
        raise ValueError("an embedding without numbers")
    return row
