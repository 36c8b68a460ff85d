"""What both ways of asking share: the store, the money, and what became of each user or item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from prorec_fast._checks import non_negative_number

from .errors import Malformed, NothingToSay, ProfileError, Rejected, Unanswered
from .pricing import Prices, estimated_tokens
from .requests import Answer, Chain, ChatRequest
from .settings import ChatSettings, ServiceSettings
from .store import Store

Node = tuple[str, int]  # ("item" or "user", row)
Start = Callable[[], Chain[Any]]

_KINDS: tuple[tuple[type[ProfileError], str], ...] = (
    (Malformed, "malformed"),
    (Rejected, "rejected"),
    (Unanswered, "unanswered"),
    (NothingToSay, "nothing to say"),
)
OF_ONE_NODE = tuple(error for error, _ in _KINDS)  # what fails one node and leaves the others


class Outcome(Protocol):
    """Is told what became of each node, once, as soon as it is known; by one thread at a time, not always the same."""

    def finished(self, node: Node, result: Any) -> None: ...
    def failed(self, node: Node, kind: str, reason: str) -> None: ...
    def paid(self) -> None: ...
    def batches(self, open: int, requests: int, done: int) -> None:
        """Batches that the service is at, their requests, and how many of those it has done; after every look."""

    def note(self, line: str) -> None:
        """Something that the user is to know, and that stops nothing."""


@dataclass
class Session:
    """One run's means.

    Attributes:
        budget: dollars for all that the store ever pays for; None: no bound.
        stop: why nothing more is to be paid for; what is under way is still kept.
    """

    store: Store
    chat: ChatSettings
    service: ServiceSettings
    outcome: Outcome
    prices: Prices = field(default_factory=Prices.load)
    budget: float | None = None
    batch: bool = False
    stop: BaseException | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            non_negative_number("budget", self.budget)
        if self.budget is not None and self.prices.chat_cost(self.chat.model, 1, 1) is None:
            raise ProfileError(f"budget: no price is known of {self.chat.model!r}; give one in a file of prices")

    def stored(self, key: str) -> Answer | None:
        """The answer that is paid for already."""
        body = self.store.answer(key)
        return None if body is None else Answer.from_body(key, body)

    def most_cost(self, request: ChatRequest) -> float:
        """Dollars that a budget sets aside for a request."""
        tokens = request.most_prompt_tokens, self.chat.max_tokens
        return self.prices.chat_cost(self.chat.model, *tokens, batch=self.batch) or 0.0

    def lease(self, request: ChatRequest, key: str) -> bool:
        """See `Store.lease`."""
        return self.store.lease(key, self.most_cost(request), self.budget)

    def keep(self, key: str, body: str, model: str, prompt_chars: int) -> Answer:
        """Store a completion that has come, then give it.

        Args:
            model: that was asked; a batch may be older than this run's settings.
            prompt_chars: of the request.

        Raises:
            ValueError: `body` is no completion; nothing is stored.
        """
        answer = Answer.from_body(key, body)
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        if prompt is None or completion is None:  # some servers do not say
            prompt = estimated_tokens(prompt_chars)
            completion = estimated_tokens(len(answer.content or ""))
        kept = self.store.save_answer(
            key,
            body,
            model=model,
            prompt_chars=prompt_chars,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost=self.prices.chat_cost(model, prompt, completion, batch=self.batch),
        )
        self.outcome.paid()
        return answer if kept == body else Answer.from_body(key, kept)

    def fail(self, node: Node, error: ProfileError) -> None:
        """Note a failure that concerns one node alone."""
        kind = next(name for kind, name in _KINDS if isinstance(error, kind))
        self.outcome.failed(node, kind, self.service.redacted(error))
