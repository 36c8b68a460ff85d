"""Calls for embeddings: many texts in each, many calls at once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .calls import PaidCalls
from .digests import digest
from .embeddings import read_embeddings, read_tokens
from .errors import Malformed, Rejected, Unanswered
from .pricing import estimated_tokens, most_tokens

if TYPE_CHECKING:
    import openai

    from .embed import Embedded, EmbedSession

_ATTEMPTS = 3  # at an answer that is what was asked for
_FAILURES_IN_A_ROW = 16  # more than it takes to find one text that is rejected among 2048


class EmbeddingCalls(PaidCalls):
    """One run's calls to a service."""

    def __init__(self, client: openai.AsyncOpenAI, session: EmbedSession, embedded: Embedded) -> None:
        super().__init__(session)
        self.client, self.session, self.embedded = client, session, embedded
        self.width = session.settings.dimensions

    async def walk(self, batch: dict[str, str]) -> None:
        """Until each text has a vector, paid for here or elsewhere, or has failed."""
        session, model = self.session, self.session.settings.model
        while batch:
            costs = {key: session.prices.embedding_cost(model, most_tokens(text)) or 0.0 for key, text in batch.items()}
            ours = await self.leased(batch, partial(session.store.lease_each, costs, session.budget))
            if ours:
                paid = {key: batch.pop(key) for key in ours}
                async with self.paying(paid):
                    await self.ask(paid)
                continue
            there = await self.in_store(session.store.with_vectors, list(batch))
            self.count(len(there))
            batch = {key: text for key, text in batch.items() if key not in there}
            if batch:
                await self.elsewhere()

    async def ask(self, batch: dict[str, str]) -> None:
        """Vectors for leased texts; what is rejected together is asked in halves, so that only the culprit fails."""
        try:
            await self.answered(batch)
        except Rejected as error:
            self.note_failure(error, _FAILURES_IN_A_ROW)
            if len(batch) == 1:
                self.fail(batch, Rejected(f"{error}; if it is too long, a smaller max_chars cuts it"))
                return
            pairs = list(batch.items())
            for half in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
                await self.ask(dict(half))
        except Unanswered as error:
            self.note_failure(error, _FAILURES_IN_A_ROW)
            self.fail(batch, error)

    def fail(self, batch: Iterable[str], error: Exception) -> None:
        self.embedded.failures.update(dict.fromkeys(batch, self.session.service.redacted(error)))
        self.session.tell(self.embedded)

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
                self.note_failure(error, _FAILURES_IN_A_ROW)
                continue
            reasons.append("a vector that is all zeros or not finite")
            good = np.isfinite(rows).all(1) & rows.any(1)
            vectors = [(key, row) for key, row, fine in zip(batch, rows, good, strict=True) if fine]
            await self.save(batch, vectors, tokens)
            if vectors:
                self.width = rows.shape[1]
                self.note_answer()
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
