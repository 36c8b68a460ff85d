"""The words beside a data set's interactions: what is read, what it hashes to, and what is refused by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from prorec_fast.data import DataError, NodeText, Review, load_texts, own_ids

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ITEMS = [
    {"id": 2, "key": "B00", "title": "Ænima", "text": "a\nrecord", "attributes": {"year": "1996"}},
    {"id": 0, "key": "0012", "text": "zero"},
]
USERS = [{"id": 1, "key": 'o"Hara, 小', "unknown": [1, {}]}, {"id": 0, "key": 7, "title": None}]
REVIEWS = [
    {"user": 1, "item": 2, "text": "loud", "rating": 4, "time": 1.5e9},
    {"user": 1, "item": 0, "text": ""},
    {"user": 0, "item": 2, "text": "x", "rating": None},
]


def write(folder: Path, *, gz: bool = False, **files: list) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        content = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
        path = folder / f"{name}.jsonl{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content) if gz else content)
    return folder


@pytest.mark.parametrize("gz", [False, True])
def test_texts_read_what_was_written(tmp_path, gz):
    texts = load_texts(write(tmp_path / "d", gz=gz, items=ITEMS, users=USERS, reviews=REVIEWS), 3, 4)
    assert texts.items == {
        2: NodeText("B00", "Ænima", "a\nrecord", {"year": "1996"}),
        0: NodeText("0012", "", "zero", {}),
    }
    assert texts.users == {1: NodeText('o"Hara, 小'), 0: NodeText("7")}
    assert texts.reviews == [Review(1, 2, "loud", 4.0, 1.5e9), Review(1, 0, ""), Review(0, 2, "x")]
    assert own_ids(tmp_path / "d", 3, 4) == (["7", 'o"Hara, 小', "2"], ["0012", "1", "B00", "3"])


def test_texts_of_a_folder_without_any(tmp_path):
    texts = load_texts(tmp_path, 2, 2)
    assert (texts.items, texts.users, texts.reviews) == ({}, {}, [])
    assert own_ids(tmp_path, 2, 1) == (["0", "1"], ["0"])


def test_texts_fingerprint_is_of_the_content(tmp_path):
    def of(name, **files):
        return load_texts(write(tmp_path / name, **files), 3, 4).fingerprint

    base = of("a", items=ITEMS, users=USERS, reviews=REVIEWS)
    assert base == of("b", gz=True, items=ITEMS, users=USERS, reviews=["", *REVIEWS, " "])
    assert base == of("c", items=[{**ITEMS[0], "new": 1}, ITEMS[1]], users=USERS, reviews=REVIEWS)
    changed = [
        {"items": [{**ITEMS[0], field: value}, ITEMS[1]]}
        for field, value in {"id": 1, "key": "B", "title": "", "text": "", "attributes": {"year": "1997"}}.items()
    ]
    changed += [
        {"reviews": [{**REVIEWS[0], field: value}, *REVIEWS[1:]]}
        for field, value in {"user": 2, "item": 3, "text": "l", "rating": 5, "time": None}.items()
    ]
    changed += [
        {"users": USERS[:1]},
        {"items": USERS, "users": ITEMS},
        # the same letters, differently divided
        {"items": [{**ITEMS[0], "title": "Ænim", "text": "aa\nrecord"}, ITEMS[1]]},
    ]
    found = [
        of(f"d{at}", **{"items": ITEMS, "users": USERS, "reviews": REVIEWS} | files) for at, files in enumerate(changed)
    ]
    assert len({base, *found}) == 1 + len(changed)


BAD_NODES = [
    ("[1]", r"want a JSON object, got \[1\]"),
    ('{"id": 1', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ({"text": "x"}, "no 'id'"),
    ({"id": "1"}, "'id' must be an integer, got '1'"),
    ({"id": True}, "'id' must be an integer, got True"),
    ({"id": 3}, r"'id' 3 is outside \[0, 3\)"),
    ({"id": -1}, r"'id' -1 is outside \[0, 3\)"),
    ({"id": 0}, "id 0 is here a second time"),
    ({"id": 1, "key": "k0"}, "key 'k0' is that of id 0 too"),
    ({"id": 1, "key": ""}, "'key' must be a string that is not empty, got ''"),
    ({"id": 1, "key": 1.5}, "'key' must be a string"),
    ({"id": 1, "text": 5}, "'text' must be a string, got 5"),
    ({"id": 1, "title": ["x"]}, "'title' must be a string"),
    ({"id": 1, "attributes": ["x"]}, "'attributes' must be an object of strings"),
    ({"id": 1, "attributes": {"year": 5}}, "attribute 'year' must be a string, got 5"),
    ('{"id": 1, "text": "\\ud800"}', "half of a surrogate pair"),
]


@pytest.mark.parametrize(("line", "message"), BAD_NODES)
def test_texts_malformed_lines_are_named(tmp_path, line, message):
    folder = write(tmp_path / "d", items=[{"id": 0, "key": "k0"}, "", line])
    for read in (load_texts, own_ids):
        with pytest.raises(DataError, match=rf"items\.jsonl:3: .*{message}"):
            read(folder, 3, 3)


BAD_REVIEWS = [
    ({"user": 1, "item": 1}, "no 'text'"),
    ({"user": 1, "item": 1, "text": None}, "'text' must be a string, got None"),
    ({"user": 2, "item": 1, "text": ""}, r"'user' 2 is outside \[0, 2\), the rows of the users"),
    ({"user": 1, "item": 3, "text": ""}, r"'item' 3 is outside \[0, 3\), the rows of the items"),
    ({"user": 1.0, "item": 1, "text": ""}, "'user' must be an integer"),
    ({"user": 0, "item": 1, "text": "again"}, "a second review of item 1 by user 0"),
    ('{"user": 1, "item": 1, "text": "", "rating": NaN}', "'rating' must be a finite number, got nan"),
    ('{"user": 1, "item": 1, "text": "", "time": 1e999}', "'time' must be a finite number, got inf"),
    ({"user": 1, "item": 1, "text": "", "rating": 10**400}, "'rating' must be a finite number"),
    ({"user": 1, "item": 1, "text": "", "rating": "5"}, "'rating' must be a finite number, got '5'"),
    ({"user": 1, "item": 1, "text": "", "rating": True}, "'rating' must be a finite number, got True"),
]


@pytest.mark.parametrize(("line", "message"), BAD_REVIEWS)
def test_texts_malformed_reviews_are_named(tmp_path, line, message):
    folder = write(tmp_path / "d", gz=True, reviews=[{"user": 0, "item": 1, "text": "a"}, line])
    with pytest.raises(DataError, match=rf"reviews\.jsonl\.gz:2: .*{message}"):
        load_texts(folder, 2, 3)


def test_texts_own_ids_never_coincide(tmp_path):
    folder = write(tmp_path / "d", users=[{"id": 0, "key": "1"}])
    with pytest.raises(DataError, match="of the users, id 0 has the key '1', and id 1 has none"):
        own_ids(folder, 2, 1)
    assert own_ids(write(tmp_path / "e", users=[{"id": 0, "key": "1"}, {"id": 1, "key": "0"}]), 2, 1)[0] == ["1", "0"]


def test_texts_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_texts(tmp_path / "none", 1, 1)
    folder = write(write(tmp_path / "d", items=ITEMS), gz=True, items=ITEMS)
    with pytest.raises(DataError, match=r"holds both items\.jsonl and items\.jsonl\.gz"):
        load_texts(folder, 3, 3)
    (folder / "items.jsonl").unlink()
    whole = (folder / "items.jsonl.gz").read_bytes()
    for content in (whole[:-10], b"plain", whole[:30] + b"\0\0" + whole[32:]):
        (folder / "items.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"items\.jsonl\.gz: cannot be read"):
            load_texts(folder, 3, 3)
    (folder / "items.jsonl.gz").unlink()
    (folder / "items.jsonl").write_bytes(b'{"id": 0}\n{"id": 1, "text": "\xff"}\n')
    with pytest.raises(DataError, match=r"items\.jsonl:2: not UTF-8 \(byte 20 of the line\)"):
        load_texts(folder, 3, 3)


@pytest.mark.parametrize(("name", "users", "items"), [("movielens_personas", 1000, 3292)])
def test_texts_of_the_shared_sets(name, users, items):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not here")
    texts = load_texts(SHARED / name, users, items)
    assert len(texts.items) == items and len(texts.users) == users and texts.reviews == []
    assert texts.items[0].title.startswith("Toy Story") and own_ids(SHARED / name, users, items)[0][7] == "7"
