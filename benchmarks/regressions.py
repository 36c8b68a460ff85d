"""What of ours got slower or larger from one results file to another of the same machine.

    python benchmarks/regressions.py OLD NEW

Slower is a median more than 5 % above the old one where even the new first quartile is above the old third; larger is
more than 5 % and a MiB; what was timed in a mode and is not any more is worse, too. Cells that the new file does not
have are named, and what is not compared: cells of another data set's graph, and times that other processes disturbed in
either file. Exit code: 0 nothing got worse; 1 something did; 2 the files cannot be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from record import disturbed, read
from sizes import OURS

SAME = ("processor", "threads", "instruction set", "gpu")
MARGIN, LEAST_MIB = 1.05, 1.0


class Incomparable(Exception):
    """Says why."""


def compare(old: dict[str, Any], new: dict[str, Any], labels: Collection[str] | None = None) -> list[str]:
    """A line for each thing that got worse, of some cells, by default of all that both have.

    Raises:
        Incomparable: the machines or their numbers of threads differ, or nothing is in both.
    """
    for key in SAME:
        before, after = (content.get("machine", {}).get(key) for content in (old, new))
        if before != after:
            raise Incomparable(f"{key}: {before} in the old file, {after} in the new one")
    before, after = (content.get("cases", {}) for content in (old, new))
    both = [label for label in after if label in before and (labels is None or label in labels)]
    if not both and labels is None:
        raise Incomparable("cases: the files have none in common")
    return [line for label in both for line in _worse(label, before[label], after[label])]


def _worse(label: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    if "failed" in after:
        return [] if "failed" in before else [f"{label}: failed: {after['failed']}"]
    if _of_other_data(before, after):
        return []
    lines = [
        f"{label} [{mode}] {name}: not timed any more"
        for mode, earlier in before.get("modes", {}).items()
        for name in earlier
        if name.startswith(OURS) and name not in after.get("modes", {}).get(mode, {})
    ]
    for mode, times in after.get("modes", {}).items():
        earlier = before.get("modes", {}).get(mode, {})
        if disturbed(before, mode) or disturbed(after, mode):
            continue
        for name in (name for name in times if name.startswith(OURS) and name in earlier):
            a, b = earlier[name], times[name]
            if b["q1_ms"] > a["q3_ms"] and b["median_ms"] > MARGIN * a["median_ms"]:
                lines.append(
                    f"{label} [{mode}] {name}: {_spread(a)} -> {_spread(b)} ms, x {b['median_ms'] / a['median_ms']:.2f}"
                )
    for name, mib in after.get("extra_mib", {}).items():
        earlier = before.get("extra_mib", {}).get(name)
        if name.startswith(OURS) and earlier is not None and mib > max(MARGIN * earlier, earlier + LEAST_MIB):
            lines.append(f"{label} {name}: {earlier:.4g} -> {mib:.4g} MiB")
    return lines


def _of_other_data(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return "data" in before and "data" in after and before["data"] != after["data"]


def not_compared(old: dict[str, Any], new: dict[str, Any], labels: Collection[str]) -> list[str]:
    """A line for each of the old file's cells, of some, that the new one lacks or has of other data, and for each mode
    that is disturbed."""
    before, after = (content.get("cases", {}) for content in (old, new))
    found = [label for label in labels if label in before]
    lines = [f"{label}: not in the new file" for label in found if label not in after]
    for label in (label for label in found if label in after):
        if _of_other_data(before[label], after[label]):
            data = (of[label]["data"] for of in (before, after))
            lines.append("{}: of the data {} in the old file, {} in the new one, not compared".format(label, *data))
            continue
        modes = [mode for mode in after[label].get("modes", {}) if mode in before[label].get("modes", {})]
        lines += [
            f"{label} [{mode}]: disturbed by other processes, not compared"
            for mode in modes
            if disturbed(before[label], mode) or disturbed(after[label], mode)
        ]
    return lines


def _spread(times: dict[str, float]) -> str:
    return f"{times['median_ms']:.4g} ({times['q1_ms']:.4g} .. {times['q3_ms']:.4g})"


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: regressions.py OLD NEW", file=sys.stderr)
        return 2
    try:
        old, new = (read(Path(name)) for name in sys.argv[1:])
        worse, others = compare(old, new), not_compared(old, new, old.get("cases", ()))
    except (OSError, ValueError, Incomparable) as error:
        print(f"regressions.py: error: {error}", file=sys.stderr)
        return 2
    print(*others, *worse, f"{len(worse)} got worse", sep="\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
