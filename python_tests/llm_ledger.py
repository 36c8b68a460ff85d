"""What was asked of the test server, and what was paid for."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from llm_faults import Request


@dataclass(frozen=True)
class Record:
    """A request that came, or a line of a batch, and what became of it. `status` is None where none was sent; `time` is
    that of time.time() when its handling ended."""

    request: Request
    fault: str | None
    status: int | None
    paid: bool
    time: float


class Ledger:
    """The server's thread writes; any thread may read."""

    def __init__(self):
        self._lock = threading.Lock()
        self._paid, self._texts, self._attempts, self._tokens = Counter(), Counter(), Counter(), Counter()
        self._requests: list[Record] = []
        self.in_flight = self.peak_in_flight = 0  # answers without latency are never in flight together

    @property
    def paid(self) -> Counter[str]:
        """How often each request (its digest) was answered and charged."""
        with self._lock:
            return Counter(self._paid)

    @property
    def paid_texts(self) -> Counter[tuple[str, str]]:
        """How often each (model, text) was embedded and charged, in whatever requests."""
        with self._lock:
            return Counter(self._texts)

    @property
    def requests(self) -> list[Record]:
        """Whatever came, in the order in which it was done with."""
        with self._lock:
            return list(self._requests)

    def stats(self) -> dict:
        with self._lock:
            requests = [record.request for record in self._requests]
            return {
                "paid": dict(self._paid),
                "paid_once": sum(count == 1 for count in self._paid.values()),
                "paid_twice": sum(count > 1 for count in self._paid.values()),
                "texts_paid_once": sum(count == 1 for count in self._texts.values()),
                "texts_paid_twice": sum(count > 1 for count in self._texts.values()),
                "requests": len(requests),
                "paths": dict(Counter(f"{request.method} {request.path}" for request in requests)),
                "faults": dict(Counter(record.fault for record in self._requests if record.fault)),
                "prompt_tokens": self._tokens["prompt_tokens"],
                "completion_tokens": self._tokens["completion_tokens"],
                "in_flight": self.in_flight,
                "peak_in_flight": self.peak_in_flight,
            }

    def attempt(self, digest: str) -> int:
        """How often the request came before this call."""
        with self._lock:
            self._attempts[digest] += 1
            return self._attempts[digest] - 1

    def pay(self, digest: str, usage: dict[str, int], texts: list[tuple[str, str]]) -> None:
        with self._lock:
            self._paid[digest] += 1
            self._tokens.update(usage)
            self._texts.update(texts)

    def record(self, record: Record) -> None:
        with self._lock:
            self._requests.append(record)

    @contextlib.contextmanager
    def flight(self) -> Iterator[None]:
        with self._lock:
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= 1
