"""Whole trainings of LightGCN, ProMax, ProEx and Mult-VAE: ours until validation stops it, and beside it the same
training in plain PyTorch as the field writes it (the package `baseline`), added to the results file.

    python benchmarks/end_to_end.py [NAME ...] [--device cpu|cuda] [--epochs N] [--baseline-epochs N] [--out FILE]
                                    [--seconds S] [--tiny]

First a step and an evaluation of both are compared: no speed on red. Then each training runs in a process of its own,
so that its memory is its own. On a CPU the baseline runs under glibc's allocator as it comes and tuned, ours as it
comes. A baseline takes hours on a CPU, so by default it is timed: for a few epochs before ours, and for as many after
it, so that a machine that changes meanwhile shows in the spread. What it would take for as many epochs and validations
as ours is then a product, `converged_at_our_epochs_s`, and no measurement.

The data are those in the folder PROREC_FAST_BENCH_DATA (see the README for its files), else a synthetic set of
Amazon-Book's size, whose metrics mean nothing beside published ones: only its times do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import add_out, opened
from same_training import BASELINE, assert_same_training
from sizes import OURS
from timing import ALLOCATORS
from training_lines import training_lines
from trainings import TIMED, TRAININGS, dataset, save, train_baseline, train_ours

import prorec_fast

SETTLED = {OURS: 3, BASELINE: 1}  # epochs before it; ours compile, capture and tune themselves in theirs
PREPARE = "prepare"
SECTION = "end_to_end"


def work(side: str, name: str, data: str, device: str, **settings: Any) -> dict[str, Any]:
    """What one process does: prepare the data, or train."""
    if side != PREPARE:
        train = train_ours if side == OURS else train_baseline
        return train(name, prorec_fast.data.load(data), device=device, **settings)
    found, training = dataset(name, **settings), TRAININGS[name]
    assert_same_training(name, found, device)
    return {
        "data": found.name,
        "folder": str(save(found, Path(data))),
        "sizes": {"users": found.num_users, "items": found.num_items, "edges": found.train.num_edges},
        "framework": training.framework(found).config(),
        "warmup_epochs": training.warmup_epochs(found),
    }


def in_a_process(environment: dict[str, str], **task: Any) -> dict[str, Any]:
    """What `work` gives there, or {"failed": why}. This one holds no data: a process starts with its parent's peak."""
    command = [sys.executable, __file__, "--worker", json.dumps(task)]
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": f"the process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, arguments: argparse.Namespace, time_left: Callable[[], float]) -> dict[str, Any]:
    """{"data", "sizes", "framework", "ours": ..., "baseline": {allocator: ...}}; else {"failed" or "left out": why}."""
    allocators = [*ALLOCATORS] if arguments.device == "cpu" else ["default"]
    epochs, wanted = arguments.baseline_epochs, arguments.epochs
    before = [(BASELINE, a, {"epochs": epochs, "timed": epochs < wanted}) for a in allocators]
    after = [(BASELINE, a, {"epochs": min(TIMED, epochs), "timed": True}) for a in allocators]
    planned = [*before, (OURS, "default", {"epochs": wanted}), *after]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        task = {"name": name, "device": arguments.device, "data": scratch}
        about = in_a_process({}, side=PREPARE, tiny=arguments.tiny, **task)
        if "failed" in about:
            return about
        task["data"] = about.pop("folder")
        for done, (side, allocator, settings) in enumerate(planned):
            share = time_left() / (len(planned) - done)
            if share > 0:
                print(f"{name}: {side} [{allocator}] ...", file=sys.stderr, flush=True)
                run = in_a_process(ALLOCATORS[allocator], side=side, seconds=share, **settings, **task)
                runs.setdefault((side, allocator), []).append(run)
    warmup_epochs = about.pop("warmup_epochs")
    found = {key: summary(same, SETTLED[key[0]], warmup_epochs) for key, same in runs.items()}
    failed = next((f"{side} [{a}]: {f['failed']}" for (side, a), f in found.items() if "failed" in f), None)
    if failed:
        return {"failed": failed}
    if (OURS, "default") not in found:
        return {"left out": "no time was left"}
    ours, baseline = found.pop((OURS, "default")), {allocator: f for (_, allocator), f in found.items()}
    for other in baseline.values():
        other["converged_at_our_epochs_s"] = at_our_epochs(other, ours)
    return {**about, "ours": ours, "baseline": baseline}


def summary(runs: list[dict[str, Any]], unsettled: int, warmup_epochs: int) -> dict[str, Any]:
    """Of runs of one training: the times of all their epochs, the result of the first."""
    for run in runs:
        if "failed" in run:
            return run
    first, records = runs[0], [record for run in runs for record in run["records"]]
    settled = [record for run in runs for record in run["records"][unsettled:]]

    def epochs(warm_up: bool) -> list[float]:
        """Their seconds; those of the first ones where there are no others."""
        of = ([r["seconds"] for r in some if (r["epoch"] <= warmup_epochs) == warm_up] for some in (settled, records))
        return next(filter(None, of), [])

    memory = {key: max(run[key] for run in runs) for key in first if key.endswith("_mib") and first[key] is not None}
    return {
        "epochs": len(first["records"]),
        "warm_up_epochs": sum(record["epoch"] <= warmup_epochs for record in first["records"]),
        "validations": sum("valid_seconds" in record for record in first["records"]),
        "first_epoch_s": first["records"][0]["seconds"],
        "epoch_s": spread(epochs(warm_up=False)),
        "warm_up_epoch_s": spread(epochs(warm_up=True)),
        "validation_s": spread([record["valid_seconds"] for record in records if "valid_seconds" in record]),
        **{key: first[key] for key in ("stopped", "start_to_test_s", "best_epoch", "test")},
        **memory,
    }


def spread(values: list[float]) -> dict[str, float] | None:
    """None where nothing was measured."""
    if not values:
        return None
    low, q1, median, q3, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"median": median, "q1": q1, "q3": q3, "min": low, "max": high, "count": len(values)}


def at_our_epochs(baseline: dict[str, Any], ours: dict[str, Any]) -> float | None:
    """A product and no measurement: the baseline's medians times ours' epochs and validations, and one test."""
    if ours["test"] is None:
        return None
    counts = {
        "warm_up_epoch_s": ours["warm_up_epochs"],
        "epoch_s": ours["epochs"] - ours["warm_up_epochs"],
        "validation_s": ours["validations"] + 1,
    }
    if any(count and baseline[key] is None for key, count in counts.items()):
        return None
    return sum(count * baseline[key]["median"] for key, count in counts.items() if count)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"want a positive integer, got {text}")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRAININGS)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=positive, default=1000, metavar="N", help="ours train for at most so many")
    parser.add_argument(
        "--baseline-epochs", type=positive, default=TIMED, metavar="N", help=f"default: {TIMED}, to time"
    )
    add_out(parser)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="share out so many among all trainings")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed: a test of this file")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(**arguments.worker)))
        return 0
    unknown = [name for name in arguments.names if name not in TRAININGS]
    if unknown:
        parser.error(f"NAME: want of {', '.join(TRAININGS)}, got {', '.join(unknown)}")
    names, deadline = arguments.names or [*TRAININGS], time.monotonic() + arguments.seconds
    record, code = opened(parser, arguments), 0
    for position, name in enumerate(names):
        end = time.monotonic() + (deadline - time.monotonic()) / (len(names) - position)
        found = measure(name, arguments, lambda end=end: end - time.monotonic())
        if "ours" in found:
            data = found.pop("data")
            found["commit"] = record.commit
            record.add(SECTION, data, {**record.content.get(SECTION, {}).get(data, {}), name: found})
            print(*training_lines(data, name, found), sep="\n", flush=True)
        else:
            ((what, why),) = found.items()
            print(f"{name}: {what}: {why}", flush=True)
            code = max(code, what == "failed")
    return code


if __name__ == "__main__":
    sys.exit(main())
