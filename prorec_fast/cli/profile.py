"""`prorec-fast profile`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .progress import CostProgress
from .service_options import chat_settings, service_settings, store_path

if TYPE_CHECKING:
    from prorec_fast.profiles.estimate import Estimate
    from prorec_fast.profiles.store import Spent
    from prorec_fast.profiles.write import Report, SideReport, WriteSettings


def run_profile(arguments: argparse.Namespace) -> int:
    """Write profiles; 1 if something is left to be done by another run."""
    from prorec_fast.profiles import Prices

    if arguments.model is None:
        raise ValueError("--model: say which model is to write the profiles")
    return _write(arguments, Path(arguments.data), Prices.load(arguments.prices))


def _write_settings(arguments: argparse.Namespace) -> WriteSettings:
    from prorec_fast.profiles.write import SIDES, WriteSettings

    return WriteSettings(
        num_profiles=arguments.num_profiles,
        domain=arguments.domain,
        prompts=arguments.prompts,
        sides=tuple(side for side in SIDES if arguments.sides is None or f"{side}s" in arguments.sides),
        attempts=arguments.attempts,
        retry_failed=arguments.retry_failed,
        max_reviews=arguments.max_reviews,
        max_items=arguments.max_items,
    )


def _write(arguments: argparse.Namespace, folder: Path, prices: Any) -> int:
    chat, settings = chat_settings(arguments, arguments.model), _write_settings(arguments)
    store = store_path(arguments, folder)
    if arguments.dry_run:
        from prorec_fast.profiles.estimate import estimate_profiles

        batch = arguments.transport == "batch"
        found = estimate_profiles(folder, chat, settings, store=store, prices=prices, batch=batch)
        _show_estimates(found, arguments)
        return 0
    from prorec_fast.profiles.write import write_profiles

    progress = _progress()
    try:
        report = write_profiles(
            folder,
            chat,
            settings,
            service=service_settings(arguments),
            store=store,
            prices=prices,
            budget=arguments.budget,
            transport=arguments.transport,
            poll=arguments.poll,
            progress=progress,
        )
    finally:
        progress.close()
    _show_report(report, as_json=arguments.json)
    return 0 if report.complete else 1


def _progress() -> Any:
    from prorec_fast.profiles.write import Progress

    class OneBarAfterTheOther(Progress):
        side, shown = "", None

        def update(self, side: str, report: SideReport, spent: Spent) -> None:
            if side != self.side:
                self.close()
                self.side, self.shown = side, CostProgress(f"{side}s", report.total)
            self.shown(report.total - report.left, sum(report.failed.values()), spent)

        def batches(self, open: int, requests: int, done: int) -> None:
            self.shown.batches(open, requests, done)

        def note(self, line: str) -> None:
            self.shown.note(line)

        def close(self) -> None:
            if self.shown is not None:
                self.shown.close()

    return OneBarAfterTheOther()


def _show_estimates(found: dict[str, Estimate], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps({side: one.as_json() for side, one in found.items()}, indent=1))
        return
    total, unknown = 0.0, False
    for side, one in found.items():
        price = "no price known" if one.dollars is None else f"about ${one.dollars:.2f}"
        total, unknown = total + (one.dollars or 0.0), unknown or one.dollars is None
        silent = f", of {one.nothing_to_say} of them nothing is said" if one.nothing_to_say else ""
        print(
            f"{side}s: {one.nodes} to ask about{silent}; {one.requests} requests ({one.stored} answers are there "
            f"already), {one.prompt_tokens:,} + {one.completion_tokens:,} tokens, {price}"
        )
    by = "this model's answers so far" if all(one.calibrated for one in found.values()) else "4 characters a token"
    price = "give a file of --prices" if unknown else f"about ${total:.2f}"
    print(f"in all: {price}; tokens by {by}, answers of the usual length, none asked twice; nothing was sent")


def _show_report(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
        return
    for name, side in report.sides.items():
        failed = "".join(f", {count} {kind}" for kind, count in sorted(side.failed.items()))
        left = f", {side.left} not asked yet" if side.left else ""
        print(f"{name}s: {side.written} of {side.total} have profiles{failed}{left}")
    spent = report.spent
    tokens = f"{spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens"
    print(f"paid for {spent.answers} answers: {tokens}, ${spent.dollars:.4f}")
    for path in report.files:
        print(f"written: {path}")
    if report.stopped is not None:
        print(f"stopped: {report.stopped}", file=sys.stderr)
    if not report.complete:
        print("not complete: the same command goes on, and pays for nothing twice", file=sys.stderr)
