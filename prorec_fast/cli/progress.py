"""Progress of work that costs money: a bar on a terminal, a line now and then elsewhere; both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prorec_fast.profiles.estimate import Estimate
    from prorec_fast.profiles.progress import SideReport
    from prorec_fast.profiles.store import Spent

_SECONDS = 5.0  # from one line to the next


class CostProgress:
    """Shows what is done, failed, paid and left.

    Args:
        label: what is counted ("items").
        total: of them, in all.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.started, self.at_start, self.last_line = time.monotonic(), -1, 0.0
        self.last_batches = ""
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=label, file=sys.stderr, dynamic_ncols=True)

    def __call__(self, done: int, failed: int, spent: Spent) -> None:
        """`done` includes what failed and what former runs did."""
        if self.at_start < 0:
            self.at_start = done
        if self.bar is not None:
            if self.bar.n == 0:
                self.bar.initial = self.at_start
            self.bar.update(done - self.bar.n)
            self.bar.set_postfix_str(_cost(failed, spent))
            return
        now = time.monotonic()
        if now - self.last_line >= _SECONDS or done == self.total:
            self.last_line = now
            self.note(f"{self.label}: {done} of {self.total} done, {_cost(failed, spent)}{self._left(done, now)}")

    def batches(self, open: int, requests: int, done: int) -> None:
        """While the service works on batches, nothing else happens."""
        if open == 0:
            return
        state = f"{open} {'batch' if open == 1 else 'batches'} open, {done} of {requests} requests done"
        if self.bar is not None:
            self.bar.set_postfix_str(state)
        elif state != self.last_batches:
            self.note(f"{self.label}: {state}")
        self.last_batches = state

    def note(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def _left(self, done: int, now: float) -> str:
        if done <= self.at_start or done >= self.total:
            return ""
        seconds = round((now - self.started) * (self.total - done) / (done - self.at_start))
        return f", about {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _cost(failed: int, spent: Spent) -> str:
    tokens = spent.prompt_tokens + spent.completion_tokens
    return f"{failed} failed, {tokens:,} tokens, {_dollars(spent, 2)}"


def spent_in_words(spent: Spent) -> str:
    return f"{spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens, {_dollars(spent, 4)}"


def _dollars(spent: Spent, digits: int) -> str:
    if spent.unpriced == 0 or spent.answers == 0:
        return f"${spent.dollars:.{digits}f}"
    return f"${spent.dollars:.{digits}f} and what has no known price" if spent.dollars else "no price known"


def run_progress() -> Any:
    """A `Progress` for a run, to be closed."""
    from prorec_fast.profiles.progress import Progress

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
            if self.shown is None:
                print(line, file=sys.stderr, flush=True)
            else:
                self.shown.note(line)

        def close(self) -> None:
            if self.shown is not None:
                self.shown.close()

    return OneBarAfterTheOther()


def show_estimates(found: Mapping[str, Estimate]) -> None:
    """What a run would ask, by "item" and "user"."""
    total, unknown = 0.0, False
    for side, one in found.items():
        price = "no price known" if one.dollars is None else f"about ${one.dollars:.2f}"
        total, unknown = total + (one.dollars or 0.0), unknown or one.dollars is None
        if not one.nodes:
            print(f"{side}s: nothing left to ask")
            continue
        silent = f", of {one.nothing_to_say} of them nothing is said" if one.nothing_to_say else ""
        batched = f", {one.in_batches} come with open batches" if one.in_batches else ""
        print(
            f"{side}s: {one.nodes} to ask about{silent}; {one.requests} requests ({one.stored} answers are there "
            f"already{batched}), {one.prompt_tokens:,} + {one.completion_tokens:,} tokens, {price}"
        )
    by = "this model's answers so far" if all(one.calibrated for one in found.values()) else "4 characters a token"
    price = "give a file of --prices" if unknown else f"about ${total:.2f}"
    print(f"in all: {price}; tokens by {by}, answers of the usual length, none asked twice; nothing was sent")
