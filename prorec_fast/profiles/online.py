"""Chains over a service's chat completions, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import BudgetReached, ProfileError, Rejected, ServiceRefused, Unanswered
from .requests import Answer, ChatRequest
from .session import OF_ONE_NODE, Node, Session, Start

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
_WALKED_AT_ONCE = 2  # chains, a request that may be under way: some wait for the store, or for another process
_ELSEWHERE_PAUSE = 0.2  # seconds between looks for an answer that another process pays for
_FAILURES_IN_A_ROW = 8  # or as many as are under way at once: then the service answers nobody
_UNREADABLE_RETRIES = 2  # of a reply with status 200 that is no completion


async def run(chains: Iterable[tuple[Node, Start]], session: Session) -> None:
    """Walk every chain to its end; `session.outcome` hears what became of each.

    At most `session.service.concurrency` requests are under way. `session.stop`, set from outside or by an error that
    concerns every node, lets them end and be kept, and starts no other.

    Raises:
        ServiceRefused, BudgetReached: as described there; also whatever `session.stop` was set to.
    """
    async with session.service.client() as client:
        await _Online(client, session).walk_all(iter(chains))


class _Online:
    def __init__(self, client: openai.AsyncOpenAI, session: Session) -> None:
        self.session = session
        self.completions = client.chat.completions.with_raw_response
        self.store_thread = ThreadPoolExecutor(1)  # where the store waits for the disk, and nothing else waits for it
        self.turns = asyncio.Semaphore(session.service.concurrency)
        self.under_way = 0
        self.one_ended = asyncio.Event()
        self.failed_in_a_row = 0
        self.rejected: list[tuple[Node, Rejected]] = []  # since the last answer

    async def walk_all(self, chains: Iterator[tuple[Node, Start]]) -> None:
        async def worker() -> None:
            try:
                for node, start in chains:
                    if self.session.stop is not None:
                        return
                    await self.walk(node, start)
            except BaseException as error:
                # not raised, because the others are to end and keep what they have under way
                self.session.stop = self.session.stop or error

        with self.store_thread:
            await asyncio.gather(*(worker() for _ in range(_WALKED_AT_ONCE * self.session.service.concurrency)))
            if not isinstance(self.session.stop, ServiceRefused):
                await self.note_rejected()
        if self.session.stop is not None:
            raise self.session.stop

    async def walk(self, node: Node, start: Start) -> None:
        chain = start()
        try:
            request = next(chain)
            while True:
                request = chain.send(await self.answer(request))
        except StopIteration as end:
            await self.in_store(self.session.outcome.finished, node, end.value)
        except Rejected as error:
            self.rejected.append((node, error))
        except OF_ONE_NODE as error:
            await self.in_store(self.session.fail, node, error)
        except _Stopped:
            pass

    async def note_rejected(self) -> None:
        """A service that rejects everything has said nothing about a node, so this waits until it has answered one."""
        rejected, self.rejected = self.rejected, []
        for node, error in rejected:
            await self.in_store(self.session.fail, node, error)

    async def in_store(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.store_thread, call, *arguments)

    async def answer(self, request: ChatRequest) -> Answer:
        """From the store, or paid for and stored."""
        key = request.key(self.session.chat)
        while True:
            try:
                async with self.turns:
                    found = await self.in_store(self.stored_or_leased, request, key)
                    if found is True:
                        return await self.paid_answer(request, key)
                if isinstance(found, Answer):
                    return found
                await asyncio.sleep(_ELSEWHERE_PAUSE)
            except BudgetReached:
                if self.under_way == 0:
                    raise
                # what is under way will cost less than what is set aside for it
                self.one_ended.clear()
                await self.one_ended.wait()
            except asyncio.CancelledError:
                await self.in_store(self.session.store.release, key)  # it may have been leased all the same
                raise

    def stored_or_leased(self, request: ChatRequest, key: str) -> Answer | bool:
        """The answer, or whether this run is to pay for it."""
        stored = self.session.stored(key)
        if stored is not None:
            return stored
        if self.session.stop is not None:
            raise _Stopped
        return self.session.lease(request, key)

    async def paid_answer(self, request: ChatRequest, key: str) -> Answer:
        self.under_way += 1
        try:
            answer = await self.completion(request, key)
        except BaseException as error:
            with suppress(ProfileError):  # a store that fails must not hide why
                await self.in_store(self.session.store.release, key)
            if isinstance(error, Unanswered | Rejected):
                self.check_service(error)
            raise
        finally:
            self.under_way -= 1
            self.one_ended.set()
        self.failed_in_a_row = 0
        await self.note_rejected()
        return answer

    def check_service(self, error: ProfileError) -> None:
        """Where nothing but errors comes, the run ends."""
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= max(_FAILURES_IN_A_ROW, self.session.service.concurrency):
            raise ServiceRefused(
                f"{self.failed_in_a_row} requests in a row got no answer from {self.session.service.place}; "
                f"the last: {error}"
            )

    async def completion(self, request: ChatRequest, key: str) -> Answer:
        for _ in range(1 + _UNREADABLE_RETRIES):
            body = await self.sent(request, key)
            model, chars = self.session.chat.model, request.prompt_chars
            try:
                return await self.in_store(self.session.keep, key, body, model, chars)
            except ProfileError:  # the store's, which is a ValueError too
                raise
            except ValueError:
                continue
        raise Unanswered(self.session.service.redacted(f"a reply that is no chat completion: {body[:80]!r}"))

    async def sent(self, request: ChatRequest, key: str) -> str:
        """The text of the reply. The client's parse is only half used: it holds the request to the schema, but what it
        would raise for an answer that does not fit is left to the chain, because the answer is paid for and kept."""
        import openai

        body = request.body(self.session.chat)
        # a service that honours the header charges once for what it is asked again after a kill or a lost connection
        headers = {"Idempotency-Key": key}
        try:
            if self.session.chat.answer_format == "schema":
                body["response_format"] = request.schema
                reply = await self.completions.parse(**body, extra_headers=headers)
            else:
                reply = await self.completions.create(**body, extra_headers=headers)
            return reply.text
        except openai.APIError as error:
            # from None: a traceback would show the client's error, which may quote the key
            raise self.session.service.explained(error) from None


class _Stopped(Exception):
    """The run ends; nothing is to be noted for this node."""
