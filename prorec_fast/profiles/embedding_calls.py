"""Calls for embeddings: many texts in each, many calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .digests import digest
from .embeddings import read_embeddings, read_tokens
from .errors import BudgetReached, Malformed, Rejected, ServiceRefused, Unanswered
from .pricing import estimated_tokens, most_tokens

if TYPE_CHECKING:
    import openai

    from .embed import Embedded, EmbedSession

_ATTEMPTS = 3  # at an answer that is what was asked for
_FAILURES_IN_A_ROW = 16  # more than it takes to find one text that is rejected among 2048
_ELSEWHERE_PAUSE = 0.2  # seconds between looks for a vector that another process pays for


class EmbeddingCalls:
    """One run's calls to a service."""

    def __init__(self, client: openai.AsyncOpenAI, session: EmbedSession, embedded: Embedded) -> None:
        self.client, self.session, self.embedded = client, session, embedded
        self.store_thread = ThreadPoolExecutor(1)  # where the store waits for the disk, and nothing else waits for it
        self.width = session.settings.dimensions
        self.under_way = self.failed_in_a_row = 0
        self.one_ended = asyncio.Event()

    async def walk_all(self, portions: Iterator[dict[str, str]]) -> None:
        async def worker() -> None:
            for batch in portions:
                try:
                    await self.walk(batch)
                except BaseException as error:
                    # workers that still have a call under way are to keep its vectors, so this waits for them
                    self.session.stop = self.session.stop or error
                if self.session.stop is not None:
                    return

        await asyncio.gather(*(worker() for _ in range(self.session.service.concurrency)))
        if self.session.stop is not None:
            raise self.session.stop

    async def in_store(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.store_thread, call, *arguments)

    async def walk(self, batch: dict[str, str]) -> None:
        """Until each text has a vector, paid for here or elsewhere, or has failed."""
        session, model = self.session, self.session.settings.model
        while batch and session.stop is None:
            costs = {key: session.prices.embedding_cost(model, most_tokens(text)) or 0.0 for key, text in batch.items()}
            try:
                ours = await self.in_store(session.store.lease_each, costs, session.budget)
            except BudgetReached:
                if self.under_way == 0:
                    raise
                # what is under way will cost less than what is set aside for it
                self.one_ended.clear()
                await self.one_ended.wait()
                continue
            if ours:
                await self.pay({key: batch.pop(key) for key in ours})
                continue
            there = await self.in_store(session.store.with_vectors, list(batch))
            self.count(len(there))
            batch = {key: text for key, text in batch.items() if key not in there}
            if batch:
                await asyncio.sleep(_ELSEWHERE_PAUSE)

    async def pay(self, batch: dict[str, str]) -> None:
        self.under_way += 1
        try:
            await self.ask(batch)
        finally:
            await self.in_store(self.session.store.release, *batch)
            self.under_way -= 1
            self.one_ended.set()

    async def ask(self, batch: dict[str, str]) -> None:
        """Vectors for leased texts; what is rejected together is asked in halves, so that only the culprit fails."""
        try:
            await self.answered(batch)
        except Rejected as error:
            self.note_failure(error)
            if len(batch) == 1:
                self.fail(batch, Rejected(f"{error}; if it is too long, a smaller max_chars cuts it"))
                return
            pairs = list(batch.items())
            for half in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
                await self.ask(dict(half))
        except Unanswered as error:
            self.note_failure(error)
            self.fail(batch, error)

    def fail(self, batch: Iterable[str], error: Exception) -> None:
        self.embedded.failures.update(dict.fromkeys(batch, self.session.service.redacted(error)))
        self.session.tell(self.embedded)

    def note_failure(self, error: Exception) -> None:
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= max(_FAILURES_IN_A_ROW, self.session.service.concurrency):
            raise ServiceRefused(
                f"{self.failed_in_a_row} calls in a row got no vectors from {self.session.service.place}; the last: "
                f"{self.session.service.redacted(error)}"
            ) from error

    async def answered(self, batch: dict[str, str]) -> None:
        """Takes out of the batch what has a vector, and asks again for the rest, which fails in the end."""
        reasons: list[str] = []
        while batch:
            if len(reasons) == _ATTEMPTS:
                self.fail(batch, Malformed(reasons))
                return
            # a service that honours the header charges once for what it is asked again after a lost connection
            body = await self.sent(batch, idempotency_key=digest([*batch, len(reasons)]))
            tokens = read_tokens(body)
            try:
                rows = read_embeddings(body, len(batch), self.width)
            except ValueError as error:
                reasons.append(str(error))
                if tokens is not None:
                    await self.save(batch, [], tokens)
                self.note_failure(error)
                continue
            reasons.append("a vector that is all zeros or not finite")
            good = np.isfinite(rows).all(1) & rows.any(1)
            vectors = [(key, row) for key, row, fine in zip(batch, rows, good, strict=True) if fine]
            await self.save(batch, vectors, tokens)
            if vectors:
                self.width, self.failed_in_a_row = rows.shape[1], 0
            for key, _ in vectors:
                del batch[key]

    async def save(self, batch: dict[str, str], vectors: list[tuple[str, np.ndarray]], tokens: int | None) -> None:
        """Keep what is good of an answer, and what all of it cost."""
        session, model = self.session, self.session.settings.model
        chars = sum(map(len, batch.values()))
        if tokens is None:
            tokens = estimated_tokens(chars)
        cost = session.prices.embedding_cost(model, tokens)
        save = partial(session.store.save_vectors, vectors, model=model, chars=chars, tokens=tokens, cost=cost)
        await self.in_store(save)
        self.count(len(vectors))

    def count(self, more: int) -> None:
        self.embedded.done += more
        self.session.tell(self.embedded)

    async def sent(self, batch: dict[str, str], idempotency_key: str) -> str:
        """The text of the reply."""
        import openai

        settings = self.session.settings
        wanted: dict[str, Any] = {} if settings.dimensions is None else {"dimensions": settings.dimensions}
        try:
            # the client's own decoding makes a list of Python floats of every vector
            reply = await self.client.embeddings.with_raw_response.create(
                model=settings.model,
                input=list(batch.values()),
                encoding_format="base64",
                extra_headers={"Idempotency-Key": idempotency_key},
                **wanted,
            )
            return reply.text
        except openai.APIError as error:
            raise self.session.service.explained(error) from None  # which may quote the key
        except UnicodeDecodeError as error:
            raise Unanswered("a reply that is no text") from error
