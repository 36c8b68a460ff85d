"""What a training shows: progress on standard error, a table of results on standard output."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from prorec_fast.train.loop import MONITOR
from prorec_fast.train.run_folder import Progress

COLUMNS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")


class EpochProgress:
    """A callback for `fit(on_epoch=...)`: a bar on a terminal, a line per evaluation elsewhere.

    Args:
        stored: how far the run that is resumed had come.
    """

    def __init__(self, label: str, epochs: int, stored: Progress | None = None) -> None:
        stored = stored or Progress()
        self.label, self.epochs = label, epochs
        self.best, self.best_epoch = max(stored.best_value, 0.0), stored.best_epoch
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=epochs, initial=stored.epoch, desc=label, unit="epoch", file=sys.stderr, dynamic_ncols=True
            )

    def __call__(self, record: Mapping[str, Any]) -> None:
        valid = record.get("valid")
        if valid is not None and (valid[MONITOR] > self.best or self.best_epoch == 0):
            self.best, self.best_epoch = valid[MONITOR], record["epoch"]
        if self.bar is not None:
            self.bar.update(record["epoch"] - self.bar.n)
            self.bar.set_postfix_str(f"loss {record['loss']:.4f}, best {MONITOR} {self.best:.4f} at {self.best_epoch}")
        elif valid is not None:
            print(
                f"{self.label}: epoch {record['epoch']}, loss {record['loss']:.4f}, valid {MONITOR} "
                f"{valid[MONITOR]:.4f} (best {self.best:.4f} at {self.best_epoch}), {record['seconds']:.2f} s/epoch",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def result_row(framework: str, seed: int, folder: str, run: Any) -> dict[str, Any]:
    """One run as plain values, for JSON and for `format_table`."""
    summary = run.summary()
    return {"framework": framework, "seed": seed, **summary.pop("test"), **summary, "notes": run.notes, "run": folder}


def merged_notes(rows: Sequence[Mapping[str, Any]], label: str) -> dict[str, str]:
    """What the runs rest on, each note once; where runs differ in one, it is told apart by their `label`."""
    texts: dict[str, dict[str, str]] = {}
    for row in rows:
        for name, text in row["notes"].items():
            texts.setdefault(name, {})[row[label]] = text
    found: dict[str, str] = {}
    for name, by_run in texts.items():
        if len(set(by_run.values())) == 1:
            found[name] = next(iter(by_run.values()))
        else:
            found |= {f"{name} ({run})": text for run, text in by_run.items()}
    return found


def format_table(model: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The runs by framework: means over seeds, with their spread, and each framework's gain over the base."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["framework"], []).append(row)
    lines = [["", *COLUMNS, "s/epoch", "best epoch"]]
    for framework, runs in groups.items():
        label = model if framework == "none" else f"{model} + {framework}"
        cells = [_spread([run[column] for run in runs]) for column in COLUMNS]
        seconds = f"{mean(run['seconds_per_epoch'] for run in runs):.3g}"
        epochs = ", ".join(f"{run['best_epoch']} of {run['epochs']}" for run in runs)
        lines.append([label, *cells, seconds, epochs])
    for framework in [name for name in groups if "none" in groups and name != "none"]:
        gains = []
        for column in COLUMNS:
            base, ours = (mean(run[column] for run in groups[name]) for name in ("none", framework))
            gains.append(f"{100 * (ours / base - 1):+.1f} %" if base > 0 else "-")
        lines.append(["change" if len(groups) == 2 else f"change, {framework}", *gains, "", ""])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for line in lines:
        first, *others = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        text.append("  ".join([first, *others]).rstrip())
    return "\n".join(text)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" if len(values) == 1 else f"{mean(values):.4f} ± {stdev(values):.4f}"
