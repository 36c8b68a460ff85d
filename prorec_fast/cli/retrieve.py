"""`prorec-fast retrieve`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prorec_fast import retrieval
from prorec_fast.data.enriched import ENRICHED

from .progress import run_progress, show_estimates, spent_in_words
from .service_options import CHAT_OPTIONS, chat_settings, forget_batches, require_effect, service_settings, store_path

if TYPE_CHECKING:
    from prorec_fast.profiles.reranking import Reranking, RerankSettings

_RERANKING = (*CHAT_OPTIONS, "base_url", "budget", "prices", "store", "dry_run")


def run_retrieve(arguments: argparse.Namespace) -> int:
    """Find candidates, have them re-ranked if asked to, write the enrichment; 1 if that is left to another run."""
    require_effect(arguments, _RERANKING, "rerank_model")
    found = retrieval.search(arguments.data, num_similar=arguments.num_similar, whiten=arguments.whiten)
    out, choices = _out(arguments, found), None
    if arguments.rerank_model is not None:
        if found.folder is None:
            raise ValueError("--rerank-model: a built-in set has no texts for a model to choose by")
        if arguments.dry_run:
            _show_estimate(arguments, found)
            return 0
        choices = _reranked(arguments, found)
    return _finish(arguments, found, choices, out)


def _out(arguments: argparse.Namespace, found: retrieval.Found) -> Path:
    """Where to write, looked at before anything is paid for."""
    if arguments.out is None:
        if found.folder is None:
            raise ValueError("--out: say where the enrichment of a built-in set is to go")
        return found.folder / ENRICHED
    out = Path(arguments.out)
    if out.suffix != ".npz" or not out.absolute().parent.is_dir():
        raise ValueError(f"--out: want a file that ends in .npz, in a folder that is there, got {arguments.out}")
    return out


def _settings(arguments: argparse.Namespace) -> RerankSettings:
    from prorec_fast.profiles.reranking import RerankSettings

    return RerankSettings(
        num_candidates=arguments.num_candidates,
        domain=arguments.domain,
        prompts=arguments.prompts,
        attempts=arguments.attempts,
        retry_failed=arguments.retry_failed,
        max_items=arguments.max_items,
    )


def _show_estimate(arguments: argparse.Namespace, found: retrieval.Found) -> None:
    from prorec_fast.profiles import Prices
    from prorec_fast.profiles.reranking import estimate_reranking

    estimate = estimate_reranking(
        found,
        chat_settings(arguments, arguments.rerank_model),
        _settings(arguments),
        store=store_path(arguments, found.folder),
        prices=Prices.load(arguments.prices),
        batch=arguments.transport == "batch",
    )
    if arguments.json:
        print(json.dumps({"user": estimate.as_json()}, indent=1))
    else:
        show_estimates({"user": estimate})


def _reranked(arguments: argparse.Namespace, found: retrieval.Found) -> Reranking:
    from prorec_fast.profiles import Prices
    from prorec_fast.profiles.reranking import rerank_candidates

    store = store_path(arguments, found.folder)
    forget_batches(arguments, store)
    progress = run_progress()
    try:
        return rerank_candidates(
            found,
            chat_settings(arguments, arguments.rerank_model),
            _settings(arguments),
            service=service_settings(arguments),
            store=store,
            prices=Prices.load(arguments.prices),
            budget=arguments.budget,
            transport=arguments.transport,
            poll=arguments.poll,
            progress=progress,
        )
    finally:
        progress.close()


def _finish(arguments: argparse.Namespace, found: retrieval.Found, choices: Reranking | None, out: Path) -> int:
    complete = choices is None or choices.complete
    enrichment = found.choose(choices) if complete else None
    files = [] if enrichment is None else found.save(enrichment, choices, out=out)
    levels = found.levels(enrichment)
    report: dict[str, Any] = {
        "data": found.data.name,
        "users_with_budget": found.candidates.users.numel(),
        "candidates": found.candidates.items.numel(),
        "added": None if enrichment is None else enrichment.user.numel(),
        "levels": [asdict(level) for level in levels],
        "rerank": None if choices is None else choices.as_json(),
        "complete": complete,
        "files": files,
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        _show_levels(levels)
        if choices is not None:
            _show_choices(choices)
        for path in files:
            print(f"written: {path}")
    if not complete:
        print("not complete, nothing written: the same command goes on, and pays for nothing twice", file=sys.stderr)
    return 0 if complete else 1


def _show_levels(levels: list[retrieval.Level]) -> None:
    lines = [("interactions", "users", "with a budget", "candidates", "added")]
    for one in levels:
        span = str(one.low) if one.low == one.high else f"{one.low} to {one.high}"
        lines.append((span, *(f"{count:,}" for count in (one.users, one.with_budget, one.candidates, one.added))))
    totals = (sum(getattr(one, name) for one in levels) for name in ("users", "with_budget", "candidates", "added"))
    lines.append(("all", *(f"{total:,}" for total in totals)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *cells]))


def _show_choices(choices: Reranking) -> None:
    asked = choices.asked
    failed = "".join(f", {count} {kind}" for kind, count in sorted(asked.failed.items()))
    left = f", {asked.left} not asked yet" if asked.left else ""
    print(f"re-ranked: {asked.written} of {asked.total} users{failed}{left}")
    if choices.unasked:
        print(f"not asked: {choices.unasked} users, who have no more candidates than they may get")
    if asked.failed:
        print(f"users without a valid answer get nothing new; their reasons: {choices.ledger}")
    if choices.invented:
        print(f"dropped: {choices.invented} ids that were no candidates")
    print(f"paid for {choices.spent.answers} answers: {spent_in_words(choices.spent)}")
    if choices.stopped is not None:
        print(f"stopped: {choices.stopped}", file=sys.stderr)
