"""`prorec-fast profile`: write profiles, embed them, report on them; any of these or one after the other."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .progress import CostProgress, run_progress, show_estimates, spent_in_words
from .service_options import CHAT_OPTIONS, chat_settings, forget_batches, require_effect, service_settings, store_path

if TYPE_CHECKING:
    from prorec_fast.profiles import EmbedSettings, Prices
    from prorec_fast.profiles.embed import Embedded
    from prorec_fast.profiles.embed_folder import EmbedEstimate, EmbedReport
    from prorec_fast.profiles.store import Spent
    from prorec_fast.profiles.write import Report, WriteSettings


def run_profile(arguments: argparse.Namespace) -> int:
    """What the options ask for, in order; 1 if something is left to be done by another run."""
    from prorec_fast.profiles import Prices

    _check_report(arguments)
    steps = [step for option, step in _STEPS.items() if getattr(arguments, option)]
    if not steps:
        raise ValueError(
            "say what to do: --model M writes profiles, --embed-model M embeds them, --report looks at them"
        )
    require_effect(arguments, (*CHAT_OPTIONS, "sides"), "model")
    require_effect(arguments, ("dimensions", "whiten", "device"), "embed_model")
    if arguments.embed_model is not None:
        from prorec_fast.profiles.embed_folder import check_folder

        check_folder(Path(arguments.data))  # before texts are paid for
    prices, found, complete = Prices.load(arguments.prices), {}, True
    for step in steps:
        if arguments.dry_run and step is _report:
            continue  # what it would be on may not be there yet
        name, result, complete = step(arguments, Path(arguments.data), prices)
        found[name] = result
        if not complete:
            break
    if arguments.json:
        print(json.dumps(found, indent=1))
    return 0 if complete else 1


def _check_report(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is paid for, what could not be drawn after it."""
    if arguments.report and arguments.dry_run and arguments.model is None and arguments.embed_model is None:
        raise ValueError("--dry-run: a report asks nobody and costs nothing; leave it out")
    if arguments.plot is None:
        return
    if not arguments.report:
        raise ValueError("--plot: draws what --report finds; ask for that, too")
    if arguments.model is not None and arguments.num_profiles == 1:
        raise ValueError("--plot: of one profile each there are no cosines to draw")
    if not Path(arguments.plot).absolute().parent.is_dir():
        raise ValueError(f"--plot: the folder of {arguments.plot} is not there")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('--plot: matplotlib is not installed; pip install "prorec-fast[plot]"')


Step = tuple[str, Any, bool]  # the name of what was done, its result as plain values, whether it is complete


def _write(arguments: argparse.Namespace, folder: Path, prices: Prices) -> Step:
    chat, settings = chat_settings(arguments, arguments.model), _write_settings(arguments)
    store = store_path(arguments, folder)
    if arguments.dry_run:
        from prorec_fast.profiles.estimate import estimate_profiles

        batch = arguments.transport == "batch"
        found = estimate_profiles(folder, chat, settings, store=store, prices=prices, batch=batch)
        if not arguments.json:
            show_estimates(found)
        return "write", {side: one.as_json() for side, one in found.items()}, True
    from prorec_fast.profiles.write import FAILURES, write_profiles

    forget_batches(arguments, store)
    progress = run_progress()
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
    if not arguments.json:
        _show_report(report)
    _say_what_is_left(report.complete)
    empty = [name for name, side in report.sides.items() if report.complete and not side.written]
    for name in empty:
        print(f"no {name} has a profile; {folder / FAILURES} says why", file=sys.stderr)
    return "write", report.as_json(), report.complete and not empty


def _say_what_is_left(complete: bool) -> None:
    if not complete:
        print("not complete: the same command goes on, and pays for nothing twice", file=sys.stderr)


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


def _show_report(report: Report) -> None:
    for name, side in report.sides.items():
        failed = "".join(f", {count} {kind}" for kind, count in sorted(side.failed.items()))
        left = f", {side.left} not asked yet" if side.left else ""
        print(f"{name}s: {side.written} of {side.total} have profiles{failed}{left}")
    if any(side.failed for side in report.sides.values()):
        print("the reasons are in the last file below; --retry-failed asks, and pays for, the malformed anew")
    print(f"paid for {report.spent.answers} answers: {spent_in_words(report.spent)}")
    for path in report.files:
        print(f"written: {path}")
    if report.stopped is not None:
        print(f"stopped: {report.stopped}", file=sys.stderr)


def _embed(arguments: argparse.Namespace, folder: Path, prices: Prices) -> Step:
    from prorec_fast.profiles import EmbedSettings, embed_profiles

    settings = EmbedSettings(arguments.embed_model, arguments.dimensions, arguments.max_chars)
    store = store_path(arguments, folder)
    if arguments.dry_run:
        return "embed", _embed_estimate(arguments, folder, settings, store, prices), True
    shown: list[CostProgress] = []

    def progress(embedded: Embedded, spent: Spent) -> None:
        if not shown:
            shown.append(CostProgress("texts", embedded.total))
        shown[0](embedded.done, len(embedded.failures), spent)

    try:
        report = embed_profiles(
            folder,
            settings,
            name=arguments.vectors,
            whiten=arguments.whiten,
            service=service_settings(arguments),
            store=store,
            prices=prices,
            budget=arguments.budget,
            device=arguments.device,
            progress=progress,
        )
    finally:
        for one in shown:
            one.close()
    if not arguments.json:
        _show_embedded(report)
    _say_what_is_left(report.complete)
    return "embed", report.as_json(), report.complete


def _embed_estimate(
    arguments: argparse.Namespace, folder: Path, settings: EmbedSettings, store: Path, prices: Prices
) -> dict[str, Any] | None:
    from prorec_fast.profiles import estimate_embeddings

    if arguments.model:  # what is to be embedded is not written yet
        if not arguments.json:
            print("vectors: known when the profiles are written")
        return None
    found: EmbedEstimate = estimate_embeddings(folder, settings, store=store, prices=prices)
    if not arguments.json:
        price = "no price known" if found.dollars is None else f"about ${found.dollars:.2f}"
        print(
            f"vectors: {found.texts} texts, {found.distinct} of them different, {found.stored} there already; "
            f"{found.requests} requests, {found.tokens:,} tokens, {price}; nothing was sent"
        )
    return found.as_json()


def _show_embedded(report: EmbedReport) -> None:
    cut = f", {report.cut} cut to the longest length" if report.cut else ""
    print(f"vectors: {report.embedded} of {report.distinct} texts ({report.reused} were there already){cut}")
    print(f"paid for {report.spent.answers} calls: {spent_in_words(report.spent)}")
    for line in report.failures[:5]:
        print(f"no vector: {line}", file=sys.stderr)
    if len(report.failures) > 5:
        print(f"no vector: {len(report.failures) - 5} more", file=sys.stderr)
    if report.file is not None:
        print(f"written: {report.file} ({report.provenance})")
    if report.stopped is not None:
        print(f"stopped: {report.stopped}", file=sys.stderr)


def _report(arguments: argparse.Namespace, folder: Path, prices: Prices) -> Step:
    from prorec_fast.profiles import plot_diversity, report_diversity

    found = report_diversity(folder, name=arguments.vectors, threshold=arguments.threshold)
    if not arguments.json:
        print(found.as_text())
    if arguments.plot is not None:
        plot_diversity(found, arguments.plot)
        print(f"written: {arguments.plot}", file=sys.stderr)
    return "report", found.as_json(), True


_STEPS = {"model": _write, "embed_model": _embed, "report": _report}
