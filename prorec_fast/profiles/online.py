"""Chains over a service's chat completions, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .errors import BudgetReached, ProfileError, Rejected, ServiceRefused, Unanswered
from .requests import Answer, Chain, ChatRequest
from .session import OF_ONE_NODE, Node, Session, Start

if TYPE_CHECKING:
    import openai

_ELSEWHERE_PAUSE = 0.2  # seconds between looks for an answer that another process pays for
_UNREADABLE_RETRIES = 2  # of a reply with status 200 that is no completion


async def run(chains: Iterable[tuple[Node, Start]], session: Session) -> None:
    """Walk every chain to its end; `session.outcome` hears what became of each.

    At most `session.service.concurrency` requests are under way. `session.stop`, set from outside or by an error that
    concerns every node, lets them end and be kept, and starts no other.

    Raises:
        ServiceRefused, BudgetReached: as described there; also whatever `session.stop` was set to.
    """
    async with session.service.client() as client:
        online = _Online(client, session)
        try:
            await online.walk_all(iter(chains))
        finally:
            online.store_thread.shutdown()


class _Online:
    def __init__(self, client: openai.AsyncOpenAI, session: Session) -> None:
        self.client, self.session = client, session
        self.store_thread = ThreadPoolExecutor(1)  # where the store waits for the disk, and nothing else waits for it
        self.under_way = 0
        self.one_ended = asyncio.Event()
        self.failed_in_a_row = 0

    async def walk_all(self, chains: Any) -> None:
        async def worker() -> None:
            for node, start in chains:
                if self.session.stop is not None:
                    return
                await self.walk(node, start)

        await asyncio.gather(*(worker() for _ in range(self.session.service.concurrency)))
        if self.session.stop is not None:
            raise self.session.stop

    async def walk(self, node: Node, start: Start) -> None:
        chain: Chain[Any] = start()
        try:
            request = next(chain)
            while True:
                request = chain.send(await self.answer(request))
        except StopIteration as end:
            self.session.outcome.finished(node, end.value)
        except OF_ONE_NODE as error:
            self.session.fail(node, error)
        except _Stopped:
            pass
        except BaseException as error:
            # workers that still have a request under way are to keep its answer, so this waits for them
            self.session.stop = self.session.stop or error
        finally:
            chain.close()

    async def in_store(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.store_thread, call, *arguments)

    async def answer(self, request: ChatRequest) -> Answer:
        """From the store, or paid for and stored."""
        key = request.key(self.session.chat)
        while True:
            stored = await self.in_store(self.session.stored, key)
            if stored is not None:
                return stored
            if self.session.stop is not None:
                raise _Stopped
            try:
                ours = await self.in_store(self.session.lease, request, key)
            except BudgetReached:
                if self.under_way == 0:
                    raise
                # what is under way will cost less than what is set aside for it
                self.one_ended.clear()
                await self.one_ended.wait()
                continue
            if ours:
                return await self.paid_answer(request, key)
            await asyncio.sleep(_ELSEWHERE_PAUSE)

    async def paid_answer(self, request: ChatRequest, key: str) -> Answer:
        self.under_way += 1
        try:
            answer = await self.completion(request, key)
            self.failed_in_a_row = 0
            return answer
        except BaseException as error:
            await self.in_store(self.session.store.release, key)
            if isinstance(error, Unanswered | Rejected):
                self.failed_in_a_row += 1
                if self.failed_in_a_row >= max(8, self.session.service.concurrency):
                    raise ServiceRefused(
                        f"{self.failed_in_a_row} requests in a row got no answer from {self.session.service.place}; "
                        f"the last: {error}"
                    ) from error
            raise
        finally:
            self.under_way -= 1
            self.one_ended.set()

    async def completion(self, request: ChatRequest, key: str) -> Answer:
        problem = ""
        for _ in range(1 + _UNREADABLE_RETRIES):
            body = await self.sent(request, key)
            model, chars = self.session.chat.model, request.prompt_chars
            try:
                return await self.in_store(self.session.keep, key, body, model, chars)
            except ProfileError:  # the store's, which is a ValueError too
                raise
            except ValueError:
                problem = f"a reply that is no chat completion: {body[:80]!r}"
        raise Unanswered(self.session.service.redacted(problem))

    async def sent(self, request: ChatRequest, key: str) -> str:
        """The text of the reply. The client's parse is only half used: it holds the request to the schema, but what it
        would raise for an answer that does not fit is left to the chain, because the answer is paid for and kept."""
        import openai

        body = request.body(self.session.chat)
        completions = self.client.chat.completions.with_raw_response
        # a service that honours the header charges once for what it is asked again after a kill or a lost connection
        headers = {"Idempotency-Key": key}
        try:
            if self.session.chat.answer_format == "schema":
                body["response_format"] = request.schema
                reply = await completions.parse(**body, extra_headers=headers)
            else:
                reply = await completions.create(**body, extra_headers=headers)
            return reply.text
        except openai.APIError as error:
            raise self.session.service.explained(error) from error
        except UnicodeDecodeError as error:
            raise Unanswered("a reply that is no text") from error


class _Stopped(Exception):
    """The run ends; nothing is to be noted for this node."""
