"""Trains LightGCN under ProMax from start to the converged test result, and adds it to the results file.

    python benchmarks/end_to_end.py [--device cpu|cuda] [--out FILE] [--seconds S] [--tiny]

The data are those in the folder PROREC_FAST_BENCH_DATA (see the README for its files), else a synthetic set of
Amazon-Book's size, whose metrics mean nothing beside published ones: only its times do.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from record import Record, default_file
from sizes import AMAZON_BOOK, TINY

import prorec_fast
from prorec_fast.data.synthetic import SyntheticConfig, make_synthetic

FRAMEWORK = prorec_fast.frameworks.ProMax(whitening="joint", warmup_epochs=40)
SETTLED = 3  # epochs before it compile, capture and tune themselves


class TimeIsUp(Exception):
    """The training ran out of the time that it was given."""


def dataset(tiny: bool) -> prorec_fast.data.Dataset:
    """With what is made once for a data set and not for a training: its profiles and its enriched graph."""
    folder = os.environ.get("PROREC_FAST_BENCH_DATA")
    data = prorec_fast.data.load(folder) if folder and not tiny else _synthetic(tiny)
    if not data.has_profiles:
        data = data.with_cooccurrence_profiles()
    assert data.enriched_graph.num_edges >= data.train_graph.num_edges
    return data


def _synthetic(tiny: bool) -> prorec_fast.data.Dataset:
    at = TINY if tiny else AMAZON_BOOK
    config = SyntheticConfig(num_users=at.num_users, num_items=at.num_items)
    interactions, profiles = make_synthetic(config)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "synthetic")
        place.mkdir()
        np.savez(place / "interactions.npz", **interactions)
        np.savez(place / "profiles_synthetic.npz", **profiles)
        return prorec_fast.data.load(place)


def train(data: prorec_fast.data.Dataset, device: str, seconds: float, epochs: int) -> dict[str, Any]:
    """Times of the parts of a training; without a test result where the time was up before it converged."""
    start, records = time.perf_counter(), []

    def on_epoch(record: Mapping[str, Any]) -> None:
        records.append(record)
        if time.perf_counter() - start > seconds:
            raise TimeIsUp

    model = prorec_fast.models.LightGCN(data, dim=AMAZON_BOOK.dim, num_layers=3)
    try:
        run = prorec_fast.fit(model, data, FRAMEWORK, epochs=epochs, device=device, on_epoch=on_epoch)
    except TimeIsUp:
        run = None
    whole = time.perf_counter() - start
    settled = records[SETTLED:] or records
    warm_up = [r["seconds"] for r in settled if r["epoch"] <= FRAMEWORK.warmup_epochs]
    every_loss = [r["seconds"] for r in settled if r["epoch"] > FRAMEWORK.warmup_epochs]
    validations = [r["valid_seconds"] for r in settled if "valid_seconds" in r]
    return {
        "data": {"name": data.name, "users": data.num_users, "items": data.num_items, "edges": data.train.num_edges},
        "framework": FRAMEWORK.config(),
        "epochs": len(records),
        "first_epoch_s": records[0]["seconds"],
        "epoch_s": {"warm-up": _spread(warm_up), "every loss": _spread(every_loss)},
        "validation_s": _spread(validations),
        "start_to_test_s": None if run is None else whole,
        "stopped": "time" if run is None else run.stopped,
        "best_epoch": None if run is None else run.best_epoch,
        "test": None if run is None else run.test,
    }


def _spread(values: list[float]) -> dict[str, float] | None:
    return {"median": median(values), "min": min(values), "max": max(values)} if values else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="the results file; default: benchmarks/results/<machine>.json")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="train for at most so many")
    parser.add_argument("--tiny", action="store_true", help="a size that says nothing about speed")
    arguments = parser.parse_args()
    data = dataset(arguments.tiny)
    found = train(data, arguments.device, arguments.seconds, 2 if arguments.tiny else 1000)
    Record(arguments.out or default_file(arguments.device), arguments.device).add("end_to_end", data.name, found)
    epoch = found["epoch_s"]["every loss"] or found["epoch_s"]["warm-up"]
    first = found["first_epoch_s"]
    print(f"{data.name}: {found['epochs']} epochs, median {epoch['median']:.4g} s, first {first:.4g} s")
    if found["test"] is None:
        print(f"{data.name}: not converged after {arguments.seconds:.0f} s")
        return 1
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in found["test"].items() if name.endswith("@20"))
    print(f"{data.name}: start to test {found['start_to_test_s']:.4g} s, best epoch {found['best_epoch']}, {metrics}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
