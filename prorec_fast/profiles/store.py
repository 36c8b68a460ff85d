"""Every paid answer, in one SQLite file (WAL) that several processes may use at once.

A process takes a lease on a key before it pays for it, so that no other pays for the same; the lease ends with the
answer, by `release`, or with the process: each owner holds a lock on a file of its own, which the system lets go when
the process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BudgetReached, InOpenBatch, ProfileError
from .open_batches import TABLES, BatchTables

_VERSION = 1
_APPLICATION = 0x50724663  # what tells a store from other programs' SQLite files
_KEYS = 500  # in one query
# tables of long values have row numbers: without, a tree of values would be walked to see whether a key is there
_SCHEMA = """
CREATE TABLE answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, body TEXT NOT NULL, prompt_chars INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cost REAL, created REAL NOT NULL);
CREATE TABLE vectors (key TEXT PRIMARY KEY, model TEXT NOT NULL, vector BLOB NOT NULL);
CREATE TABLE leases (key TEXT PRIMARY KEY, owner TEXT NOT NULL, cost REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE totals (model TEXT PRIMARY KEY, answers INTEGER NOT NULL, prompt_chars INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, dollars REAL NOT NULL,
    unpriced INTEGER NOT NULL);
CREATE TABLE profiles (run TEXT, side TEXT, row INTEGER, texts TEXT NOT NULL, lineage TEXT NOT NULL,
    PRIMARY KEY (run, side, row));
CREATE TABLE failures (run TEXT, side TEXT, row INTEGER, kind TEXT NOT NULL, reason TEXT NOT NULL,
    round INTEGER NOT NULL, PRIMARY KEY (run, side, row)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Spent:
    """What a store has paid for, over all its models or one.

    Attributes:
        answers: completions, and calls for embeddings.
        dollars: by the prices of the day.
        unpriced: of the answers, those of models whose price was not known; they count as nothing in `dollars`.
    """

    answers: int = 0
    prompt_chars: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0

    def __sub__(self, before: Spent) -> Spent:
        return Spent(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


@dataclass(frozen=True)
class Failure:
    """A user or item without a profile, and why.

    Attributes:
        kind: "malformed", "rejected", "unanswered" or "nothing to say".
        round: how often it was begun anew at the user's wish.
    """

    kind: str
    reason: str
    round: int = 0


class Store(BatchTables):
    """The answers, vectors, finished profiles and failures in the file `path`, which is made where it is missing.

    Threads may share it, forked processes may not: each opens the file for itself.

    Raises:
        ProfileError: the file cannot be opened or is no store; from every method: it cannot be read or written any
            more (the disk is full, say). What was saved before stays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._lock, self._process = threading.RLock(), os.getpid()
        self._owner: tuple[str, int] | None = None
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            with self._transaction():
                self._make_or_recognize()
            self._read("PRAGMA journal_mode=WAL")
        except BaseException:
            self._db.close()
            raise

    def _make_or_recognize(self) -> None:
        def number(query: str) -> int:
            return self._db.execute(query).fetchone()[0]

        if number("SELECT COUNT(*) FROM sqlite_master") == 0:
            for statement in (_SCHEMA + TABLES).split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={_APPLICATION}")
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        if number("PRAGMA application_id") != _APPLICATION:
            raise ProfileError(f"{self.path}: another program's database; name a file of its own as the store")
        if (version := number("PRAGMA user_version")) != _VERSION:
            raise ProfileError(f"{self.path}: a store of version {version}, this is for {_VERSION}")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends this process's leases and closes the file."""
        with self._lock:
            if self._owner is not None:
                name, descriptor = self._owner
                with suppress(sqlite3.Error):  # they end anyway, with the lock
                    self._db.execute("DELETE FROM leases WHERE owner = ?", (name,))
                self._owner_file(name).unlink(missing_ok=True)
                os.close(descriptor)
                self._owner = None
            self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """One thread at a time, in the process that opened the file; what SQLite or the system says is told as a
        ProfileError."""
        if os.getpid() != self._process:
            raise ProfileError(f"{self.path}: opened before a fork; open the store again in the new process")
        with self._lock:
            try:
                yield
            except (OSError, sqlite3.Error) as error:
                raise ProfileError(f"{self.path}: cannot be used as a store ({error})") from error

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Alone among all processes: what is read inside is still true when it ends.

        Args:
            durable: on disk when it ends; else lost if the machine stops soon, but not if the process does.
        """
        with self._told():
            if self._db.in_transaction:  # of this thread, which has the lock
                yield
                return
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite ends one itself where the disk fails
                    self._db.execute("ROLLBACK")
                raise

    def together(self) -> AbstractContextManager[None]:
        """What is saved inside reaches the disk at once, or not at all."""
        return self._transaction()

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._told():
            return self._db.execute(query, values).fetchall()

    # answers and vectors

    def answer(self, key: str) -> str | None:
        """The JSON text of the completion stored under `key`."""
        rows = self._read("SELECT body FROM answers WHERE key = ?", key)
        return rows[0][0] if rows else None

    def save_answer(
        self,
        key: str,
        body: str,
        *,
        model: str,
        prompt_chars: int,
        prompt_tokens: int,
        completion_tokens: int,
        cost: float | None,
    ) -> str:
        """Keep a paid answer; on disk when this returns. Of two the first one stays, and both were paid.

        Returns:
            The body that is stored now.
        """
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, model, body, prompt_chars, prompt_tokens, completion_tokens, cost, time.time()),
            )
            self._add_to_totals(model, 1, prompt_chars, prompt_tokens, completion_tokens, cost)
            for table in ("leases", "batch_requests"):
                self._db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
            return self._db.execute("SELECT body FROM answers WHERE key = ?", (key,)).fetchone()[0]

    def vectors(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The float32 vectors stored under those of `keys` that have one."""
        found = self._of_keys("key, vector FROM vectors", keys)
        return {key: np.frombuffer(blob, dtype="<f4") for key, blob in found}

    def with_vectors(self, keys: Sequence[str]) -> set[str]:
        """Those of `keys` that have a vector."""
        return {key for (key,) in self._of_keys("key FROM vectors", keys)}

    def _of_keys(self, what: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Rows of "SELECT `what` WHERE key" is one of `keys`."""
        for start in range(0, len(keys), _KEYS):
            part = keys[start : start + _KEYS]
            yield from self._read(f"SELECT {what} WHERE key IN ({','.join('?' * len(part))})", *part)

    def save_vectors(
        self,
        vectors: Iterable[tuple[str, np.ndarray]],
        *,
        model: str,
        chars: int = 0,
        tokens: int = 0,
        cost: float | None = None,
    ) -> None:
        """Keep the vectors that one call brought, and what the call cost."""
        with self._transaction():
            rows = [(key, model, np.ascontiguousarray(vector, dtype="<f4").tobytes()) for key, vector in vectors]
            self._db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)
            self._db.executemany("DELETE FROM leases WHERE key = ?", [(key,) for key, *_ in rows])
            self._add_to_totals(model, 1, chars, tokens, 0, cost)

    def _add_to_totals(
        self, model: str, answers: int, chars: int, prompt_tokens: int, completion_tokens: int, cost: float | None
    ) -> None:
        self._db.execute(
            "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model) DO UPDATE SET answers = answers"
            " + excluded.answers, prompt_chars = prompt_chars + excluded.prompt_chars, prompt_tokens = prompt_tokens"
            " + excluded.prompt_tokens, completion_tokens = completion_tokens + excluded.completion_tokens,"
            " dollars = dollars + excluded.dollars, unpriced = unpriced + excluded.unpriced",
            (model, answers, chars, prompt_tokens, completion_tokens, cost or 0.0, answers * (cost is None)),
        )

    def spent(self, model: str | None = None) -> Spent:
        """What all processes have paid for so far."""
        where, values = ("", ()) if model is None else (" WHERE model = ?", (model,))
        sums = ", ".join(f"SUM({field.name})" for field in fields(Spent))
        row = self._read(f"SELECT {sums} FROM totals{where}", *values)[0]
        return Spent(*row) if row[0] is not None else Spent()

    # leases

    def lease(self, key: str, cost: float = 0.0, budget: float | None = None) -> bool:
        """Ask to pay for `key`. True: do so, and save or release it. False: another process is at it, or it is there.

        Args:
            cost: the most dollars that it may cost.
            budget: dollars for all that this store ever pays for.

        Raises:
            BudgetReached: `cost` with what is spent and what is leased would exceed the budget.
            InOpenBatch: a batch has been sent that holds `key`.
        """
        return bool(self.lease_each({key: cost}, budget))

    def lease_each(self, costs: Mapping[str, float], budget: float | None = None) -> list[str]:
        """`lease` for keys that one call is to pay for: those that this process may pay for, in the order of `costs`.

        Raises:
            BudgetReached: they would together exceed the budget; none of them is leased.
        """
        owner = self._owner_name()
        with self._transaction(durable=False):
            keys = list(costs)
            there = {key for table in ("answers", "vectors") for (key,) in self._of_keys(f"key FROM {table}", keys)}
            free = [key for key in keys if key not in there]
            if any(self._of_keys("key FROM batch_requests", free)):
                raise InOpenBatch(
                    "an open batch is going to bring this; read it with --transport batch, or --forget-batches"
                )
            owners = dict(self._of_keys("key, owner FROM leases", free))
            alive = {other: self._alive(other) for other in set(owners.values())}
            free = [key for key in free if key not in owners or not alive[owners[key]]]
            cost = sum(costs[key] for key in free)
            if free and budget is not None and self._committed() + cost > budget:
                raise BudgetReached(cost, budget)
            values = [(key, owner, costs[key]) for key in free]
            self._db.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", values)
            return free

    def release(self, *keys: str) -> None:
        """End leases of this process without an answer."""
        owner = self._owner_name()
        with self._transaction(durable=False):
            self._db.executemany("DELETE FROM leases WHERE key = ? AND owner = ?", [(key, owner) for key in keys])

    def _committed(self) -> float:
        """Dollars that are spent or set aside."""
        for (owner,) in self._db.execute("SELECT DISTINCT owner FROM leases").fetchall():
            self._alive(owner)
        sums = ("SUM(dollars) FROM totals", "SUM(cost) FROM leases", "SUM(cost) FROM batch_requests")
        return sum(self._db.execute(f"SELECT {part}").fetchone()[0] or 0.0 for part in sums)

    def _owner_file(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}-owner-{name}")

    def _owner_name(self) -> str:
        with self._told():
            if self._owner is None:
                prefix = self._owner_file("").name
                for file in self.path.parent.iterdir():
                    if file.name.startswith(prefix):
                        self._alive(file.name.removeprefix(prefix))
                self._owner = self._new_owner()
            return self._owner[0]

    def _new_owner(self) -> tuple[str, int]:
        while True:
            name = uuid.uuid4().hex
            descriptor = os.open(self._owner_file(name), os.O_CREAT | os.O_RDONLY, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
            os.close(descriptor)  # taken for a dead owner's before it was locked, and removed

    def _alive(self, name: str) -> bool:
        """Whether the process that leases under `name` lives; what a dead one leased is free."""
        if self._owner is not None and self._owner[0] == name:
            return True
        file = self._owner_file(name)
        with suppress(FileNotFoundError):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
        self._db.execute("DELETE FROM leases WHERE owner = ?", (name,))
        return False

    # what came of a run

    def save_profile(self, run: str, side: str, row: int, texts: Sequence[str], lineage: Mapping[str, Any]) -> None:
        """Keep a finished profile, and forget that it failed before."""
        with self._transaction():
            values = (run, side, row, json.dumps(list(texts)), json.dumps(lineage))
            self._db.execute("INSERT OR REPLACE INTO profiles VALUES (?, ?, ?, ?, ?)", values)
            self._db.execute("DELETE FROM failures WHERE run = ? AND side = ? AND row = ?", (run, side, row))

    def profiles(self, run: str, side: str) -> Iterator[tuple[int, list[str], dict[str, Any]]]:
        """(row, texts, lineage) of what is finished, by row, read some at a time."""
        query = (
            "SELECT row, texts, lineage FROM profiles WHERE run = ? AND side = ? AND row > ? ORDER BY row LIMIT 1000"
        )
        row = -1
        while part := self._read(query, run, side, row):
            for row, texts, lineage in part:
                yield row, json.loads(texts), json.loads(lineage)

    def finished_rows(self, run: str, side: str) -> set[int]:
        """The rows that have profiles."""
        return {row for (row,) in self._read("SELECT row FROM profiles WHERE run = ? AND side = ?", run, side)}

    def save_failure(self, run: str, side: str, row: int, failure: Failure) -> None:
        """Note in the ledger why there is no profile."""
        with self._transaction():
            values = (run, side, row, failure.kind, failure.reason, failure.round)
            self._db.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?)", values)

    def failures(self, run: str, side: str) -> dict[int, Failure]:
        """row -> failure."""
        query = "SELECT row, kind, reason, round FROM failures WHERE run = ? AND side = ? ORDER BY row"
        return {row: Failure(*values) for row, *values in self._read(query, run, side)}


@contextmanager
def store_for_estimate(path: str | os.PathLike[str]) -> Iterator[Store]:
    """The store at `path`, or an empty one that vanishes where there is none: an estimate leaves nothing behind."""
    with ExitStack() as stack:
        path = Path(path)
        if not path.exists():
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), path.name)
        yield stack.enter_context(Store(path))
