"""`prorec-fast train`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prorec_fast.data import Dataset, load
from prorec_fast.train import RunError, fit
from prorec_fast.train.evaluation import Evaluator
from prorec_fast.train.run_folder import CONFIG, RunFolder, read_json, write_json

from .report import EpochProgress, format_table, merged_notes, result_row
from .settings import Settings, pick_device, read_settings

if TYPE_CHECKING:
    import torch


def run_train(arguments: argparse.Namespace) -> int:
    """Train every framework with every seed, print the comparison, leave one run folder each."""
    settings = read_settings(arguments)
    device = pick_device(settings.device)
    data = load(settings.data)
    out = _new_folder(data.name) if arguments.out is None else Path(arguments.out)
    if not arguments.resume:
        if (out / CONFIG).exists():
            raise RunError(f"{out}: already holds a run; continue it with --resume, or choose another --out")
        _rehearse(settings, data, device)
    _claim(out, settings, data, resume=arguments.resume)
    _say(f"data {data.name}: {data.num_users} users x {data.num_items} items, {data.train.num_edges} interactions")
    rows = []
    try:
        for seed in settings.seeds:
            for framework in settings.frameworks:
                rows.append(_train_one(settings, data, device, framework, seed, out, resume=arguments.resume))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"continue with: prorec-fast train --resume --out {shlex.quote(str(out))}") from None
    notes = merged_notes(rows, "framework")
    result = {
        "data": data.name,
        "model": settings.model,
        "preset": settings.preset,
        "notes": notes,
        "results": rows,
        "out": str(out),
    }
    write_json(out / "results.json", result)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print(format_table(settings.model, rows))
        for name, text in notes.items():
            print(f"{name}: {text}")
        print(f"test split, data {data.name}, preset {settings.preset}; written to {out}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _new_folder(name: str) -> Path:
    base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}-{count}")
    return folder


def _rehearse(settings: Settings, data: Dataset, device: torch.device) -> None:
    """Set everything up once, so that what cannot start is refused before a folder is made or an hour is spent."""
    for split in ("valid", "test"):
        Evaluator(data, split, device)
    for framework in settings.frameworks:
        settings.build_framework(framework, data).bind(settings.build_model(data, settings.seeds[0]).to(device), data)


def _claim(out: Path, settings: Settings, data: Dataset, *, resume: bool) -> None:
    """Make the run folder and note the settings in it, which is what --resume reads."""
    noted = {**asdict(settings), "data": data.source}
    if resume:  # of other data the runs are to judge; until then the noted source stands
        noted["data"] = read_json(out / CONFIG)["settings"]["data"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / CONFIG, {"settings": noted})
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}); choose another place with --out") from error


def _train_one(
    settings: Settings, data: Dataset, device: torch.device, framework: str, seed: int, out: Path, *, resume: bool
) -> dict[str, Any]:
    folder = out / (framework if len(settings.seeds) == 1 else f"{framework}-seed{seed}")
    label = settings.model if framework == "none" else f"{settings.model} + {framework}"
    training = settings.training()
    stored = RunFolder(folder).load_progress() if resume else None
    progress = EpochProgress(f"{label}, seed {seed}", training["epochs"], stored)
    try:
        run = fit(
            settings.build_model(data, seed),
            data,
            settings.build_framework(framework, data),
            seed=seed,
            device=device,
            out=folder,
            resume=resume,
            on_epoch=progress,
            **training,
        )
    finally:
        progress.close()
    return result_row(framework, seed, str(folder), run)
