"""Keys of what is stored."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> str:
    """A hash of plain values, equal for equal ones."""
    plain = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
