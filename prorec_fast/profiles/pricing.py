"""What tokens cost: a table of list prices, which go out of date and which a file of the user's own replaces."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import ProfileError

CHARS_PER_TOKEN = 4.0  # English prose; the store knows better once it has answers of a model
_PER = 1e6


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens.

    Attributes:
        chat: model -> (prompt, completion).
        embedding: model -> price.
        batch_factor: of both, through the Batch API.
    """

    chat: dict[str, tuple[float, float]]
    embedding: dict[str, float]
    batch_factor: float = 0.5

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Prices:
        """The table of the package, with the entries of a JSON file of the same form in place of its own.

        The form: {"chat": {"model": [prompt, completion]}, "embedding": {"model": price}, "batch_factor": 0.5}, every
        part optional.

        Raises:
            ProfileError: the file is missing or of another form.
        """
        own = json.loads(resources.files(__package__).joinpath("prices.json").read_text(encoding="utf-8"))
        given: Any = {}
        if path is not None:
            try:
                given = json.loads(Path(path).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ProfileError(f"{path}: no readable JSON file of prices ({error})") from error
            _check_form(given, str(path))
        chat = {model: tuple(pair) for model, pair in {**own["chat"], **given.get("chat", {})}.items()}
        embedding = {**own["embedding"], **given.get("embedding", {})}
        return cls(chat, embedding, given.get("batch_factor", own["batch_factor"]))

    def chat_cost(
        self, model: str, prompt_tokens: float, completion_tokens: float, *, batch: bool = False
    ) -> float | None:
        """Dollars for a completion; None for a model without a price."""
        if model not in self.chat:
            return None
        prompt, completion = self.chat[model]
        dollars = (prompt * prompt_tokens + completion * completion_tokens) / _PER
        return dollars * (self.batch_factor if batch else 1.0)

    def embedding_cost(self, model: str, tokens: float) -> float | None:
        """Dollars for embedding so many tokens; None for a model without a price."""
        return None if model not in self.embedding else self.embedding[model] * tokens / _PER


def estimated_tokens(chars: int) -> int:
    """Tokens of English prose of so many characters, where nothing better is known."""
    return round(chars / CHARS_PER_TOKEN)


def most_tokens(text: str) -> int:
    """Of a text, whatever the model: no tokenizer in use makes more of them than there are bytes of UTF-8. For budgets,
    which reserve this before they know."""
    return len(text.encode())


def _check_form(given: Any, where: str) -> None:
    def price(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")

    if not isinstance(given, dict) or not given.keys() <= {"chat", "embedding", "batch_factor"}:
        raise ProfileError(f"{where}: want an object with 'chat', 'embedding' and 'batch_factor', all optional")
    for part in ("chat", "embedding"):
        if not isinstance(given.get(part, {}), dict):
            raise ProfileError(f"{where}: want an object of models as '{part}'")
    for model, pair in given.get("chat", {}).items():
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(price, pair)):
            raise ProfileError(
                f"{where}: want [prompt, completion] dollars a million tokens for {model!r}, got {pair!r}"
            )
    for model, value in given.get("embedding", {}).items():
        if not price(value):
            raise ProfileError(f"{where}: want dollars a million for {model!r}, got {value!r}")
    if not price(given.get("batch_factor", 1.0)):
        raise ProfileError(f"{where}: want a number as 'batch_factor', got {given['batch_factor']!r}")
