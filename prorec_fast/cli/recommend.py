"""`prorec-fast recommend`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from prorec_fast._files import replaced_atomically, tsv_line
from prorec_fast.data.texts import own_ids
from prorec_fast.ranking import topk
from prorec_fast.train import RunError, load_run

from .evaluate import run_folders
from .settings import pick_device

if TYPE_CHECKING:
    from prorec_fast.data import Dataset
    from prorec_fast.graph import BipartiteGraph
    from prorec_fast.train import StoredRun

_ROWS = 4096  # users ranked at a time


def run_recommend(arguments: argparse.Namespace) -> int:
    """The best new items of some users, or all, by their own ids."""
    run = load_run(_the_run(Path(arguments.run)), data=arguments.data, device=pick_device(arguments.device))
    folder = Path(run.data.source)
    if folder.is_dir():
        users, items = own_ids(folder, run.data.num_users, run.data.num_items)
    else:
        users, items = (list(map(str, range(count))) for count in (run.data.num_users, run.data.num_items))
    rows = _rows(users, arguments.users)
    lists = _ranked(run, rows, users, items, arguments.count)
    if arguments.out is None:
        _write(sys.stdout, lists, as_json=arguments.json)
    else:
        with replaced_atomically(Path(arguments.out)) as file:
            _write(file, lists, as_json=arguments.json)
        print(f"{len(rows)} users: written to {arguments.out}", file=sys.stderr)
    return 0


def _the_run(path: Path) -> Path:
    folders = run_folders(path)
    if len(folders) > 1:
        raise RunError(f"{path}: holds the runs {', '.join(folder.name for folder in folders)}; name one of them")
    return folders[0]


def _rows(users: Sequence[str], wanted: Sequence[str] | None) -> list[int]:
    if wanted is None:
        return list(range(len(users)))
    known = {key: row for row, key in enumerate(users)}
    unknown = [key for key in wanted if key not in known]
    if unknown:
        raise ValueError(f"--users: no user of the data set is called {unknown[0]!r}")
    return [known[key] for key in wanted]


def _ranked(
    run: StoredRun, rows: Sequence[int], users: Sequence[str], items: Sequence[str], count: int
) -> Iterator[dict[str, Any]]:
    with torch.no_grad():
        user, item = run.ranker.representation()
    known = _known(run.data).to(user.device)
    for start in range(0, len(rows), _ROWS):
        part = torch.tensor(rows[start : start + _ROWS], device=user.device)
        found = (table.cpu().tolist() for table in topk(user, item, count, exclude=known, users=part))
        for row, scores, places in zip(part.tolist(), *found, strict=True):
            pairs = zip(places, scores, strict=True)
            best = [{"item": items[place], "score": score} for place, score in pairs if place >= 0]
            yield {"user": users[row], "items": best}


def _known(data: Dataset) -> BipartiteGraph:
    """Every interaction of every split: what a user has already is no recommendation."""
    from prorec_fast.graph import BipartiteGraph

    edges = zip(*(split.edges() for split in (data.train, data.valid, data.test)), strict=True)
    users, items = (torch.cat(part) for part in edges)
    return BipartiteGraph.from_edges(users, items, data.num_users, data.num_items)


def _write(file: IO[str], lists: Iterator[dict[str, Any]], *, as_json: bool) -> None:
    """JSON lines, or tab-separated: user, rank from 1, item, score."""
    if not as_json:
        file.write("user\trank\titem\tscore\n")
    for one in lists:
        if as_json:
            file.write(json.dumps(one, ensure_ascii=False) + "\n")
            continue
        for rank, found in enumerate(one["items"], start=1):
            file.write(tsv_line((one["user"], rank, found["item"], f"{found['score']:.6g}")))
