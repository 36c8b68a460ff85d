"""The parts of an import: k-core, split, values, and tables read row by row with what is malformed in them."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import time
from collections import Counter

import numpy as np
import pytest

from prorec_fast.data import DataError
from prorec_fast.data.importing import delimited, tabular
from prorec_fast.data.importing.columns import find_column
from prorec_fast.data.importing.kcore import k_core
from prorec_fast.data.importing.splitting import split_interactions, split_sizes
from prorec_fast.data.importing.tabular import Malformed, open_table
from prorec_fast.data.importing.values import Ids, as_ids, as_numbers, as_text, as_times


def naive_core(pairs: set, k: int) -> set:
    while True:
        users, items = Counter(u for u, _ in pairs), Counter(i for _, i in pairs)
        core = {(u, i) for u, i in pairs if users[u] >= k and items[i] >= k}
        if core == pairs:
            return core
        pairs = core


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_k_core_is_the_fixed_point(k):
    rng = np.random.default_rng(k)
    for edges in (1, 30, 80, 150):
        pairs = sorted({(int(u), int(i)) for u, i in rng.zipf(1.5, (edges, 2)) % [30, 25]})
        user, item = np.array(pairs, dtype=np.int32).T
        kept = k_core(user, item, k)
        assert {pairs[at] for at in kept} == naive_core(set(pairs), k) and (np.diff(kept) > 0).all()


def test_k_core_peels_a_chain_to_its_cycle():
    chain = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]  # a path: no 2-core
    cycle = [(7, 7), (7, 8), (8, 8), (8, 7), (3, 7)]  # held to the path by one edge
    user, item = np.array(chain + cycle).T
    np.testing.assert_array_equal(k_core(user, item, 2), [7, 8, 9, 10])


def test_split_sizes_of_small_users():
    degrees, ratios = np.arange(1, 10), (3, 1, 1)
    by_time = [(1, 0, 0), (1, 0, 1), (2, 0, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (4, 1, 2), (5, 1, 2), (5, 2, 2)]
    np.testing.assert_array_equal(split_sizes(degrees, ratios), by_time)
    coin = split_sizes(degrees, (0.6, 0.2, 0.2), np.ones(9, dtype=bool))
    np.testing.assert_array_equal(coin, [(a, max(b, c), min(b, c)) for a, b, c in by_time])


@pytest.mark.parametrize("ratios", [(3, 1, 1), (8, 1, 1), (0.7, 0.1, 0.2), (1, 4, 4), (1, 0, 1), (5, 1, 0), (1, 0, 0)])
def test_split_sizes_follow_the_ratios(ratios):
    degrees = np.arange(1, 200)
    sizes = split_sizes(degrees, ratios)
    np.testing.assert_array_equal(sizes.sum(axis=1), degrees)
    assert (sizes >= 0).all() and (sizes[:, 0] >= 1).all() and not sizes[:, np.array(ratios) == 0].any()
    quota = degrees[:, None] * np.array(ratios) / sum(ratios)
    assert (np.abs(sizes - quota) < 1)[quota[:, 0] >= 1].all()
    np.testing.assert_array_equal(sizes, split_sizes(degrees, np.array(ratios) / sum(ratios)))  # in any unit
    np.testing.assert_array_equal(sizes, split_sizes(degrees, np.array(ratios) * 0.3))


def test_split_at_random_is_fair_and_seeded():
    user = np.repeat(np.arange(3000), 2 + np.arange(3000) % 7)
    first = split_interactions(user, (3, 1, 1), 4)
    np.testing.assert_array_equal(first, split_interactions(user, (3, 1, 1), 4))
    assert (first != split_interactions(user, (3, 1, 1), 5)).mean() > 0.3
    for row in range(9):
        np.testing.assert_array_equal(
            np.bincount(first[user == row], minlength=3)[0], split_sizes(np.bincount(user), (3, 1, 1))[row, 0]
        )
    valid, test = (first == 1).sum(), (first == 2).sum()
    assert abs(valid - test) < 0.05 * test  # ties between the two go either way
    place = np.arange(user.shape[0]) - np.searchsorted(user, user)
    assert abs((first[place == 0] == 0).mean() - (first[place == 1] == 0).mean()) < 0.05  # no place is favoured


def test_split_by_time_keeps_the_order():
    rng = np.random.default_rng(0)
    user = np.sort(rng.integers(0, 50, 800))
    when = rng.integers(0, 20, 800).astype(float)
    split = split_interactions(user, (3, 1, 1), 0, when)
    for row in range(50):
        parts = [when[(user == row) & (split == part)] for part in range(3)]
        assert parts[0].max() <= parts[1].min() and parts[1].max() <= parts[2].min()
        assert [part.shape[0] for part in parts] == split_sizes(np.array([sum(user == row)]), (3, 1, 1))[0].tolist()
    np.testing.assert_array_equal(split_interactions(np.zeros(5, int), (3, 1, 1), 0, np.zeros(5)), [0, 0, 0, 1, 2])


def test_values_ids_stay_as_they_are():
    ids, problems = as_ids(["007", " 7", "ü", 'a"b', "NaN"], "user")
    assert ids == ["007", " 7", "ü", 'a"b', "NaN"] and problems == {}
    assert as_ids([7, -1, 10**30], "user") == (["7", "-1", "1" + "0" * 30], {})
    ids, problems = as_ids(["7", 8, None, "", True, 1.0, ["x"], "a\nb"], "user")
    assert ids[:2] == ["7", "8"] and set(problems) == {2, 3, 4, 5, 6, 7}
    assert (
        problems[2] == "no user" and problems[5] == "user 1.0 is no string or integer" and "line break" in problems[7]
    )
    assert as_ids([1, True], "user")[1] == {1: "user True is no string or integer"}
    codes = Ids()
    assert codes.codes(["b", "a", "b"]).tolist() == [0, 1, 0] and codes.known(["a", "c"]).tolist() == [1, -1]
    assert list(codes) == ["b", "a"]


def test_values_numbers():
    for values in (["1", " 2.5", "-3e2"], [1, 2.5, -300]):
        numbers, problems = as_numbers(values, "rating", required=True)
        assert numbers.tolist() == [1, 2.5, -300] and problems == {}
    mixed = ["1", None, "", "x", "1_0", "nan", "inf", float("nan"), True, [1], 10**400, "5"]
    numbers, problems = as_numbers(mixed, "rating", required=False)
    assert set(problems) == set(range(3, 11)) and numbers[[0, 11]].tolist() == [1, 5] and np.isnan(numbers[1:3]).all()
    assert problems[3] == "rating 'x' is not a number" and problems[5] == "rating 'nan' is not finite"
    assert set(as_numbers(mixed, "rating", required=True)[1]) == set(range(1, 11))
    assert as_numbers(["1_0"], "rating", required=False)[1] == {0: "rating '1_0' is not a number"}


def test_values_times(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    values = ["1970-01-02", "1970-01-01T00:00:10Z", "1970-01-01 02:00:00+01:00", "12.5", "", "yesterday", "1970-13-01"]
    times, problems = as_times(values, "time", required=False)
    np.testing.assert_array_equal(times[:5], [86400, 10, 3600, 12.5, np.nan])
    assert problems == {at: f"time {values[at]!r} is not a number or an ISO date" for at in (5, 6)}
    monkeypatch.undo()
    time.tzset()


def test_values_texts():
    assert as_text(["a", None, ["b", 1]]) == "a, b, 1" and as_text(["a", "b"], "\n") == "a\nb"
    assert as_text({"k": "v", "n": 2.5}) == "k: v, n: 2.5" and as_text(None) == "" and as_text(" x ") == " x "


def read(path, names, one_line=(), **options):
    """(rows as tuples with their places, the malformed as they are named) of a file."""
    table = open_table(path, **options)
    malformed = Malformed(table)
    rows = []
    for places, columns in table.chunks(names, malformed, one_line):
        rows += zip(places, *columns, strict=True)
    return rows, malformed.first, malformed.count, table


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_delimited_reads_what_csv_reads_across_any_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(delimited, "_BLOCK", block)
    monkeypatch.setattr(delimited, "CHUNK", 10)
    rng = np.random.default_rng(block)
    pieces = ["", "a", ",", '"', "\n", "ü", "小", " ", "\r\n", "long " * 5]
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(
        [["u", "i", "t"], *(["".join(rng.choice(pieces, 3)) for _ in range(3)] for _ in range(100))]
    )
    content = text.getvalue().replace("\r\n,", "\r\n\r\n,")  # some blank lines, too
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    rows, _, count, table = read(tmp_path / "x.csv", ["t", "u", "i"])
    expected = [row for row in csv.reader(io.StringIO(content, newline="")) if row][1:]
    assert [[u, i, t] for _, t, u, i in rows] == expected and count == 0
    lines = content.split("\n")
    for place, t, u, i in rows:
        assert next(csv.reader([f"{line}\n" for line in lines[place - 1 :]])) == [u, i, t]
    several = [row for row in expected if "\n" in "".join(row)]
    assert table.over_lines == len(several) and table.longest[0] == 1 + max("".join(row).count("\n") for row in several)


BAD_CSV = {
    b"u2,i2": "want 3 columns, got 2",
    b"u2,i2,3,4": "want 3 columns, got 4",
    b"u\xff,i2,3": "not UTF-8",
    b'u2,"i2,3': "a quote",
    b'"u2,i2,3': "a quote",
    b'u2,"i2"x,3': "a quote is closed before the field ends",
    b"u2\r,i2,3": "carriage return",
}


@pytest.mark.parametrize("bad", BAD_CSV)
@pytest.mark.parametrize("after", [0, 1, 3, 1500])
def test_delimited_a_malformed_line_costs_its_own_line(tmp_path, monkeypatch, bad, after):
    monkeypatch.setattr(delimited, "_BLOCK", 100)
    good = [b'u%d,"i%d",5' % (at, at) for at in range(5 + after)]
    (tmp_path / "x.csv").write_bytes(b"\n".join([b"u,i,r", *good[:5], bad, *good[5:]]))
    rows, first, count, _ = read(tmp_path / "x.csv", ["u", "i", "r"], ["u", "i", "r"])
    assert count == 1 and first[0].startswith(f"{tmp_path}/x.csv:7: ") and BAD_CSV[bad] in first[0]
    assert [(u, i) for _, u, i, _ in rows] == [(f"u{at}", f"i{at}") for at in range(5 + after)]
    assert [place for place, *_ in rows] == [2, 3, 4, 5, 6, *range(8, 8 + after)]


def test_delimited_a_quote_opened_in_a_text_swallows_nothing(tmp_path):
    lines = ["u,t,i", 'u0,"open,i0', "u1,fine,i1", 'u2,"two\nlines",i2', 'u3,"open again,i3', "u4,fine,i4"]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    rows, first, count, _ = read(tmp_path / "x.csv", ["u", "i", "t"], ["u", "i"])
    assert [(place, u, t) for place, u, _, t in rows] == [(3, "u1", "fine"), (4, "u2", "two\nlines"), (7, "u4", "fine")]
    assert count == 2 and ":2: " in first[0] and ":6: " in first[1]


def test_delimited_line_breaks_are_for_texts(tmp_path):
    (tmp_path / "x.csv").write_text('u,i,r\na,x,1\n"u2,i2,3\nu3",i3,4\nb,y,2')
    assert [row[1] for row in read(tmp_path / "x.csv", ["u"])[0]] == ["a", "u2,i2,3\nu3", "b"]
    rows, first, count, _ = read(tmp_path / "x.csv", ["u"], ["u"])
    assert [row[1] for row in rows] == ["a", "b"] and count == 1
    assert first == [f"{tmp_path}/x.csv:3: a quote opened here takes in 2 lines: a line break in column u"]


def test_delimited_records_have_an_end_and_chunks_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 100)
    monkeypatch.setattr(delimited, "CHUNK", 10)
    (tmp_path / "x.csv").write_text('t\n"two\nlines"\n' + "one\n" * 1000)
    table = open_table(tmp_path / "x.csv")
    sizes = [len(places) for places, _ in table.chunks(["t"], Malformed(table))]
    assert sum(sizes) == 1001 and max(sizes) < 100
    (tmp_path / "x.csv").write_text('t\n"' + "line\n" * 1000 + '"\n' + "one\n" * 10)
    rows, first, count, _ = read(tmp_path / "x.csv", ["t"])
    assert len(rows) == 999 + 10 and count == 2
    assert "takes in 1001 lines: more than 1000" in first[0] and "a quote is never closed" in first[1]


def test_malformed_rows_are_counted_and_the_first_shown(tmp_path):
    (tmp_path / "x.csv").write_text("u,i\n" + "x\n" * 20 + "a,b\n")
    _, first, count, _ = read(tmp_path / "x.csv", ["u"])
    assert count == 20 and [line.split(":")[1] for line in first] == ["2", "3", "4", "5", "6"]


def test_delimited_without_header_quotes_or_a_single_delimiter(tmp_path):
    (tmp_path / "x.dat").write_text('1::"2::3\n\n4::5::6\r\n')
    rows, _, count, table = read(tmp_path / "x.dat", ["3", "2"], delimiter="::", header=False)
    assert rows == [(1, "3", '"2'), (3, "6", "5")] and count == 0 and table.columns == ["1", "2", "3"]
    (tmp_path / "x.tsv").write_text('u\ti\n"a\tb\nc\t"d"\n')
    assert read(tmp_path / "x.tsv", ["u", "i"], quotes=False)[0] == [(2, '"a', "b"), (3, "c", '"d"')]
    assert read(tmp_path / "x.tsv", ["u", "i"], ["u", "i"])[0] == [(3, "c", "d")]


def test_tables_that_cannot_be_opened(tmp_path):
    def refused(name, content, match, **options):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=match):
            read(path, ["u"], **options)

    refused("x.csv", b"", "is empty")
    refused("x.csv", b"\n\n", "is empty")
    refused("x.csv", b'"u\n', r"x\.csv:1: a quote is never closed")
    refused("x.csv", b"\xff\xfeu\0\n", r"x\.csv:1: not UTF-8")
    refused("x.csv.gz", gzip.compress(b"u\n" + b"a\n" * 9999)[:-9], "cannot be read")
    refused("x.jsonl", b"[1]\n", "no JSON object")
    refused("x.jsonl", b'{"u": 1}', "leave out --delimiter", format="jsonl", delimiter=",")
    refused("x.parquet", b"PAR1", "not a readable Parquet file")
    refused("x.data", b"u\n", "does not tell its format")
    with pytest.raises(DataError, match="no such file"):
        open_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be a pipe"):
        open_table(tmp_path)


def test_json_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(tabular, "CHUNK", 2)
    bad = ["[1]", "{", '{"u": "\\uD800"}', "\x00"]
    lines = ['\ufeff{"u": 1, "i": "x"}', "", '{"i": null, "late": [1]}', *bad, '{"u": "\\ud83d\\ude00"}', '{"u": 3}']
    path = tmp_path / "x.ndjson.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    rows, first, count, table = read(path, ["u", "i", "late"])
    assert table.columns == ["u", "i", "late"] and count == len(bad)
    assert rows == [(1, 1, "x", None), (3, None, None, [1]), (8, "😀", None, None), (9, 3, None, None)]
    assert first[0] == f"{path}:4: want a JSON object, got [1]" and "surrogate" in first[2]


def test_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    moments = [1_600_000_000_123_456_789, None, 0]
    table = pyarrow.table(
        {
            "user": pyarrow.array(["a", "b", "c"]).dictionary_encode(),
            "item": pyarrow.array([1, 2, 3], pyarrow.int32()),
            "when": pyarrow.array(moments, pyarrow.timestamp("ns")),
            "tags": pyarrow.array([["x", "y"], None, []]),
            "text": pyarrow.Array.from_buffers(
                pyarrow.string(), 3, pyarrow.array([b"ok", b"\xff", None], pyarrow.binary()).buffers()
            ),
        }
    )
    path = tmp_path / "x.parquet"
    monkeypatch.setattr("prorec_fast.data.importing.parquet.CHUNK", 2)
    parquet.write_table(table, path)
    rows, first, count, _ = read(path, ["item", "user", "when", "tags"])
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        (1, 1, "a", ["x", "y"]), (2, 2, "b", None), (3, 3, "c", []),
    ]  # fmt: skip
    assert as_times([row[3] for row in rows], "time", required=False)[0].tolist()[::2] == [1600000000.123456, 0.0]
    rows, first, count, _ = read(path, ["user", "text"])
    assert rows == [(1, "a", "ok"), (3, "c", None)] and (count, first) == (1, [f"{path}: row 2: not UTF-8"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'pip install "prorec-fast\[parquet\]"'):
        open_table(path)


@pytest.mark.parametrize(
    ("columns", "role", "found"),
    [
        ("userId movieId rating timestamp", "user", "userId"),
        ("userId movieId rating timestamp", "item", "movieId"),
        ("reviewerID asin reviewText overall unixReviewTime reviewTime", "time", "unixReviewTime"),
        ("reviewerID asin reviewText overall unixReviewTime reviewTime", "rating", "overall"),
        ("rating title text asin parent_asin user_id timestamp", "item", "parent_asin"),
        ("rating title text asin parent_asin user_id timestamp", "review", "text"),
        ("review_id user_id business_id stars text date", "item", "business_id"),
        ("user name user_id", "user", "user_id"),
        ("id title description text", "item id", "id"),
        ("id title description text", "text", "description"),
        ("u i", "rating", None),
    ],
)
def test_columns_are_found_by_their_usual_names(tmp_path, columns, role, found):
    (tmp_path / "x.csv").write_text(",".join(columns.split()))
    assert find_column(open_table(tmp_path / "x.csv"), role, None) == found


@pytest.mark.parametrize(
    ("columns", "role", "given", "match"),
    [
        ("a,b", "user", None, r"no column has a usual name of a user column; .*--user-column.*'a', 'b'"),
        ("user_id,reviewerID", "user", None, "'user_id' and 'reviewerID' could each be the user column"),
        ("user_id,user_id", "user", None, "has 2 columns 'user_id'"),
        ("user_id,x", "user", "y", r"has no column 'y' for user_column \(--user-column\); it has 'user_id', 'x'"),
        ("user_id,x", "user", "-", "has no column '-'"),
    ],
)
def test_columns_that_cannot_be_told_are_refused(tmp_path, columns, role, given, match):
    (tmp_path / "x.csv").write_text(columns)
    with pytest.raises(DataError, match=match):
        find_column(open_table(tmp_path / "x.csv"), role, given, required=True)
