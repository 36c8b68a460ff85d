"""What the store knows of batches at a service: which requests they hold, and how far each has come.

A batch is noted before anything of it is sent, and its requests count as leased until it has ended and been read,
whatever becomes of the processes meanwhile. The process that is just at a batch has a lease on the batch's name.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import BudgetReached

TABLES = """
CREATE TABLE batches (name TEXT PRIMARY KEY, model TEXT NOT NULL, requests INTEGER NOT NULL, file TEXT, id TEXT,
    asked REAL) WITHOUT ROWID;
CREATE TABLE batch_requests (key TEXT PRIMARY KEY, batch TEXT NOT NULL, prompt_chars INTEGER NOT NULL,
    cost REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX requests_of_batch ON batch_requests (batch);
"""


@dataclass(frozen=True)
class OpenBatch:
    """A batch that has not been read to its end.

    Attributes:
        name: ours, told to the service with its file and its batch.
        requests: how many it was made with.
        file, id: the service's names of its input file and of itself; None: not known (yet).
        asked: when the service was last asked to make it, in seconds of `time.time`; None: never.
    """

    name: str
    model: str
    requests: int
    file: str | None = None
    id: str | None = None
    asked: float | None = None


class BatchTables:
    """The part of `Store` that is about batches."""

    def open_batch(
        self, requests: Iterable[tuple[str, int, float]], *, model: str, budget: float | None = None
    ) -> tuple[OpenBatch, list[str]] | None:
        """Note a batch of those requests that nobody has answered or is at, as far as the budget goes; take it.

        Args:
            requests: (key, characters of the prompt, the most dollars that it may cost).
            budget: dollars for all that this store ever pays for.

        Returns:
            The batch and its keys; None where there is nothing left to ask.

        Raises:
            BudgetReached: the budget is too small for any of them.
        """
        name, owner, taken = uuid.uuid4().hex, self._owner_name(), []
        with self._transaction():
            committed = self._committed()
            for key, chars, cost in requests:
                if self._in_hand(key):
                    continue
                if budget is not None and committed + cost > budget:
                    if not taken:
                        raise BudgetReached(cost, budget)
                    break
                committed += cost
                taken.append((key, name, chars, cost))
            if not taken:
                return None
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?, NULL, NULL, NULL)", (name, model, len(taken)))
            self._db.executemany("INSERT INTO batch_requests VALUES (?, ?, ?, ?)", taken)
            self._db.execute("INSERT INTO leases VALUES (?, ?, 0)", (name, owner))
        return OpenBatch(name, model, len(taken)), [key for key, *_ in taken]

    def take_batch(self, name: str) -> OpenBatch | None:
        """An open batch, to be released; None: another process is at it, or it is open no more."""
        if not self.lease(name):
            return None
        rows = self._read("SELECT * FROM batches WHERE name = ?", name)
        if not rows:
            self.release(name)
            return None
        return OpenBatch(*rows[0])

    def note_batch(
        self, name: str, *, file: str | None = None, id: str | None = None, asked: float | None = None
    ) -> None:
        """Keep what has become known of a batch."""
        with self._transaction():
            self._db.execute(
                "UPDATE batches SET file = COALESCE(?, file), id = COALESCE(?, id), asked = COALESCE(?, asked)"
                " WHERE name = ?",
                (file, id, asked, name),
            )

    def end_batch(self, name: str) -> None:
        """Forget a batch; what it left unanswered may be asked again."""
        with self._transaction():
            self._db.execute("DELETE FROM batch_requests WHERE batch = ?", (name,))
            self._db.execute("DELETE FROM batches WHERE name = ?", (name,))

    def forget_batches(self) -> int:
        """Give up every open batch that no process is at, for good; what is left unanswered may be asked again."""
        names = [name for name in self.batches() if self.take_batch(name)]
        for name in names:
            self.end_batch(name)
        self.release(*names)
        return len(names)

    def batches(self) -> dict[str, int]:
        """name -> number of requests, of all open batches."""
        return dict(self._read("SELECT name, requests FROM batches"))

    def batch_requests(self, name: str) -> dict[str, int]:
        """key -> characters of the prompt, of a batch's requests without an answer."""
        return dict(self._read("SELECT key, prompt_chars FROM batch_requests WHERE batch = ?", name))

    def batched(self) -> set[str]:
        """The keys that open batches may bring."""
        return {key for (key,) in self._read("SELECT key FROM batch_requests")}

    def _in_hand(self, key: str) -> bool:
        tables = ("answers", "vectors", "leases", "batch_requests")
        return any(self._db.execute(f"SELECT 1 FROM {table} WHERE key = ?", (key,)).fetchone() for table in tables)
