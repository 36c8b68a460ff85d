"""benchmarks/plot.py: figures and the tables of a made-up results file."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
from processes import HERE

pytest.importorskip("matplotlib", reason="figures need matplotlib")


@pytest.fixture(autouse=True)
def plot(benchmarks):
    import plot

    return plot


def case(operation: str, variant: str = "", size: str = "amazon_book", passes: str = "forward+backward",
         modes=("default", "tuned"), **times: tuple[float, float]) -> dict:  # fmt: skip
    """A case whose providers take `times` in the two modes, and hold as many MiB."""
    named = {name.replace("_", " "): both for name, both in times.items()}
    return {
        "operation": operation, "variant": variant, "size": size, "pass": passes, "precision": "float32",
        "modes": {
            mode: {name: {"median_ms": both[i]} for name, both in named.items() if both[i]}
            for i, mode in enumerate(modes)
        },
        "extra_mib": {name: both[0] for name, both in named.items()}, "skipped": {},
    }  # fmt: skip


def results() -> dict:
    eager, ours = "eager_reference", "ours"
    cases = {
        "a": case("distribution_kl", "forward alone", passes="forward", **{eager: (1.0, 1.0), ours: (1.0, 1.0)}),
        "b": case("distribution_kl", "", passes="forward", **{eager: (100.0, 80.0), ours: (10.0, 10.0)}),
        "c": case("distribution_kl", "", **{
            eager: (510.4, 189.2), "torch.compile": (147.0, 144.0), "torch.compile,_lse": (99.0, 87.0),
            "Liger-Kernel": (300.0, 250.0), ours: (32.8, 34.2), "ours,_another": (1.0, 1.0),
        }),
        "d": case("distribution_kl", "", passes="forward", **{eager: (100.0, 80.0), ours: (10.0, 10.0)}),
        "e": case("evaluation", "", **{"mm_+_mask": (8911.0, 7904.0), ours: (798.0, 749.0)}),
        "l": case("distribution_kl", size="yelp", passes="forward", **{eager: (30.0, 20.0), ours: (5.0, 5.0)}),
        "f": case("bpr", size="yelp", **{eager: (1.0, 1.0), ours: (1.0, 1.0)}),
        "i": case("distribution_kl", size="yelp", **{eager: (90.0, 40.0), "chunks": (40.0, 30.0), ours: (20.0, 20.0)}),
        "j": case("distribution_kl", size="large", chunks=(9e3, 6e3), ours=(2e3, 2e3)),
        "k": case("evaluation", size="yelp", **{"mm_+_mask": (20.0, 20.0), ours: (5.0, 5.0)}),
        "g": {"operation": "bpr", "variant": "", "size": "amazon_book", "pass": "forward", "precision": "float32",
              "failed": "differs"},
        "h": case("bpr", **{eager: (0.548, 0.351), ours: (0.61, 0.43)}) | {"precision": "tf32"},
    }  # fmt: skip
    curve = {"median_ms": [1.0, 4.0, 16.0], "extra_mib": [2.0, 0.0, None]}
    entry = {
        "values": [1024, 2048, 4096], "eager reference": curve, "ours": {key: v[:2] for key, v in curve.items()},
        "stopped": {"eager reference": "memory: it would hold 9 GiB, and there are 8"},
        "exponents": {"eager reference": {"time": 2.0, "memory": None}, "ours": {"time": 1.0, "memory": 1.0}},
    }  # fmt: skip
    training = {
        "ours": {"epoch_s": {"median": 0.5}, "validation_s": {"median": 0.045}, "epochs": 444, "peak_mib": 435.4,
                 "start_to_test_s": 148.2, "test": {"recall@20": 0.14488}},
        "baseline": {
            "default": {"epoch_s": {"median": 12.0}, "validation_s": {"median": 1.3}, "peak_mib": 662.0,
                        "start_to_test_s": None, "converged_at_our_epochs_s": 1375.2},
            "tuned": {"epoch_s": None, "warm_up_epoch_s": None, "validation_s": {"median": 0.7}, "peak_mib": 732.0,
                      "start_to_test_s": None, "converged_at_our_epochs_s": None},
        },
    }  # fmt: skip
    # On a device, which has no other allocator; the time was up before a validation.
    early = {"epoch_s": {"median": 0.5}, "validation_s": None, "epochs": 2, "start_to_test_s": None, "test": None,
             "peak_mib": 900.0, "peak_device_mib": 99.0}  # fmt: skip
    stopped = {"ours": early, "baseline": {"default": {**early, "converged_at_our_epochs_s": None}}}
    return {
        "machine": {}, "cases": cases, "scaling": {"topk": {"M": entry, "N": entry}, "propagate": {"edges": entry}},
        "end_to_end": {"amazon_book": {"lightgcn": training, "proex": stopped}},
    }  # fmt: skip


def size_of(file: Path) -> tuple[int, int]:
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) < 150_000
    return struct.unpack(">II", content[16:24])


def test_figures_are_drawn(plot, tmp_path, monkeypatch, capsys):
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(results()))
    monkeypatch.setattr(sys, "argv", ["plot.py", str(file), "--out", str(tmp_path / "figures")])
    assert plot.main() == 0
    said = capsys.readouterr()
    names = ["speed.png", "memory.png", "scaling.png", "end_to_end.png"]
    assert said.out.split() == [str(tmp_path / "figures" / name) for name in names] and not said.err
    for name in names:
        width, height = size_of(tmp_path / "figures" / name)
        assert 500 <= width <= 1600 and 150 <= height <= 1600, name


def test_many_curves_are_light(plot, tmp_path):
    (entry,) = results()["scaling"]["propagate"].values()
    content = {
        "scaling": {operation: {a: entry for o, a in plot.SHOWN if o == operation} for operation, _ in plot.SHOWN}
    }
    content["scaling"]["topk"]["N"] = entry  # of all, some are drawn
    titles = [axes.get_title() for axes in plot.scaling(content).axes if axes.get_title()]
    assert len(titles) == len(plot.SHOWN) and "topk, items" not in titles
    (file,) = plot.draw(content, tmp_path, ["scaling.png"])
    assert size_of(file) > (1300, 1000) and os.listdir(tmp_path) == ["scaling.png"]


def test_what_is_not_in_the_file_is_left_out(plot, tmp_path, capsys):
    content = results()
    for section, names in (("cases", ["speed.png", "memory.png"]), ("scaling", ["scaling.png"]),
                           ("end_to_end", ["end_to_end.png"])):  # fmt: skip
        written = plot.draw({section: content[section]}, tmp_path / section)
        assert [file.name for file in written] == names
        assert capsys.readouterr().err.count("plot.py: without ") == 4 - len(names)
    assert plot.draw({}, tmp_path / "none") == [] and not (tmp_path / "none").exists()
    failed = {"g": content["cases"]["g"]}
    assert plot.draw({"cases": failed}, tmp_path / "none", ["speed.png"]) == []


def test_speed_is_beside_ours(plot):
    (axes,) = plot.speed(results()).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "distribution_kl", "full-ranking evaluation with metrics"
    ]  # fmt: skip
    marks = {each.get_label(): dict(map(reversed, each.get_offsets().tolist())) for each in axes.collections}
    assert marks["eager PyTorch, default"] == pytest.approx({0: 510.4 / 32.8, 1: 8911 / 798})
    assert marks["eager PyTorch, tuned"] == pytest.approx({0: 189.2 / 34.2, 1: 7904 / 749})
    assert marks["torch.compile"] == pytest.approx({0: 87 / 34.2})
    assert marks["best other form or library"] == pytest.approx({0: 250 / 34.2})
    (axes,) = plot.memory(results()).axes
    marks = {each.get_label(): dict(map(reversed, each.get_offsets().tolist())) for each in axes.collections}
    assert marks["ours"] == pytest.approx({0: 32.8, 1: 798})
    assert marks["torch.compile"] == pytest.approx({0: 99.0})


def test_curves_have_exponents_and_an_end(plot):
    figure = plot.scaling(results())
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = ["topk, users", "topk, items", "propagate, edges"]
    assert [axes.get_title() for axes in shown] == [*titles, "", "", ""]
    _, _, time, memory, _, _ = shown
    assert [text.get_text() for text in time.get_legend().get_texts()] == [
        "eager ~ edges$^{2.00}$",
        "ours ~ edges$^{1.00}$",
    ]
    assert [line.get_marker() for line in time.lines] == ["s", "o"]
    assert [line.get_marker() for line in memory.lines] == ["s", "x", "o"]
    assert memory.lines[1].get_xydata().tolist() == [[1024, 2]]
    content = results()
    del content["scaling"]["propagate"], content["scaling"]["topk"]["M"]
    assert plot.scaling(content).axes[0].get_title() == "topk, items"


def test_epochs_are_beside_the_baseline(plot):
    (axes,) = plot.end_to_end(results()).axes
    assert [text.get_text() for text in axes.texts] == ["0.50 s", "0.50 s", "12 s  (24 x)", "0.50 s  (1.0 x)"]
    names = ["LightGCN\namazon_book", "LightGCN + ProEx\namazon_book"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names


def test_the_table(plot, tmp_path, monkeypatch, capsys):
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(results()))
    monkeypatch.setattr(sys, "argv", ["plot.py", str(file), "--table", "--out", str(tmp_path / "figures")])
    assert plot.main() == 0
    head, *lines = capsys.readouterr().out.splitlines()
    both = "default / tuned"
    assert head == f"| | eager: {both} | best stock form, tuned | ours: {both} | ratio: {both} / stock |"
    assert lines == [
        "|---|---|---|---|---|",
        "| `distribution_kl`, forward alone | 1.0 / 1.0 ms |  | 1.0 / 1.0 ms | 1.0 / 1.0 |",
        "| `distribution_kl` | 510 / 189 ms | torch.compile, lse 87 ms | 33 / 34 ms | 16 / 5.5 / 2.5 |",
        "| full-ranking evaluation with metrics | mm + mask 8.9 / 7.9 s |  | 798 / 749 ms | 11 / 11 |",
        "",
        "| tuned, forward alone | amazon_book | yelp |",
        "|---|---|---|",
        "| `distribution_kl` | 10 ms: 8.0 / - | 5.0 ms: 4.0 / - |",
        "",
        "| tuned | yelp | large |",
        "|---|---|---|",
        "| `distribution_kl` | 20 ms: 2.0 / 1.5 | 2000 ms: - / 3.0 |",
        "| full-ranking evaluation with metrics | 5.0 ms: 4.0 / - |  |",
        "",
        "| | epoch: baseline, ours | ratio | validation: baseline, ours | ratio | whole: baseline, ours | ratio "
        "| epochs | recall@20 | peak memory: baseline, ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| LightGCN | 12 / - s, 0.50 s | 24 / - | 1.3 / 0.70 s, 0.045 s | 29 / 16 | 1375 / - s, 148 s | 9.3 / - | 444 "
        "| 0.1449 | 662 / 732, 435 MiB |",
        "| LightGCN + ProEx | 0.50 s, 0.50 s | 1.0 | - s, - s | - | - s, - s | - | 2 | - | 99, 99 MiB |",
    ]
    assert not (tmp_path / "figures").exists()
    modes = "called, L2 flushed", "captured, L2 flushed"
    cases = {"a": case("bpr", modes=modes, eager_reference=(0.2, None), COO=(0.3, 0.12), ours=(0.1, 0.05))}
    head, _, row = plot.TABLES[0]({"cases": cases})
    assert head.startswith("| | eager: called / captured |")
    assert row == "| `bpr` | 0.20 / - ms | COO 0.12 ms | 0.10 / 0.050 ms | 2.0 / - / 2.4 |"


def test_the_readme_has_the_tables_of_the_results(plot, benchmarks):
    file = benchmarks / "results" / "cpu-x86_64.json"
    if not file.exists():
        pytest.skip("the results are not here")
    content, readme = json.loads(file.read_text()), (HERE.parent / "README.md").read_text(encoding="utf-8")
    for table, least in zip(plot.TABLES, (30, 12, 20, 6), strict=True):
        lines = table(content)
        assert "\n".join(lines) in readme and len(lines) >= least


@pytest.mark.parametrize(
    "value, text", [(510.4, "510"), (33.4, "33"), (9.96, "10"), (1.04, "1.0"), (0.551, "0.55"), (0.0512, "0.051")]
)
def test_two_digits(plot, value, text):
    assert plot.two_digits(value) == text


def test_a_file_that_is_not_there(plot, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as stopped:
        plot.main()
    assert stopped.value.code == 2 and "none.json" in capsys.readouterr().err
