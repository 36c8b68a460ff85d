"""The README's tables of operations and of whole trainings, from a results file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sizes import COMPILED, EAGER, OURS, SIZES

from prorec_fast.cli.bench_options import PASSES

SIZE = "amazon_book"
# {what two modes are called: the modes}: as a device comes, and as it serves everyone best.
MODES = {
    ("default", "tuned"): ("default", "tuned"),
    ("called", "captured"): ("called, L2 flushed", "captured, L2 flushed"),
}
# What is written in practice, where nobody would run the definition.
WRITTEN = {
    "proex_evaluation": "eager, MLP for every 1024 users",
    "propagate": "COO, uncoalesced",
    "topk": "mm + mask + torch.topk",
}
# What is made of several operations.
TITLES = {
    "batch_uniformity": "ProEx's batch uniformity",
    "epoch_batches": "an epoch's negatives and batches",
    "evaluation": "full-ranking evaluation with metrics",
    "info_nce_blocks": "the four InfoNCE blocks of a ProMax step",
    "mult_vae_step": "a Mult-VAE step",
    "proex_evaluation": "ProEx full-ranking evaluation",
    "proex_step": "a ProEx step on LightGCN",
    "profile_mlp": "ProEx's MLP",
    "promax_step": "a ProMax step on LightGCN",
}


TRAININGS = {
    "lightgcn": "LightGCN",
    "promax": "LightGCN + ProMax",
    "proex": "LightGCN + ProEx",
    "mult_vae": "Mult-VAE",
}


@dataclass(frozen=True)
class Row:
    """An operation's {provider: milliseconds} in the first mode and in the second, and {provider: MiB}."""

    title: str
    variant: str
    definition: str
    first: dict[str, float]
    second: dict[str, float]
    extra_mib: dict[str, float]

    def others(self, of: dict[str, float], compiled: bool) -> dict[str, float]:
        """What is neither the definition nor ours: torch.compile's forms, or all but those."""
        names = [name for name in of if name not in (self.definition, EAGER) and not name.startswith(OURS)]
        return {name: of[name] for name in names if compiled == (COMPILED in name)}


def called(content: dict[str, Any]) -> tuple[str, str]:
    """What the modes of a results file are called."""
    timed = {mode for case in content.get("cases", {}).values() for mode in case.get("modes", ())}
    return next((names for names, modes in MODES.items() if timed.issuperset(modes)), ("default", "tuned"))


def rows(content: dict[str, Any], size: str = SIZE) -> list[Row]:
    """Of the cases at a size in float32: with a backward pass where that was timed."""
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    for case in content.get("cases", {}).values():
        if "failed" not in case and (case["size"], case["precision"]) == (size, "float32"):
            key = case["operation"], case["variant"]
            if key not in chosen or case["pass"] == "forward+backward":
                chosen[key] = case
    found = []
    for (operation, variant), case in chosen.items():
        first, second = (
            {provider: times["median_ms"] for provider, times in case["modes"].get(mode, {}).items()}
            for mode in MODES[called(content)]
        )
        definition = next((name for name in (WRITTEN.get(operation), *first) if name in first), OURS)
        if OURS in first and OURS in second and definition != OURS:
            title = TITLES.get(operation, f"`{operation}`")
            found.append(Row(title, variant, definition, first, second, case.get("extra_mib", {})))
    return found


def table(content: dict[str, Any]) -> list[str]:
    first, second = called(content)
    both = f"{first} / {second}"
    lines = [
        f"| | eager: {both} | best stock form, {second} | ours: {both} | ratio: {both} / stock |",
        "|---" * 5 + "|",
    ]
    for row in rows(content):
        eager, ours = ([times.get(name) for times in (row.first, row.second)] for name in (row.definition, OURS))
        stock = {**row.others(row.second, True), **row.others(row.second, False)}
        best = min(stock, key=stock.__getitem__, default=None)
        ratios = [None if time is None else time / own for time, own in zip(eager, ours, strict=True)]
        ratios += [stock[best] / ours[1]] if best else []
        cells = (
            ", ".join(filter(None, (row.title, row.variant))),
            f"{'' if row.definition == EAGER else f'{row.definition} '}{durations(eager)}",
            f"{best} {durations([stock[best]])}" if best else "",
            durations(ours),
            " / ".join(map(two_digits, ratios)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def forward_table(content: dict[str, Any]) -> list[str]:
    """Forward alone, of what has a backward pass."""
    forward, both = (_of_pass(content, name) for name in PASSES)
    titles = {row.title for row in rows(both)}
    found = {size: [row for row in rows(forward, size) if row.title in titles] for size in SIZES}
    return _by_size(content, f"{called(content)[1]}, forward alone", found)


def sizes_table(content: dict[str, Any]) -> list[str]:
    """At the other sizes, with a backward pass where there is one."""
    return _by_size(content, called(content)[1], {size: rows(content, size) for size in SIZES if size != SIZE})


def _by_size(content: dict[str, Any], head: str, by_size: dict[str, list[Row]]) -> list[str]:
    """In the second mode: ours, and how many times as long the definition and the best other form take; a dash where
    that one does not run."""
    found = {size: {row.title: row for row in of if not row.variant} for size, of in by_size.items() if of}
    lines = [f"| {head} | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for row in (row for row in rows(content) if not row.variant):
        cells = [_at_a_size(of[row.title], row.definition) if row.title in of else "" for of in found.values()]
        lines += [f"| {row.title} | {' | '.join(cells)} |"] if any(cells) else []
    return lines


def _of_pass(content: dict[str, Any], name: str) -> dict[str, Any]:
    return {"cases": {label: case for label, case in content.get("cases", {}).items() if case["pass"] == name}}


def _at_a_size(row: Row, definition: str) -> str:
    ours, others = row.second[OURS], {name: ms for name, ms in row.second.items() if not name.startswith(OURS)}
    eager = others.pop(definition, None)
    ratios = [None if ms is None else ms / ours for ms in (eager, min(others.values(), default=None))]
    return f"{durations([ours])}: {' / '.join(map(two_digits, ratios))}"


def trainings_table(content: dict[str, Any]) -> list[str]:
    """Whole trainings: medians of an epoch and of a validation, all of it, and the peak memory; the baseline's, under
    each allocator, and ours."""
    lines = [
        "| | epoch: baseline, ours | ratio | validation: baseline, ours | ratio | whole: baseline, ours | ratio "
        "| epochs | recall@20 | peak memory: baseline, ours |",
        "|---" * 10 + "|",
    ]
    for name, found in content.get("end_to_end", {}).get(SIZE, {}).items():
        ours, baselines = found["ours"], found["baseline"].values()
        cells = [TRAININGS[name]]
        for seconds in (epoch_s, validation_s, whole_s):
            others, own = [seconds(each) for each in baselines], seconds(ours)
            ratios = [other / own if other and own else None for other in others]
            cells += [f"{_seconds(others)}, {_seconds([own])}", " / ".join(map(two_digits, ratios))]
        peaks = (" / ".join(map(_peak, some)) for some in (baselines, [ours]))
        recall = f"{ours['test']['recall@20']:.4f}" if ours["test"] else "-"
        cells += [str(ours["epochs"]), recall, f"{', '.join(peaks)} MiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def epoch_s(found: dict[str, Any]) -> float | None:
    """Of the epochs with every loss; of a training without, of all."""
    spread = found.get("epoch_s") or found.get("warm_up_epoch_s")
    return spread["median"] if spread else None


def validation_s(found: dict[str, Any]) -> float | None:
    spread = found["validation_s"]
    return spread["median"] if spread else None


def whole_s(found: dict[str, Any]) -> float | None:
    """Ours as measured, a baseline's as a product."""
    return found.get("converged_at_our_epochs_s", found["start_to_test_s"])


def _peak(found: dict[str, Any]) -> str:
    """MiB, of a device where one trained."""
    peak = found.get("peak_device_mib", found.get("peak_mib"))
    return "-" if peak is None else f"{peak:.0f}"


def _seconds(values: list[float | None]) -> str:
    return f"{' / '.join(map(two_digits, values))} s"


def durations(milliseconds: list[float | None]) -> str:
    """In one unit for all of them."""
    in_seconds = max(ms for ms in milliseconds if ms is not None) >= 5000
    scaled = [ms / 1e3 if in_seconds and ms is not None else ms for ms in milliseconds]
    return f"{' / '.join(map(two_digits, scaled))} {'s' if in_seconds else 'ms'}"


def two_digits(value: float | None) -> str:
    """Two significant digits, and all before the point; a dash for None."""
    if value is None:
        return "-"
    digits = 1 - math.floor(math.log10(float(f"{value:.2g}"))) if value > 0 else 0
    return f"{value:.{max(0, digits)}f}"


# What the README has.
TABLES = table, forward_table, sizes_table, trainings_table
