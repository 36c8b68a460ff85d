"""Progress of work that costs money: a bar on a terminal, a line now and then elsewhere; both on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    return f"{failed} failed, {tokens:,} tokens, ${spent.dollars:.2f}"


def spent_in_words(spent: Spent) -> str:
    return f"{spent.prompt_tokens:,} + {spent.completion_tokens:,} tokens, ${spent.dollars:.4f}"
