"""Questions to a language model and its answers, without any way to send them.

A chain is a generator that yields requests and is sent answers. What drives it (`online`, `batch`) looks into the store
first and keeps every answer there before the chain sees it, so a chain that is walked again costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .digests import digest
from .errors import Malformed
from .settings import ChatSettings

Message = dict[str, str]
Result = TypeVar("Result")
_KEY_VERSION = 1  # a change of what a key is made of needs a new one


@dataclass(frozen=True)
class ChatRequest:
    """Messages, and the schema that the answer must have.

    Attributes:
        schema: a pydantic model with extra="forbid" and without defaults, as OpenAI's strict JSON schemas want it.
        round: above 0 to ask again what has a stored answer: what failed before, and is to have another chance.
    """

    messages: tuple[Message, ...]
    schema: type[BaseModel]
    round: int = 0

    def key(self, settings: ChatSettings) -> str:
        """What the answer is stored under: a hash of model, settings, messages, schema and round."""
        parts = [_KEY_VERSION, asdict(settings), self.messages, self._named_schema(), self.round]
        return digest(parts)

    def body(self, settings: ChatSettings) -> dict[str, Any]:
        """The JSON body of a chat completion."""
        body: dict[str, Any] = {"model": settings.model, "messages": list(self.messages)}
        if settings.answer_format == "schema":
            body["response_format"] = {"type": "json_schema", "json_schema": {**self._named_schema(), "strict": True}}
        else:
            wanted = json.dumps(self.schema.model_json_schema(), ensure_ascii=False)
            first = self.messages[0]
            body["messages"][0] = {
                **first,
                "content": f"{first['content']}\n\nAnswer with one JSON object of this JSON schema:\n{wanted}",
            }
            body["response_format"] = {"type": "json_object"}
        # OpenAI's reasoning models take the newer name alone, small servers the older alone
        body["max_completion_tokens" if settings.answer_format == "schema" else "max_tokens"] = settings.max_tokens
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.seed is not None:
            body["seed"] = settings.seed
        return body

    @property
    def prompt_chars(self) -> int:
        """The size of what is sent, schema included, from which tokens are estimated."""
        schema = json.dumps(self._named_schema(), ensure_ascii=False)
        return len(schema) + sum(len(message["content"]) for message in self.messages)

    def _named_schema(self) -> dict[str, Any]:
        return {"name": self.schema.__name__, "schema": self.schema.model_json_schema()}


@dataclass(frozen=True)
class Answer:
    """What a chat completion said."""

    key: str
    content: str | None
    refusal: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None

    @classmethod
    def from_body(cls, key: str, body: str) -> Answer:
        """The answer in the JSON text of a chat completion.

        Raises:
            ValueError: it is not one.
        """
        try:
            completion = json.loads(body)
            choice = completion["choices"][0]
            message, usage = choice["message"], completion.get("usage") or {}
            content, refusal = message.get("content"), message.get("refusal")
            tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError("not a chat completion") from error
        if not all(isinstance(text, str | None) for text in (content, refusal)):
            raise ValueError("not a chat completion: the message is no text")
        if not all(count is None or (isinstance(count, int) and count >= 0) for count in tokens):
            raise ValueError("not a chat completion: the usage is no number of tokens")
        return cls(key, content, refusal, choice.get("finish_reason"), *tokens)


Chain = Generator[ChatRequest, Answer, Result]


@dataclass(frozen=True)
class Checked:
    """A valid answer.

    Attributes:
        value: the schema's instance, or what the check made of it.
        keys: of every request that was asked for it, the accepted one last.
    """

    value: Any
    keys: tuple[str, ...]


def ask(
    messages: Sequence[Message],
    schema: type[BaseModel],
    check: Callable[[Any], Any] | None = None,
    *,
    attempts: int = 3,
    round: int = 0,
) -> Generator[ChatRequest, Answer, Checked]:
    """Ask until an answer is valid; a malformed one is asked again with what was wrong with it.

    Args:
        check: called with the schema's instance; raises ValueError with a reason that the model will read, or returns
            what to use in its place (None: the instance).

    Raises:
        Malformed: no valid answer in `attempts`.
    """
    conversation, keys, reasons = tuple(messages), [], []
    while True:
        answer = yield ChatRequest(conversation, schema, round)
        keys.append(answer.key)
        try:
            value = _validated(answer, schema)
            checked = None if check is None else check(value)
            return Checked(value if checked is None else checked, tuple(keys))
        except ValueError as error:
            reasons.append(" ".join(str(error).split()))
        if len(reasons) == attempts:
            raise Malformed(reasons)
        # all of it, or the same bad answer twice would make the next request the same one, which is stored already
        conversation = (
            *conversation,
            {"role": "assistant", "content": answer.content or ""},
            {
                "role": "user",
                "content": f"That answer cannot be used: {reasons[-1]}. Answer again as asked.",
            },
        )


def _validated(answer: Answer, schema: type[BaseModel]) -> BaseModel:
    if answer.refusal:
        raise ValueError(f"it was a refusal ({answer.refusal[:200]})")
    if answer.finish_reason == "length":
        raise ValueError("it was cut off at the longest length allowed; be shorter")
    if not answer.content:
        raise ValueError(f"it was empty (finish reason {answer.finish_reason})")
    try:
        return schema.model_validate_json(_unfenced(answer.content))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the whole'}: {problem['msg']}" for problem in error.errors()[:5]
        ]
        raise ValueError("; ".join(problems)) from error


def _unfenced(text: str) -> str:
    """The inside of a Markdown code block, which models without schemas like to put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        return text[3:-3].removeprefix("json").strip()
    return text
