"""Calls that cost money, many at once: what asking a chat model and asking for embeddings have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

from .errors import BudgetReached, ProfileError, ServiceRefused
from .settings import ServiceSettings
from .store import Store

T = TypeVar("T")
_ELSEWHERE_PAUSE = 0.2  # seconds between looks for what another process pays for
_WORKERS = 2  # for each call that may be under way: half of them may wait for another process


class Session(Protocol):
    """`stop`: why nothing more is to be paid for; what is under way is still kept."""

    store: Store
    service: ServiceSettings
    stop: BaseException | None


class Stopped(Exception):
    """The run ends; this piece is left as it is."""


class PaidCalls:
    """One run's calls."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._store_thread = ThreadPoolExecutor(1)  # where the store waits for the disk, and nothing else waits for it
        self._turns = asyncio.Semaphore(session.service.concurrency)
        self._under_way = 0
        self._one_ended = asyncio.Event()
        self._failed_in_a_row = 0

    async def work(self, pieces: Iterable[T], walk: Callable[[T], Awaitable[None]]) -> None:
        """Walk all pieces, as many at once as calls may be under way; a piece makes one after the other. An error sets
        `session.stop`, which is raised when what is under way has ended.

        Once only: the store's thread ends with it.
        """

        async def worker() -> None:
            try:
                for piece in left:
                    async with self._turns:
                        if self.session.stop is not None:
                            return
                        await walk(piece)
            except Stopped:
                pass
            except BaseException as error:
                # not raised, because the others are to end and keep what they have under way
                self.session.stop = self.session.stop or error

        left = iter(pieces)
        with self._store_thread:
            await asyncio.gather(*(worker() for _ in range(_WORKERS * self.session.service.concurrency)))
            await self.ended()
        if self.session.stop is not None:
            raise self.session.stop

    async def ended(self) -> None:
        """Called when nothing is under way any more; a subclass may have something left to say."""

    async def in_store(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._store_thread, call, *arguments)

    async def leased(self, keys: Collection[str], lease: Callable[[], T]) -> T:
        """What `lease()` returns, in the store's thread. Where the budget is used up by what is under way, which will
        cost less than what is set aside for it, this waits.

        Raises:
            Stopped: the run has been stopped.
            BudgetReached: and nothing is under way.
        """
        while self.session.stop is None:
            try:
                return await self.in_store(lease)
            except BudgetReached:
                if self._under_way == 0:
                    raise
                self._one_ended.clear()
                await self._one_ended.wait()
            except asyncio.CancelledError:
                await self.release(keys)  # they may have been leased all the same
                raise
        raise Stopped

    async def elsewhere(self) -> None:
        """Wait for another process that is at what a walk needs; meanwhile its turn is another's."""
        self._turns.release()
        try:
            await asyncio.sleep(_ELSEWHERE_PAUSE)
        finally:
            await self._turns.acquire()

    async def release(self, keys: Collection[str]) -> None:
        with suppress(ProfileError):  # a store that fails must not hide why this is done
            await self.in_store(self.session.store.release, *keys)

    @asynccontextmanager
    async def paying(self, keys: Collection[str]) -> AsyncIterator[None]:
        """Around a call for leased keys; those that are still among `keys` at its end are released."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._one_ended.set()  # who waits for it looks at the store after the release, which comes first there
            if keys:
                await self.release(keys)

    def note_failure(self, error: Exception, most: int) -> None:
        """Of a call that was not answered.

        Raises:
            ServiceRefused: nothing but failures comes: `most` in a row, or as many as may be under way.
        """
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(most, self.session.service.concurrency):
            raise ServiceRefused(
                f"{self._failed_in_a_row} requests in a row brought no answer from {self.session.service.place}; "
                f"the last: {self.session.service.redacted(error)}"
            )

    def note_answer(self) -> None:
        self._failed_in_a_row = 0
