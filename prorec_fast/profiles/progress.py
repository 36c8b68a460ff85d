"""How far a run is, over all the times it was begun: what is finished, what failed and why, what was spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .session import Node
from .store import Failure, Spent, Store

AGAIN = "unanswered"  # the kind of failure that the next run tries to mend unasked


@dataclass
class SideReport:
    """How far one side is.

    Attributes:
        written: nodes with profiles, those of former runs included.
        failed: kind -> nodes without, each in the ledger with its reason.
        left: nodes not yet asked.
    """

    total: int
    written: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.total - self.written - sum(self.failed.values())

    @property
    def complete(self) -> bool:
        """Whether another run would change nothing."""
        return not (self.left or self.failed[AGAIN])

    def as_json(self) -> dict[str, Any]:
        return {"total": self.total, "written": self.written, "failed": dict(self.failed), "left": self.left}


class Progress:
    """Hears how a run goes; a subclass overrides what it is interested in."""

    def update(self, side: str, report: SideReport, spent: Spent) -> None:
        """Of "item" or "user" something has changed; `spent` is the run's so far."""

    def batches(self, open: int, requests: int, done: int) -> None:
        """Batches that the service is at, their requests, and how many of those it has done."""

    def note(self, line: str) -> None:
        """Something that the user is to know, and that stops nothing."""


class RunState:
    """The store's knowledge of one run, kept up to date: all of an `Outcome` but `finished`.

    Attributes:
        run: what finished nodes and failures are kept under: a hash of all that shapes them.
        reports: by side.

    Args:
        totals: nodes by side.
        retry_failed: ask once more where a former run had no valid answer.
    """

    def __init__(self, run: str, totals: Mapping[str, int], *, retry_failed: bool) -> None:
        self.run, self.retry_failed = run, retry_failed
        self.reports = {side: SideReport(total) for side, total in totals.items()}

    def open(self, store: Store, progress: Progress | None = None, budget: float | None = None) -> None:
        self.store, self.progress, self.spent_before = store, progress or Progress(), store.spent()
        if budget is not None and self.spent_before.unpriced:
            unpriced = self.spent_before.unpriced
            self.note(f"the budget does not count {unpriced} answers that were paid for without a known price")

    def spent(self) -> Spent:
        """Since `open`."""
        return self.store.spent() - self.spent_before

    def begin(self, side: str) -> None:
        """Count what former runs have done."""
        self.side, report = side, self.reports[side]
        self.done = self.store.finished_rows(self.run, side)
        self.failures = self.store.failures(self.run, side)
        report.written = len(self.done)
        for failure in self.failures.values():
            if self._settled(failure):
                report.failed[failure.kind] += 1
        self._tell()

    def due(self, row: int) -> bool:
        """Whether the node has neither an end nor a failure that is to stay."""
        failure = self.failures.get(row)
        return row not in self.done and (failure is None or not self._settled(failure))

    def _settled(self, failure: Failure) -> bool:
        return failure.kind != AGAIN and not self.retry_failed

    def round(self, row: int) -> int:
        """A failure that is asked once more must not find the answers that made it one."""
        failure = self.failures.get(row)
        return 0 if failure is None else failure.round + (failure.kind != AGAIN)

    def keep(self, node: Node, texts: Sequence[str], lineage: Mapping[str, Any]) -> None:
        """A node has come to its end."""
        side, row = node
        self.store.save_profile(self.run, side, row, texts, lineage)
        self.reports[side].written += 1
        self._tell()

    def failed(self, node: Node, kind: str, reason: str) -> None:
        side, row = node
        self.store.save_failure(self.run, side, row, Failure(kind, reason, self.round(row)))
        self.reports[side].failed[kind] += 1
        self._tell()

    def paid(self) -> None:
        self._tell()

    def batches(self, open: int, requests: int, done: int) -> None:
        self.progress.batches(open, requests, done)

    def note(self, line: str) -> None:
        self.progress.note(line)

    def _tell(self) -> None:
        self.progress.update(self.side, self.reports[self.side], self.spent())
