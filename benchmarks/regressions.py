"""What of ours got slower or larger from one results file to another of the same machine.

    python benchmarks/regressions.py OLD NEW

Slower is a median more than 5 % above the old one where even the new first quartile is above the old third; larger is
more than 5 % and a MiB; what was timed in a mode and is not any more is worse, too. An epoch and a validation of whole
trainings are compared alike, where both files have them. Cells and trainings that the new file does not have are named,
and what is not compared: what there was no time for, cells of another data set's graph, trainings with other settings,
times that other processes disturbed in either file, and those of scaling.py, which have no spread. Exit code: 0 nothing
got worse; 1 something did; 2 the files cannot be compared.
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
    """A line for each thing that got worse, of some cells, by default of all and of the trainings that both have.

    Raises:
        Incomparable: the machines or their numbers of threads differ, or nothing is in both.
    """
    for key in SAME:
        before, after = (content.get("machine", {}).get(key) for content in (old, new))
        if before != after:
            raise Incomparable(f"{key}: {before} in the old file, {after} in the new one")
    before, after = (content.get("cases", {}) for content in (old, new))
    both = [label for label in after if label in before and (labels is None or label in labels)]
    trainings = _trainings(old, new) if labels is None else {}
    if not both and not trainings and labels is None:
        raise Incomparable("cases, end_to_end: the files have none in common")
    lines = [line for label in both for line in _worse(label, before[label], after[label])]
    return lines + [line for label, pair in trainings.items() if _alike(*pair) for line in _longer(label, *pair)]


def _worse(label: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    if "failed" in after:
        return [] if "failed" in before else [f"{label}: failed: {after['failed']}"]
    if _of_other_data(before, after):
        return []
    lines = [
        f"{label} [{mode}] {name}: not timed any more"
        for mode, earlier in before.get("modes", {}).items()
        for name in earlier
        if name.startswith(OURS) and name not in after.get("modes", {}).get(mode, {}) and "left out" not in after
    ]
    for mode, times in after.get("modes", {}).items():
        earlier = before.get("modes", {}).get(mode, {})
        if disturbed(before, mode) or disturbed(after, mode):
            continue
        for name in (name for name in times if name.startswith(OURS) and name in earlier):
            a, b = ([of[name][f"{key}_ms"] for key in ("q1", "median", "q3")] for of in (earlier, times))
            if _slower(a, b):
                lines.append(f"{label} [{mode}] {name}: {_spread(a)} -> {_spread(b)} ms, x {b[1] / a[1]:.2f}")
    for name, mib in after.get("extra_mib", {}).items():
        earlier = before.get("extra_mib", {}).get(name)
        if name.startswith(OURS) and earlier is not None and mib > max(MARGIN * earlier, earlier + LEAST_MIB):
            lines.append(f"{label} {name}: {earlier:.4g} -> {mib:.4g} MiB")
    return lines


def _slower(before: list[float], after: list[float]) -> bool:
    """Of first quartiles, medians and third quartiles."""
    return after[0] > before[2] and after[1] > MARGIN * before[1]


def _spread(times: list[float]) -> str:
    return f"{times[1]:.4g} ({times[0]:.4g} .. {times[2]:.4g})"


def _trainings(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """{size, name: a training in the old file and in the new one}, of those in both."""
    before, after = (content.get("end_to_end", {}) for content in (old, new))
    return {
        f"{size}, {name}": (before[size][name], found)
        for size, trainings in after.items()
        for name, found in trainings.items()
        if name in before.get(size, {})
    }


def _alike(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return all(before.get(key) == after.get(key) for key in ("sizes", "framework"))


def _longer(label: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines = []
    for what, key in (("an epoch", "epoch_s"), ("a validation", "validation_s")):
        if before["ours"].get(key) and after["ours"].get(key):
            a, b = ([of["ours"][key][name] for name in ("q1", "median", "q3")] for of in (before, after))
            lines += [f"{label}: {what} {_spread(a)} -> {_spread(b)} s, x {b[1] / a[1]:.2f}"] if _slower(a, b) else []
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
        if "left out" in after[label]:
            lines.append(f"{label}: in the new file something is left out: {after[label]['left out']}")
        modes = [mode for mode in after[label].get("modes", {}) if mode in before[label].get("modes", {})]
        lines += [
            f"{label} [{mode}]: disturbed by other processes, not compared"
            for mode in modes
            if disturbed(before[label], mode) or disturbed(after[label], mode)
        ]
    return lines


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: regressions.py OLD NEW", file=sys.stderr)
        return 2
    try:
        old, new = (read(Path(name)) for name in sys.argv[1:])
        worse, others = compare(old, new), not_compared(old, new, old.get("cases", ()))
        both = _trainings(old, new)
        others += [f"{label}: not in the new file" for label in _trainings(old, old) if label not in both]
        unlike = [label for label, pair in both.items() if not _alike(*pair)]
        others += [f"{label}: of other settings in the new file, not compared" for label in unlike]
        others += ["scaling: without a spread, not compared"] if "scaling" in old and "scaling" in new else []
    except (OSError, ValueError, Incomparable) as error:
        print(f"regressions.py: error: {error}", file=sys.stderr)
        return 2
    print(*others, *worse, f"{len(worse)} got worse", sep="\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
