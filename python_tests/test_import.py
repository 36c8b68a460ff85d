"""Importing a user's own files: what comes out is what went in, under the user's own ids, and what did not is told."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from written_tables import HEADER, interactions, write

from prorec_fast.data import DataError, ImportSettings, import_interactions, load, load_texts, own_ids

FORMATS = ("csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet")


def expected(rows: list[tuple], min_rating: float = 0, k: int = 1) -> dict[tuple[str, str], tuple]:
    """{(user, item): the row that stands for the pair}, by the definitions."""
    best: dict[tuple[str, str], tuple] = {}
    for row in rows:
        if row[2] >= min_rating:
            pair, rank = row[:2], (row[3], row[2])
            if pair not in best or rank >= (best[pair][3], best[pair][2]):
                best[pair] = row
    while True:
        users, items = Counter(user for user, _ in best), Counter(item for _, item in best)
        core = {pair: row for pair, row in best.items() if users[pair[0]] >= k and items[pair[1]] >= k}
        if core == best:
            return core
        best = core


def pairs_by_split(folder: Path) -> list[set[tuple[str, str]]]:
    """The (user, item) pairs of train, valid and test, under the user's own ids."""
    data = load(folder)
    users, items = own_ids(folder, data.num_users, data.num_items)
    splits = []
    for split in (data.train, data.valid, data.test):
        found = [(users[user], items[item]) for user, item in zip(*map(list, split.edges()), strict=True)]
        assert len(found) == len(set(found))
        splits.append(set(found))
    return splits


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "settings", [ImportSettings(), ImportSettings(min_rating=2.5, k_core=4, split="time")], ids=["all", "core"]
)
def test_import_gives_back_the_same_interactions(tmp_path, kind, settings):
    rows = interactions()
    out = tmp_path / "out"
    report = import_interactions(write(tmp_path / f"x.{kind}", rows), out, settings=settings)
    kept = expected(rows, settings.min_rating or 0, settings.k_core)
    splits = pairs_by_split(out)
    assert set.union(*splits) == set(kept) and sum(map(len, splits)) == len(kept)
    users, items = own_ids(out, report["kept"]["users"], report["kept"]["items"])
    assert users == list(dict.fromkeys(row[0] for row in rows if row[0] in {user for user, _ in kept}))
    assert items == list(dict.fromkeys(row[1] for row in rows if row[1] in {item for _, item in kept}))
    if settings.split == "time":
        for user in users:
            times = [[kept[pair][3] for pair in split if pair[0] == user] for split in splits]
            assert all(max(a) <= min(b) for a, b in itertools.pairwise(times) if a and b)

    passed = [row for row in rows if row[2] >= (settings.min_rating or 0)]
    merged = expected(rows, settings.min_rating or 0)
    assert report["interactions"]["rows"] == len(rows)
    assert report["interactions"]["below_rating"] == len(rows) - len(passed)
    assert report["interactions"]["duplicates"] == len(passed) - len(merged)
    assert report["interactions"]["outside_core"] == {
        "interactions": len(merged) - len(kept),
        "users": len({user for user, _ in merged} - set(users)),
        "items": len({item for _, item in merged} - set(items)),
    }
    assert report["kept"] == {"users": len(users), "items": len(items), "interactions": len(kept)}
    assert [report["splits"][name] for name in ("train", "valid", "test")] == list(map(len, splits))
    assert report["splits"]["users_without_valid"] == len(set(users) - {user for user, _ in splits[1]})
    assert report["splits"]["items_without_train"] == len(set(items) - {item for _, item in splits[0]})
    assert report == json.loads((out / "import.json").read_text()) | {"settings": report["settings"]}


def test_import_reviews_are_the_latest_with_a_text(tmp_path):
    rows = interactions()
    report = import_interactions(write(tmp_path / "x.csv", rows), tmp_path / "out", settings=ImportSettings(k_core=4))
    written = [row for row in rows if row[4].strip()]
    kept, best = expected(rows, k=4), expected(written)
    texts = load_texts(tmp_path / "out", report["kept"]["users"], report["kept"]["items"])
    found = {
        (texts.users[review.user].key, texts.items[review.item].key): (review.rating, review.time, review.text)
        for review in texts.reviews
    }
    assert found == {pair: best[pair][2:] for pair in kept if pair in best}
    assert report["reviews"] == {
        "without_interaction": len([row for row in written if row[:2] not in kept]),
        "empty": len(rows) - len(written),
        "duplicates": len([row for row in written if row[:2] in kept]) - len(found),
        "kept": len(found),
    }


def test_import_reviews_beside_malformed_rows(tmp_path):
    rows = [("a", "x", "?", 0, "lost"), ("a", "y", 1, 0, ""), ("b", "x", "?", 0, ""), ("b", "y", 1, 0, "kept")]
    path = write(tmp_path / "x.csv", rows)
    import_interactions(path, tmp_path / "out", settings=ImportSettings(skip_malformed=True))
    assert [(r.user, r.item, r.text) for r in load_texts(tmp_path / "out", 2, 1).reviews] == [(1, 0, "kept")]


def test_import_reviews_of_their_own_file(tmp_path):
    rows = [("a", "x", 3, ""), ("a", "y", 3, ""), ("b", "x", 3, "not this"), ("c", "x", 3, "")]
    reviews = [
        ("nobody", "x", "stray", 1, 9), ("b", "nothing", "stray", 1, 9), ("c", "y", "never met", 1, 9),
        ("b", "x", "early", "", 1), ("b", "x", "late", "", 2), ("b", "x", "unknown when", "", ""),
        ("a", "y", "", 5, 5), ("a", "x", "two\nlines", 0.5, 7),
    ]  # fmt: skip
    report = import_interactions(
        write(tmp_path / "x.csv", rows, ("user", "what", "rating", "review")),
        tmp_path / "out",
        reviews=write(
            tmp_path / "r.tsv",
            [(*row, 0) for row in reviews],
            ("user", "what", "text", "stars", "date", "user_id"),  # it is `user` in the interactions
        ),
        settings=ImportSettings(item_column="what", min_rating=1),
    )
    assert report["interactions"]["columns"] == {"user": "user", "item": "what", "rating": "rating"}
    texts = load_texts(tmp_path / "out", 3, 2)
    assert [(r.user, r.item, r.text, r.rating, r.time) for r in texts.reviews] == [
        (1, 0, "late", None, 2), (0, 0, "two\nlines", 0.5, 7),
    ]  # fmt: skip
    facts = report["reviews"]
    assert (facts["rows"], facts["empty"], facts["without_interaction"], facts["duplicates"]) == (8, 1, 3, 2)
    assert facts["columns"] == {"user": "user", "item": "what", "rating": "stars", "time": "date", "review": "text"}


def test_import_texts_of_users_and_items(tmp_path):
    rows = [("a", "1"), ("a", "02"), ("b", "1")]
    items = [
        {"id": 1, "name": "One", "description": ["first", "second"], "tags": ["x", "y"], "year": 1999, "price": None},
        {"id": "2", "name": "no interactions"},
        {"id": 1, "name": "again"},
        {"id": "02"},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    report = import_interactions(
        write(tmp_path / "x.csv", rows, ("who", "item")),
        tmp_path / "out",
        items=tmp_path / "items.jsonl",
        users=write(tmp_path / "u.csv", [("b", "about b", "Rome", 1)], ("who", "about", "city", "user_id")),
        settings=ImportSettings(user_column="who", attributes=("tags", "year", "price", "city"), text_column="about"),
    )
    texts = load_texts(tmp_path / "out", 2, 2)
    one = texts.items[0]
    assert (one.key, one.title, one.text, dict(one.attributes)) == (
        "1", "One", "first\nsecond", {"tags": "x, y", "year": "1999"},
    )  # fmt: skip
    assert (texts.items[1].key, texts.items[1].title, texts.users[0].text) == ("02", "", "")
    assert (texts.users[1].text, dict(texts.users[1].attributes)) == ("about b", {"city": "Rome"})
    counts = ("rows", "without_interactions", "repeated", "with_text", "without_text")
    assert [report["items"][name] for name in counts] == [4, 1, 1, 1, 1]
    assert [report["users"][name] for name in counts] == [1, 0, 0, 1, 1]


BAD = {
    "rating 'x' is not a number": "a,y,x,1",
    "rating 'inf' is not finite": "a,y,inf,1",
    "no user": ",y,3,1",
    "no item": "a,,3,1",
    "want 4 columns, got 3": "a,y,3",
    "time 'soon' is not a number or an ISO date": "a,y,3,soon",
    "not UTF-8": b"a,\xff,3,1",
    "a quote opened here takes in": '"a,y,3,1',
}


@pytest.mark.parametrize("reason", BAD)
def test_import_names_malformed_rows_or_skips_and_counts_them(tmp_path, reason):
    bad = BAD[reason] if isinstance(BAD[reason], bytes) else BAD[reason].encode()
    path = tmp_path / "x.csv"
    path.write_bytes(b"\n".join([b"user,item,rating,time", b"a,x,3,1", bad, b"b,x,3,1", bad, b"c,x,3,1"]) + b"\n")
    with pytest.raises(DataError, match=f"^{path}:3: .*{reason}.*; 2 rows are malformed; .*--skip-malformed"):
        import_interactions(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = import_interactions(path, tmp_path / "out", settings=ImportSettings(skip_malformed=True))
    facts = report["interactions"]
    assert (facts["rows"], facts["malformed"]) == (5, 2) and f"{path}:5: " in facts["first_malformed"][1]
    assert set.union(*pairs_by_split(tmp_path / "out")) == {("a", "x"), ("b", "x"), ("c", "x")}


def test_import_needs_ratings_and_times_where_it_goes_by_them(tmp_path):
    path = write(tmp_path / "x.csv", [("a", "x", "", ""), ("a", "y", 3, 2)], HEADER[:4])
    assert import_interactions(path, tmp_path / "out")["kept"]["interactions"] == 2
    for settings, what in ((ImportSettings(min_rating=1), "rating"), (ImportSettings(split="time"), "time")):
        with pytest.raises(DataError, match=rf"x\.csv:2: no {what}"):
            import_interactions(path, tmp_path / "o", settings=settings)
        bare = write(tmp_path / "bare.csv", [("a", "x")], HEADER[:2])
        with pytest.raises(DataError, match=rf"no column has a usual name of a {what} column"):
            import_interactions(bare, tmp_path / "o", settings=settings)
    settings = ImportSettings(rating_column="-")
    (tmp_path / "words.csv").write_text("user,item,rating\na,x,good\n")
    assert import_interactions(tmp_path / "words.csv", tmp_path / "o", settings=settings)["kept"]["interactions"] == 1


def test_import_without_a_header(tmp_path):
    (tmp_path / "x.dat").write_text("3::a::x::ignored\n4::b::x::ignored\n")
    settings = ImportSettings(header=False, delimiter="::", user_column="2", item_column="3", rating_column="1")
    import_interactions(tmp_path / "x.dat", tmp_path / "out", settings=settings)
    assert set.union(*pairs_by_split(tmp_path / "out")) == {("a", "x"), ("b", "x")}
    with pytest.raises(ValueError, match="counted from 1"):
        ImportSettings(header=False)


def test_import_nothing_left_is_an_error(tmp_path):
    path = write(tmp_path / "x.csv", [("a", "x", 3)], HEADER[:3])
    for settings, match in (
        (ImportSettings(min_rating=4), "no row is rated 4 or better"),
        (ImportSettings(k_core=2), "the 2-core of its 1 interactions is empty"),
    ):
        with pytest.raises(DataError, match=match):
            import_interactions(path, tmp_path / "out", settings=settings)
    (tmp_path / "y.csv").write_text("user,item\n")
    with pytest.raises(DataError, match="no rows"):
        import_interactions(tmp_path / "y.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"k_core": 0}, "k_core"), ({"k_core": 2.0}, "k_core"), ({"split": "user"}, "split"), ({"seed": -1}, "seed"),
        ({"ratios": (0, 1, 1)}, "ratios"), ({"ratios": (1, -1, 1)}, "ratios"), ({"ratios": (1, 1)}, "ratios"),
        ({"ratios": (1, float("nan"), 1)}, "ratios"), ({"min_rating": float("nan")}, "min_rating"),
        ({"attributes": "year"}, "attributes"), ({"delimiter": ""}, "delimiter"), ({"delimiter": '"'}, "delimiter"),
    ],
)  # fmt: skip
def test_import_settings_are_checked(wrong, match):
    with pytest.raises(ValueError, match=match):
        ImportSettings(**wrong)


def test_import_settings_without_effect_are_refused(tmp_path):
    path = write(tmp_path / "x.csv", [("a", "x", "t")], ("user", "item", "title"))
    for settings, match in (
        (ImportSettings(attributes=("year",)), r"attributes \(--attributes\): no column 'year' in tables of"),
        (ImportSettings(title_column="name"), "no column 'name' in"),
        (ImportSettings(user_column="item"), "one column cannot be two things"),
    ):
        with pytest.raises(DataError, match=match):
            import_interactions(path, tmp_path / "out", settings=settings)
    with pytest.raises(DataError, match=rf"no column 'year' in {path}"):
        import_interactions(path, tmp_path / "out", items=path, settings=ImportSettings(attributes=("year",)))
