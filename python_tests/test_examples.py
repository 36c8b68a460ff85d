"""The README's drop-in use: its lines are those of scripts in benchmarks/examples, where both forms have to agree."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "benchmarks" / "examples"

# A script, and what makes the form after another than the one before.
WRONG = {
    "promax_loss": ("teacher=self.teacher, temperature=0.2)", "teacher=self.teacher, temperature=0.201)"),
    "contrast": ("items=items)", "items=items, temperature=0.201)"),
    "lightgcn": ("self.item_embedding, self.num_layers)", "self.item_embedding, self.num_layers + 1)"),
    "mult_vae": ("self.graph, rows=users)", "self.graph, rows=users.flip(0))"),
    "evaluation": ("topk(user, item, max(KS), exclude=self.train)", "topk(user, item, max(KS))"),
}


@pytest.fixture(autouse=True)
def examples(benchmarks, monkeypatch):
    pytest.importorskip("scipy", reason="existing code has scipy.sparse matrices")
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run(monkeypatch, script: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--tiny", "--rounds", "1", *arguments])
    runpy.run_path(str(script), run_name="__main__")


def source(name: str) -> str:
    return (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")


def marked(name: str, mark: str) -> str:
    """The lines of a script between marks, each run of them moved to the left, with an empty line between two."""
    runs = re.findall(rf"^( *)# {mark}\n(.*?)^\1# up to here$", source(name), re.MULTILINE | re.DOTALL)
    return "\n\n".join(dedent(lines).strip() for _, lines in runs)


def test_the_readme_shows_the_lines_of_every_script():
    from side_by_side import SCRIPTS

    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Drop-in use\n")[1].split("\n## ")[0]
    introduction, *parts = re.split(r"^\*\*\[.*\]\(benchmarks/examples/(\w+)\.py\)", section, flags=re.MULTILINE)
    assert set(parts[::2]) == set(SCRIPTS) == set(WRONG)
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        before, after, *_ = re.findall(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        assert before.strip() == marked(name, "these lines:") and after.strip() == marked(name, "become:"), name
    titles = [re.search(r'compare\("(.*?)"', source(name))[1] for name in SCRIPTS]
    rows = re.findall(r"^\| \[(.*)\]\(benchmarks/examples/(\w+)\.py\) \|", section, re.MULTILINE)
    assert rows == list(zip(titles, SCRIPTS, strict=True))
    imported = {}
    exec(re.search(r"^```python\n(.*?)^```$", introduction, re.MULTILINE | re.DOTALL)[1], imported)
    for name in SCRIPTS:
        used = re.findall(r"\b(losses|BipartiteGraph|propagate|topk|ranking_metrics)\b", marked(name, "become:"))
        assert used and set(used) <= set(imported), name


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", WRONG)
def test_before_and_after_agree(name, monkeypatch, capsys):
    import side_by_side

    monkeypatch.setattr(side_by_side, "_found", lambda *_: {"before": 3 * 2**20, "after": None})
    run(monkeypatch, EXAMPLES / f"{name}.py")
    agreement, before, after = capsys.readouterr().out.splitlines()
    error = float(re.search(r": before and after agree to (\S+)$", agreement)[1])
    assert error < 1e-4
    assert re.fullmatch(r"before +\d+\.\d\d ms +3 MiB beyond what there was", before)
    assert re.fullmatch(r"after +\d+\.\d\d ms +unknown beyond what there was", after)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", WRONG)
def test_what_differs_is_never_timed(name, monkeypatch, capsys, tmp_path):
    right, wrong = WRONG[name]
    script = tmp_path / f"{name}.py"
    text = source(name)
    assert text.count(right) == 1
    script.write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"before and after differ by .*, which is more than"):
        run(monkeypatch, script, "--json", "times")
    assert capsys.readouterr().out == ""


def test_side_by_side_prints_the_table(monkeypatch, capsys):
    """From processes; those for times under one allocator, to save some."""
    import timing

    monkeypatch.setattr(timing, "ALLOCATORS", {"default": {}})
    run(monkeypatch, EXAMPLES / "side_by_side.py", "mult_vae")
    head, line, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == line.count("|") == row.count("|") == 7
    cells = r" \| ".join([r"\| \[.*\]\(benchmarks/examples/mult_vae.py\)", r"\S+ ms", r"\S+ ms", r"\S+"])
    assert re.fullmatch(cells + r" \| (\d+ MiB|unknown) \| (\d+ MiB|unknown) \|", row)


def test_a_row_of_the_table(monkeypatch):
    import side_by_side
    from timing import EXACT_MEMORY, TUNED

    def found(script, what, environment, arguments):
        if what == "memory":
            assert environment == EXACT_MEMORY
            return {"before": 300 * 2**20, "after": None}
        before, after = (30.0, 4.0) if environment == TUNED else (99.6, 10.0)
        return {"title": "T", "before": before, "after": after}

    monkeypatch.setattr(side_by_side, "_found", found)
    row = side_by_side.row("mult_vae", None)
    assert row == "| [T](benchmarks/examples/mult_vae.py) | 100 / 30 ms | 10 / 4 ms | 10 / 7.5 | 300 MiB | unknown |"


def test_memory_is_that_of_its_side():
    import side_by_side

    if (extra := side_by_side._memory(lambda at: (lambda: torch.ones(2**24), lambda: None), None))["before"] is None:
        pytest.skip("the system does not tell")
    assert extra["before"] > 6e7 > 2e7 > extra["after"]  # of 2^26 bytes and none


def test_a_script_prints_json_alone(monkeypatch, capsys):
    for what, names in (("times", {"title", "before", "after"}), ("memory", {"before", "after"})):
        run(monkeypatch, EXAMPLES / "promax_loss.py", "--json", what)
        assert set(json.loads(capsys.readouterr().out)) == names


@pytest.mark.parametrize("arguments", [["light"], ["--rounds", "0"]])
def test_bad_use_is_one_line(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, EXAMPLES / "side_by_side.py", *arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("side_by_side.py: error: ")
