"""Chains over a service's Batch API: at a lower price, and in hours rather than seconds.

All chains go on as far as the store has answers; what they then ask is sent as batches; what those bring is stored, and
the chains go on. A batch is known to the store before it is known to the service, so that a run which was killed finds
its batches again and pays for none twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from prorec_fast._checks import non_negative_number, positive_int, positive_number

from .batch_exchange import BatchExchange, Unreadable
from .batch_service import BatchService
from .errors import ProfileError, Rejected, ServiceRefused
from .requests import Answer, Chain, ChatRequest
from .session import OF_ONE_NODE, Node, Session, Start

_UNREADABLE_RETRIES = 2  # of a reply with status 200 that is no completion


async def run(
    chains: Iterable[tuple[Node, Start]],
    session: Session,
    *,
    poll: float = 30.0,
    settle: float = 60.0,
    max_requests: int = 50_000,
    max_bytes: int = 200_000_000,
) -> None:
    """Walk every chain to its end; `session.outcome` hears what became of each.

    A request that a batch brings no answer to goes into another one, `session.service.retries` times. `session.stop`,
    set from outside, ends the run at its next look; open batches go on, and another run on the same store reads them.

    Args:
        poll: seconds between two looks at the open batches.
        settle: seconds in which a batch appears in the service's list after it was asked for; only where the service's
            reply was lost is it looked for there before it is asked for again.
        max_requests, max_bytes: of one batch's input file; several batches are open side by side.

    Raises:
        ServiceRefused, BudgetReached: as described there; also whatever `session.stop` was set to.
    """
    if not session.batch:
        raise ValueError("session.batch: want True, for the prices of batches")
    positive_number("poll", poll)
    non_negative_number("settle", settle)
    positive_int("max_requests", max_requests)
    positive_int("max_bytes", max_bytes)
    async with session.service.client(streams=True) as client:
        walkers = _Walkers(session)
        batches = BatchExchange(BatchService(client, session.service), session, settle, max_requests, max_bytes)
        try:
            await _run(chains, session, walkers, batches, poll)
        except BaseException:
            with contextlib.suppress(ProfileError):
                batches.tell_open()
            raise
        finally:
            walkers.close()


async def _run(chains: Any, session: Session, walkers: _Walkers, batches: BatchExchange, poll: float) -> None:
    await batches.look_at_all()  # those of an earlier run
    for node, start in chains:
        _check_stop(session)
        walkers.walk(node, start())
        await asyncio.sleep(0)
    while True:
        walkers.go_on(batches.problems)
        _check_stop(session)
        if not walkers.waiting:
            return
        await batches.send_all(walkers.waiting)
        end = time.monotonic() + poll
        while (left := end - time.monotonic()) > 0:
            _check_stop(session)
            await asyncio.sleep(min(left, 0.2))
        await batches.look_at_all()


def _check_stop(session: Session) -> None:
    if session.stop is not None:
        raise session.stop


class _Walkers:
    """Chains, each walked until it asks what the store has no answer to.

    Attributes:
        waiting: by its key, each request that has no answer.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.waiting: dict[str, ChatRequest] = {}
        self.chains: dict[str, list[tuple[Node, Chain[Any]]]] = {}  # that wait for it
        self.failures: Counter[str] = Counter()

    def walk(self, node: Node, chain: Chain[Any], answer: Answer | None = None) -> None:
        try:
            request = chain.send(answer)
            while True:
                key = request.key(self.session.chat)
                answer = self.session.stored(key)
                if answer is None:
                    break
                request = chain.send(answer)
        except StopIteration as end:
            self.session.outcome.finished(node, end.value)
        except OF_ONE_NODE as error:
            self.session.fail(node, error)
        else:
            self.waiting[key] = request
            self.chains.setdefault(key, []).append((node, chain))

    def go_on(self, problems: dict[str, ProfileError]) -> None:
        """Walk those whose answer has come, and fail those whose answer never will. `problems`, which come in place of
        an answer, are taken out."""
        refused = None
        for key in list(self.waiting):
            answer = self.session.stored(key)
            problem = problems.pop(key, None)
            if answer is not None:
                for node, chain in self.taken_out(key):
                    self.walk(node, chain, answer)
            elif isinstance(problem, ServiceRefused):
                refused = problem
            elif problem is not None and self.is_final(key, problem):
                for node, chain in self.taken_out(key):
                    chain.close()
                    self.session.fail(node, problem)
        if refused is not None:
            raise refused

    def taken_out(self, key: str) -> list[tuple[Node, Chain[Any]]]:
        del self.waiting[key]
        return self.chains.pop(key)

    def is_final(self, key: str, problem: ProfileError) -> bool:
        self.failures[key] += 1
        retries = self.session.service.retries
        if isinstance(problem, Unreadable):
            retries = min(retries, _UNREADABLE_RETRIES)
        return isinstance(problem, Rejected) or self.failures[key] > retries

    def close(self) -> None:
        for key in list(self.waiting):
            for _, chain in self.taken_out(key):
                chain.close()
