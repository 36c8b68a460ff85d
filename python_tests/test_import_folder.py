"""What an import leaves behind: one folder every time, whole or not at all, and a command that says what it did."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from written_tables import HEADER, interactions, write

from prorec_fast.cli import main
from prorec_fast.data import DataError, ImportSettings, import_interactions
from prorec_fast.data.importing.folder import new_folder


def test_import_is_the_same_every_time_and_differs_by_seed(tmp_path):
    path = write(tmp_path / "x.csv", interactions())
    content = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        import_interactions(path, tmp_path / name, settings=ImportSettings(seed=seed))
        content[name] = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    assert content["a"] == content["b"] and content["a"]["interactions.npz"] != content["c"]["interactions.npz"]
    assert content["a"].keys() == {
        "interactions.npz", "items.jsonl.gz", "users.jsonl.gz", "reviews.jsonl.gz", "import.json",
    }  # fmt: skip


def test_import_leaves_the_folder_whole_or_not_at_all(tmp_path):
    rows = interactions(50)
    path, out = write(tmp_path / "x.csv", rows), tmp_path / "out"

    def shorten(table, count):  # between the pass that chooses reviews and the one that writes them
        write(path, rows[:10])

    def stop(table, count):
        raise KeyboardInterrupt

    def attempt(error, on_rows):
        before = sorted(entry.name for entry in tmp_path.iterdir())
        with pytest.raises(error):
            import_interactions(write(path, rows), out, force=True, on_rows=on_rows)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == before

    def hurry(table, count):  # somebody else was faster
        import_interactions(path, out, settings=ImportSettings(seed=5))

    attempt(DataError, shorten)
    attempt(KeyboardInterrupt, stop)
    with pytest.raises(DataError, match="already holds data"):
        import_interactions(path, out, on_rows=hurry)
    assert json.loads((out / "import.json").read_text())["settings"]["seed"] == 5
    shutil.rmtree(out)
    import_interactions(write(path, rows), out)
    whole = {file.name: file.read_bytes() for file in out.iterdir()}
    attempt(DataError, shorten)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == whole


def test_import_a_folder_made_meanwhile_stays(tmp_path):
    with pytest.raises(DataError, match="already holds data"), new_folder(tmp_path / "out", force=False) as scratch:
        (scratch / "import.json").write_text("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "import.json").write_text("old")
    assert (tmp_path / "out" / "import.json").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_import_never_overwrites_what_it_did_not_write(tmp_path):
    path, out = write(tmp_path / "x.csv", interactions(50)), tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    import_interactions(path, out)  # an empty folder is free to use
    with pytest.raises(DataError, match="already holds data; replace it with force"):
        import_interactions(path, out)
    (out / "reviews.jsonl.gz").write_bytes(b"old")
    import_interactions(write(path, [row[:3] for row in interactions(50)], HEADER[:3]), out, force=True)
    assert not (out / "reviews.jsonl.gz").exists() and os.listdir(tmp_path / "deep") == ["out"]
    (out / "profiles_items.jsonl.gz").write_bytes(b"paid for")
    with pytest.raises(DataError, match=r"holds profiles_items\.jsonl\.gz, which no import wrote"):
        import_interactions(path, out, force=True)
    assert (out / "profiles_items.jsonl.gz").read_bytes() == b"paid for"
    with pytest.raises(DataError, match="is a file"):
        import_interactions(path, path)
    with pytest.raises(DataError, match=f"cannot be made in {path}"):
        import_interactions(path, path / "out")


def test_cli_data_import_reports_what_became_of_every_row(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["user_id,item_id,rating,review", "a,x,5,good", "a,x,4,better", "b,x,1,bad", "oops", "c,x,4,", "c,y,5,fine"]
    Path("x.csv").write_text("\n".join(lines))
    Path("i.csv").write_text("item_id,title\nx,X\nz,Z\n")
    options = ["--min-rating", "2", "--seed", "3", "--ratios", "1", "0", "1", "--items", "i.csv", "--skip-malformed"]
    command = ["data", "import", "--interactions", "x.csv", "--out", "import", *options]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err == "" and "x.csv:5: want 4 columns, got 1" in out and out.endswith("written to import\n")
    lines = [re.match(r"(?P<label>.*?)  +(?P<number>\d+)", line) for line in out.splitlines()[:-1]]
    assert [(line["label"], int(line["number"])) for line in lines] == [
        ("interactions", 6), ("- malformed", 1), ("- rated below 2", 1), ("- repeated", 1), ("= kept", 3),
        ("  train", 2), ("  valid", 0), ("  test", 1),
        ("item texts", 2), ("- malformed", 0), ("- without interactions", 1), ("- repeated", 0), ("= with text", 1),
        ("reviews", 3), ("- without interaction", 0), ("- repeated", 1), ("= reviews kept", 2),
    ]  # fmt: skip
    assert main([*command, "--json", "--force"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        report["kept"]["interactions"] == 3 and report["settings"]["ratios"] == [1, 0, 1] and report["out"] == "import"
    )
    assert main(["data", "./import", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["users"], facts["items_with_text"], facts["users_with_text"], facts["reviews"]) == (2, 1, 0, 2)


def test_cli_data_import_errors_and_help(tmp_path, capsys):
    path = write(tmp_path / "x.csv", [("a", "x")], ("who", "what"))
    assert main(["data", "import", "--interactions", str(path), "--out", str(tmp_path / "o")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("prorec-fast: error: ") and err.count("\n") == 1 and "--user-column" in err
    (tmp_path / "x.txt").write_text("user\titem\na\tx\n")
    words = ["data", "import", "--interactions", str(tmp_path / "x.txt"), "--delimiter", "\\t"]
    assert main([*words, "--out", str(tmp_path / "o")]) == 0 and "= kept" in capsys.readouterr().out
    for words in (["data", "import", "--help"], ["data", "--help"]):
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 0 and "import" in capsys.readouterr().out
    from prorec_fast.cli import parser

    arguments = parser.make_parser().parse_args(["data import", "--interactions", "x", "--out", "y"])
    given = vars(arguments).keys()
    assert {field for field in ImportSettings.__dataclass_fields__} <= given
