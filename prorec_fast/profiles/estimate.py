"""What a run would ask and cost, found by walking its chains with made-up answers of the usual length."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from string import ascii_lowercase
from typing import Any

from .errors import NothingToSay
from .pricing import CHARS_PER_TOKEN, Prices
from .requests import Answer, ChatRequest
from .session import Node, Start
from .settings import ChatSettings
from .store import Store, store_for_estimate
from .write import Writer, WriteSettings

_TEXT_WORDS = 90  # a profile's usual length
_LIST_ITEMS = 4


@dataclass
class Estimate:
    """Requests and tokens of one run.

    Attributes:
        nodes: users and items to be asked about.
        nothing_to_say: of them, those that the data say nothing about.
        requests: to be paid for; those that only follow on a malformed answer are not known.
        stored: answers that are there already.
        in_batches: answers that open batches are going to bring.
        dollars: None for a model without a price.
        calibrated: whether characters a token are those of the store's answers of this model, or a rule of thumb.
    """

    nodes: int = 0
    nothing_to_say: int = 0
    requests: int = 0
    stored: int = 0
    in_batches: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = 0.0
    calibrated: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    chains: Iterable[tuple[Node, Start]],
    store: Store,
    chat: ChatSettings,
    prices: Prices,
    *,
    batch: bool = False,
    expected: Callable[[Node], None] = lambda node: None,
) -> Estimate:
    """Counts what `chains` would ask; nothing is sent. `expected` hears of each node that comes to its end.

    An answer that the store lacks is taken to be valid at once and as long as answers usually are.
    """
    known = store.spent(chat.model)
    chars_per_token = known.prompt_chars / known.prompt_tokens if known.prompt_tokens else CHARS_PER_TOKEN
    found = Estimate(calibrated=bool(known.prompt_tokens))
    batched = store.batched()

    def answer(request: ChatRequest) -> Answer:
        key = request.key(chat)
        body = store.answer(key)
        if body is not None:
            found.stored += 1
            return Answer.from_body(key, body)
        content = json.dumps(placeholder(request))
        if key in batched:
            found.in_batches += 1
        else:
            found.requests += 1
            found.prompt_tokens += round(request.prompt_chars / chars_per_token)
            found.completion_tokens += round(len(content) / CHARS_PER_TOKEN)
        return Answer(key, content, None, "stop", None, None)

    for node, start in chains:
        found.nodes += 1
        chain = start()
        try:
            request = next(chain)
            while True:
                request = chain.send(answer(request))
        except StopIteration:
            expected(node)
        except NothingToSay:
            found.nothing_to_say += 1
    found.dollars = prices.chat_cost(chat.model, found.prompt_tokens, found.completion_tokens, batch=batch)
    return found


def placeholder(request: ChatRequest) -> dict[str, Any]:
    """An answer of the usual length that the request's schema and its chain's checks take."""
    asked = json.loads(request.messages[1]["content"])
    return {name: _value(field, asked) for name, field in request.schema.model_json_schema()["properties"].items()}


def _value(field: dict[str, Any], asked: dict[str, Any]) -> Any:
    if field["type"] == "string":
        return text(0)
    if field["items"]["type"] == "integer":
        return [candidate["id"] for candidate in asked["candidates"][: asked["count"]]]
    if "count" in asked:
        return [text(1 + place) for place in range(asked["count"])]
    return [text(place, 12) for place in range(_LIST_ITEMS)]


@lru_cache
def text(number: int, words: int = _TEXT_WORDS) -> str:
    """Made-up words, other ones for every number."""
    draw = random.Random(number)
    return " ".join("".join(draw.choices(ascii_lowercase, k=6)) for _ in range(words))


def estimate_profiles(
    folder: str | os.PathLike[str],
    chat: ChatSettings,
    settings: WriteSettings | None = None,
    *,
    store: str | os.PathLike[str] | None = None,
    prices: Prices | None = None,
    batch: bool = False,
) -> dict[str, Estimate]:
    """What `write_profiles` with the same arguments would ask of "item" and of "user", and cost; nothing is sent.

    Raises:
        ProfileError, DataError, ValueError: settings or data that cannot be used; one line.
    """
    writer, prices = Writer(folder, chat, settings or WriteSettings()), prices or Prices.load()
    found = {}
    with store_for_estimate(store or writer.folder / "answers.sqlite") as opened:
        writer.open(opened)

        def expected(node: Node) -> None:
            if node[0] == "item":
                writer.item_profiles[node[1]] = text(0)

        for side in writer.settings.sides:
            writer.begin(side)
            found[side] = estimate(writer.chains(side), opened, chat, prices, batch=batch, expected=expected)
    return found
