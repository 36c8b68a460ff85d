"""Questions to a language model and its answers, without any way to send them.

A chain is a generator that yields requests and is sent answers. What drives it (`online`, `batch`) looks into the store
first and keeps every answer there before the chain sees it, so a chain that is walked again costs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from prorec_fast._checks import positive_int

from .digests import digest
from .errors import Malformed
from .pricing import most_tokens
from .settings import ChatSettings

Message = dict[str, str]
Result = TypeVar("Result")
_KEY_VERSION = 1  # a change of what a key is made of needs a new one
_MOST_TOKENS = 2**40  # of one answer; a service that says more is wrong
_TOKENS_AROUND = 16  # of a message, at most, beside its text: its role, and what marks its ends


@dataclass(frozen=True)
class ChatRequest:
    """Messages, and the schema that the answer must have.

    Attributes:
        messages: what of their text is no Unicode (half of a surrogate pair) becomes a question mark.
        schema: a pydantic model with extra="forbid" and without defaults, as OpenAI's strict JSON schemas want it.
        round: above 0 to ask again what has a stored answer: what failed before, and is to have another chance.
    """

    messages: tuple[Message, ...]
    schema: type[BaseModel]
    round: int = 0

    def __post_init__(self) -> None:
        encodable = tuple({name: _encodable(text) for name, text in each.items()} for each in self.messages)
        object.__setattr__(self, "messages", encodable)

    def key(self, settings: ChatSettings) -> str:
        """What the answer is stored under: a hash of model, settings, messages, schema and round."""
        return digest([_KEY_VERSION, asdict(settings), self.messages, _named_schema(self.schema), self.round])

    def body(self, settings: ChatSettings) -> dict[str, Any]:
        """The JSON body of a chat completion."""
        body: dict[str, Any] = {"model": settings.model, "messages": list(self.messages)}
        if settings.answer_format == "schema":
            form = {**_named_schema(self.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        else:
            wanted = json.dumps(_named_schema(self.schema)["schema"], ensure_ascii=False)
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
        return len(_schema_text(self.schema)) + sum(len(message["content"]) for message in self.messages)

    @property
    def most_prompt_tokens(self) -> int:
        """What a budget reserves before the service has counted."""
        texts = [_schema_text(self.schema), *(message["content"] for message in self.messages)]
        return sum(most_tokens(text) + _TOKENS_AROUND for text in texts)


@lru_cache(maxsize=256)
def _named_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """Shared by all requests: to be read, not changed."""
    return {"name": schema.__name__, "schema": schema.model_json_schema()}


@lru_cache(maxsize=256)
def _schema_text(schema: type[BaseModel]) -> str:
    return json.dumps(_named_schema(schema), ensure_ascii=False)


@dataclass(frozen=True)
class Answer:
    """What a chat completion said. Token counts are None where the service gives none, or none that makes sense."""

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
            message, usage = choice["message"], completion.get("usage")
            texts = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("not a chat completion") from error
        if not all(isinstance(text, str | None) for text in texts):
            raise ValueError("not a chat completion: the message is no text")
        return cls(
            key,
            *(text if text is None else _encodable(text) for text in texts),
            *(_count(usage, name) for name in ("prompt_tokens", "completion_tokens")),
        )


def _count(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= _MOST_TOKENS else None


def _encodable(text: str) -> str:
    """Half of a surrogate pair can be written in JSON, but not in UTF-8."""
    return text.encode("utf-8", "replace").decode()


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
    positive_int("attempts", attempts)
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
            # never an empty message, which some services refuse
            {"role": "assistant", "content": answer.content or answer.refusal or "(no answer)"},
            {"role": "user", "content": f"That answer cannot be used: {reasons[-1]}. Answer again as asked."},
        )


def _validated(answer: Answer, schema: type[BaseModel]) -> BaseModel:
    if answer.refusal:
        raise ValueError(f"it was a refusal ({answer.refusal[:200]})")
    if answer.finish_reason == "length":
        raise ValueError("it was cut off at the longest length allowed (max_tokens); be shorter")
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
    """The object inside a Markdown code block, which models that are held to no schema like to put around JSON."""
    fenced = None if text.lstrip().startswith("{") else re.search(r"```\w*\s*(\{.*\})\s*```", text, re.DOTALL)
    return fenced[1] if fenced else text
