"""Texts to vectors through a service's embeddings, each vector stored before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from prorec_fast._checks import non_negative_number, positive_int

from .digests import digest
from .embedding_calls import EmbeddingCalls
from .errors import BudgetReached, ProfileError
from .pricing import Prices, estimated_tokens
from .settings import ServiceSettings
from .store import Store

_KEY_VERSION = 1  # a change of what a key is made of needs a new one


@dataclass(frozen=True)
class EmbedSettings:
    """What is embedded, and in what portions. Only model and dimensions are part of the key of a vector.

    Attributes:
        model: the service's name of an embedding model.
        dimensions: width of the vectors, of models that can shorten them; None: the model's own.
        max_chars: what is beyond is not sent. OpenAI's models take 8191 tokens, of 2 characters or more in any
            alphabet; smaller models take less, and most services reject a longer text.
        batch_texts, batch_tokens: the most of one call, tokens by estimate; OpenAI takes 2048 and 300000.
    """

    model: str
    dimensions: int | None = None
    max_chars: int = 16_000
    batch_texts: int = 256
    batch_tokens: int = 100_000

    def __post_init__(self) -> None:
        if not self.model:
            raise ProfileError("model: want the name of an embedding model, got ''")
        for name in ("dimensions", "max_chars", "batch_texts", "batch_tokens"):
            if name != "dimensions" or self.dimensions is not None:
                positive_int(name, getattr(self, name))

    def key(self, text: str) -> str:
        """What a vector is stored under: a hash of model, dimensions and the text as it is sent."""
        return digest([_KEY_VERSION, self.model, self.dimensions, text])


@dataclass
class Embedded:
    """How far the vectors of some texts are.

    Attributes:
        keys: what the vector of each text is stored under, in the order of the texts.
        total: distinct texts.
        reused: those of them that had a vector before.
        done: those that have one now, the reused included.
        cut: those longer than what is embedded of a text.
        failures: key -> why it has no vector.
        stopped: why it ended before its end, where the budget was reached.
    """

    keys: list[str]
    total: int
    reused: int = 0
    done: int = 0
    cut: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None


@dataclass
class EmbedSession:
    """One run's means.

    Attributes:
        budget: dollars for all that the store ever pays for; None: no bound.
        progress: called with what is done so far, whenever that has changed.
        stop: why nothing more is to be paid for; what is under way is still kept.
    """

    store: Store
    service: ServiceSettings
    settings: EmbedSettings
    prices: Prices = field(default_factory=Prices.load)
    budget: float | None = None
    progress: Callable[[Embedded], None] | None = None
    stop: BaseException | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            non_negative_number("budget", self.budget)
        if self.budget is not None and self.prices.embedding_cost(self.settings.model, 1) is None:
            raise ProfileError(f"budget: no price is known of {self.settings.model!r}; give one in a file of prices")

    def tell(self, embedded: Embedded) -> None:
        if self.progress is not None:
            self.progress(embedded)


def distinct_texts(
    texts: Iterable[str], key: Callable[[str], str], max_chars: int | None = None
) -> tuple[Embedded, dict[str, str]]:
    """(nothing done yet, key -> text to embed) of texts of which many may be equal.

    Raises:
        ProfileError: a text is empty or blank, or has half of a surrogate pair, which no service takes.
    """
    keys, wanted, cut = [], {}, set()
    for place, text in enumerate(texts):
        if not text.strip():
            raise ProfileError(f"texts[{place}]: want something to embed, got {text!r}")
        sent = text[:max_chars]
        try:
            sent.encode()
        except UnicodeEncodeError as error:
            raise ProfileError(f"texts[{place}]: has an unpaired surrogate at character {error.start}") from error
        keys.append(key(sent))
        wanted[keys[-1]] = sent
        if len(sent) < len(text):
            cut.add(keys[-1])
    return Embedded(keys, len(wanted), cut=len(cut)), wanted


def gather(store: Store, keys: Sequence[str]) -> np.ndarray:
    """float32 [n, t]: the vectors stored under `keys`, n > 0.

    Raises:
        ProfileError: a key without a vector, or vectors of several widths.
    """
    found = store.vectors(keys)
    missing = [key for key in keys if key not in found]
    if missing:
        raise ProfileError(f"{len(missing)} of {len(keys)} texts have no vector in {store.path}; embed them first")
    widths = {len(found[key]) for key in keys}
    if len(widths) > 1:
        raise ProfileError(f"{store.path}: vectors of one model with widths {sorted(widths)}; start with another store")
    return np.stack([found[key] for key in keys])


async def embed(texts: Iterable[str], session: EmbedSession) -> Embedded:
    """Sees to it that every text has a vector in the store; `gather` reads them.

    At most `session.service.concurrency` calls are under way. Equal texts are paid for once. A text that the service
    will not embed, or that has no finite vector other than zeros, is a failure of its own and does not hold up others.

    Raises:
        ProfileError: see `distinct_texts`; nothing has been sent.
        ServiceRefused: as described there; also whatever `session.stop` was set to.
    """
    embedded, wanted = distinct_texts(texts, session.settings.key, session.settings.max_chars)
    stored = session.store.with_vectors(list(wanted))
    embedded.reused = embedded.done = len(stored)
    session.tell(embedded)
    if len(stored) < len(wanted):
        async with session.service.client() as client:
            run = EmbeddingCalls(client, session, embedded)
            if stored:
                run.width = len(gather(session.store, [next(iter(stored))])[0])
            try:
                await run.work(batches(wanted, stored, session.settings), run.walk)
            except BudgetReached as error:
                embedded.stopped = str(error)
    return embedded


def batches(wanted: dict[str, str], stored: set[str], settings: EmbedSettings) -> Iterator[dict[str, str]]:
    """key -> text, in portions of what one call may have, without what is stored.

    All that is wanted is portioned, whatever is stored: a run that goes on after a kill makes the very calls that were
    under way, and a service that honours Idempotency-Key does not charge for them again.
    """
    batch: dict[str, str] = {}
    tokens = 0
    for key, text in wanted.items():
        more = estimated_tokens(len(text))
        if batch and (len(batch) == settings.batch_texts or tokens + more > settings.batch_tokens):
            yield from _lacking(batch, stored)
            batch, tokens = {}, 0
        batch[key] = text
        tokens += more
    yield from _lacking(batch, stored)


def _lacking(batch: dict[str, str], stored: set[str]) -> Iterator[dict[str, str]]:
    missing = {key: text for key, text in batch.items() if key not in stored}
    if missing:
        yield missing
