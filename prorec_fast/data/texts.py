"""What users and items are called and what was written about and by them: the files beside a set's interactions."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DataError
from .jsonl import find_jsonl, read_jsonl


@dataclass(frozen=True, slots=True)
class NodeText:
    """What is known of one user or item.

    Attributes:
        key: the id that its own source gives it; the row number where the file has none.
        title, text: empty where there are none.
    """

    key: str
    title: str = ""
    text: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Review:
    """One user's words on one item, both by row; time is in seconds since 1970 where the set says so."""

    user: int
    item: int
    text: str
    rating: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class Texts:
    """All that a data folder says in words; rows that have no line in a file are absent from its dictionary.

    Attributes:
        reviews: of every split, at most one a (user, item) pair, in the file's order.
        fingerprint: hex digest of all of the above, in order; unknown fields and the files' form do not count.
    """

    items: dict[int, NodeText]
    users: dict[int, NodeText]
    reviews: list[Review]
    fingerprint: str


class _Malformed(ValueError):
    """What is wrong with a line, without its place."""


def load_texts(folder: str | os.PathLike[str], num_users: int, num_items: int) -> Texts:
    """Read `items`, `users` and `reviews` (`.jsonl` or `.jsonl.gz`) of a data folder, as far as they are there.

    items and users: {"id": row, "key": own id, "title": ..., "text": ..., "attributes": {name: string}}, all but id
    optional. reviews: {"user": row, "item": row, "text": ..., "rating": number, "time": number}, the last two optional.
    Optional fields may be null; unknown ones are ignored.

    Raises:
        DataError: naming file and line: no JSON object, a missing or ill-typed field, a row outside the data set, one
            given twice, an own id that two rows share.
    """
    folder = _checked_folder(folder)
    digest = hashlib.blake2b(digest_size=16)
    items = _read_nodes(folder, "items", num_items, digest)
    users = _read_nodes(folder, "users", num_users, digest)
    digest.update(b"reviews")
    reviews = _read_reviews(folder, num_users, num_items, digest)
    return Texts(items, users, reviews, digest.hexdigest())


def own_ids(folder: str | os.PathLike[str], num_users: int, num_items: int) -> tuple[list[str], list[str]]:
    """(users' own ids [num_users], items' own ids [num_items]) by row; the row number where a row has none.

    Raises:
        DataError: as `load_texts`, of the files of users and items.
    """
    users, items = load_nodes(folder, num_users, num_items)
    return (
        [users[row].key if row in users else str(row) for row in range(num_users)],
        [items[row].key if row in items else str(row) for row in range(num_items)],
    )


def load_nodes(
    folder: str | os.PathLike[str], num_users: int, num_items: int
) -> tuple[dict[int, NodeText], dict[int, NodeText]]:
    """(users, items) as `load_texts` has them, without reading the reviews.

    Raises:
        DataError: as `load_texts`, of the files of users and items.
    """
    folder, unused = _checked_folder(folder), hashlib.blake2b()
    users = _read_nodes(folder, "users", num_users, unused)
    return users, _read_nodes(folder, "items", num_items, unused)


def _checked_folder(folder: str | os.PathLike[str]) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return folder


def _for_each(folder: Path, name: str, take: Callable[[dict[str, Any]], None]) -> None:
    """`take` each object of a file, which may be absent; what it finds malformed is named by file and line."""
    path = find_jsonl(folder, name)
    if path is None:
        return
    for number, line in read_jsonl(path):
        try:
            take(line)
        except _Malformed as error:
            raise DataError(f"{path}:{number}: {error}") from error


def _read_nodes(folder: Path, name: str, count: int, digest: Any) -> dict[int, NodeText]:
    nodes: dict[int, NodeText] = {}
    owners: dict[str, int] = {}

    def take(line: dict[str, Any]) -> None:
        row = _row(line, "id", count, name)
        if row in nodes:
            raise _Malformed(f"id {row} is here a second time")
        node = NodeText(_key(line, row), _string(line, "title"), _string(line, "text"), _attributes(line))
        if owners.setdefault(node.key, row) != row:
            raise _Malformed(f"key {node.key!r} is that of id {owners[node.key]} too")
        parts = (node.key, node.title, node.text, *(part for pair in node.attributes.items() for part in pair))
        digest.update(f"{row}[{''.join([f'{len(part)}:{part}' for part in parts])}]".encode())
        nodes[row] = node

    digest.update(name.encode())
    _for_each(folder, name, take)
    for row in range(count):
        if row not in nodes and str(row) in owners:
            other = owners[str(row)]
            raise DataError(
                f"{folder}: of the {name}, id {other} has the key '{row}', and id {row} has none of its own"
            )
    return nodes


def _read_reviews(folder: Path, num_users: int, num_items: int, digest: Any) -> list[Review]:
    reviews: list[Review] = []
    pairs: set[int] = set()

    def take(line: dict[str, Any]) -> None:
        user, item = _row(line, "user", num_users, "users"), _row(line, "item", num_items, "items")
        text = line.get("text")
        if type(text) is not str:
            raise _Malformed(f"'text' must be a string, got {_shown(text)}" if "text" in line else "no 'text'")
        pair = user * num_items + item
        if pair in pairs:
            raise _Malformed(f"a second review of item {item} by user {user}")
        rating, time = _number(line, "rating"), _number(line, "time")
        digest.update(f"{pair} {rating} {time} {len(text)}:{text}".encode())
        pairs.add(pair)
        reviews.append(Review(user, item, text, rating, time))

    digest.update(b"reviews")
    _for_each(folder, "reviews", take)
    return reviews


def _row(line: dict[str, Any], name: str, count: int, kind: str) -> int:
    row = line.get(name)
    if type(row) is not int:
        raise _Malformed(f"'{name}' must be an integer, got {_shown(row)}" if name in line else f"no '{name}'")
    if not 0 <= row < count:
        raise _Malformed(f"'{name}' {row} is outside [0, {count}), the rows of the {kind}")
    return row


def _string(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    if value is None:
        return ""
    if type(value) is not str:
        raise _Malformed(f"'{name}' must be a string, got {_shown(value)}")
    return value


def _key(line: dict[str, Any], row: int) -> str:
    key = line.get("key")
    if key is None or type(key) is int:
        return str(row if key is None else key)
    if type(key) is not str or not key:
        raise _Malformed(f"'key' must be a string that is not empty, got {_shown(key)}")
    return key


def _attributes(line: dict[str, Any]) -> dict[str, str]:
    attributes = line.get("attributes")
    if attributes is None:
        return {}
    if type(attributes) is not dict:
        raise _Malformed(f"'attributes' must be an object of strings, got {_shown(attributes)}")
    for name, value in attributes.items():
        if type(value) is not str:
            raise _Malformed(f"attribute '{name}' must be a string, got {_shown(value)}")
    return attributes


def _number(line: dict[str, Any], name: str) -> float | None:
    value = line.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise _Malformed(f"'{name}' must be a finite number, got {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
