"""Chains over a service's chat completions, many at once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from .calls import PaidCalls
from .errors import ProfileError, Rejected, ServiceRefused, Unanswered
from .requests import Answer, ChatRequest
from .session import OF_ONE_NODE, Node, Session, Start

if TYPE_CHECKING:
    import openai

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
        online = _Online(client, session)
        await online.work(chains, online.walk)


class _Online(PaidCalls):
    def __init__(self, client: openai.AsyncOpenAI, session: Session) -> None:
        super().__init__(session)
        self.session = session
        self.completions = client.chat.completions.with_raw_response
        self.rejected: list[tuple[Node, Rejected]] = []  # since the last answer

    async def walk(self, chain_of_node: tuple[Node, Start]) -> None:
        node, start = chain_of_node
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

    async def note_rejected(self) -> None:
        """A service that rejects everything has said nothing about a node, so this waits until it has answered one."""
        rejected, self.rejected = self.rejected, []
        for node, error in rejected:
            await self.in_store(self.session.fail, node, error)

    async def ended(self) -> None:
        if not isinstance(self.session.stop, ServiceRefused):
            await self.note_rejected()

    async def answer(self, request: ChatRequest) -> Answer:
        """From the store, or paid for and stored."""
        key = request.key(self.session.chat)
        while True:
            found = await self.leased([key], partial(self.stored_or_leased, request, key))
            if isinstance(found, Answer):
                return found
            if found:
                return await self.paid_answer(request, key)
            await self.elsewhere()

    def stored_or_leased(self, request: ChatRequest, key: str) -> Answer | bool:
        """The answer, or whether this run is to pay for it."""
        return self.session.stored(key) or self.session.lease(request, key)

    async def paid_answer(self, request: ChatRequest, key: str) -> Answer:
        leased = {key}
        async with self.paying(leased):
            try:
                answer = await self.completion(request, key)
            except (Unanswered, Rejected) as error:
                self.note_failure(error, _FAILURES_IN_A_ROW)
                raise
            leased.clear()
        self.note_answer()
        await self.note_rejected()
        return answer

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
