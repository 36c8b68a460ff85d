"""What a language model is asked with, and how it is reached."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prorec_fast._checks import non_negative_number, one_of, positive_int, positive_number

from .errors import ProfileError, Rejected, ServiceRefused, Unanswered

if TYPE_CHECKING:
    import openai

ANSWER_FORMATS = ("schema", "json")
_LONGEST = 500  # characters of what a service says; some send a page of HTML
_RETRIED = (408, 409, 429)  # by the client, before it gives up; 5xx and lost connections, too


@dataclass(frozen=True)
class ChatSettings:
    """All that shapes an answer beside the messages; part of the key that an answer is stored under.

    Attributes:
        model: the service's name of a chat model.
        temperature: of its sampling; None leaves it to the service, and some models take nothing else.
        max_tokens: the longest answer, a reasoning model's thoughts included; also what a budget reserves for one.
        seed: of its sampling, where the service has such a thing.
        answer_format: "schema" has the service hold answers to a JSON schema; "json", for servers that know none, puts
            the schema into the prompt and asks for JSON.
    """

    model: str
    temperature: float | None = None
    max_tokens: int = 4096
    seed: int | None = None
    answer_format: str = "schema"

    def __post_init__(self) -> None:
        if not self.model:
            raise ProfileError("model: want the name of a chat model, got ''")
        if self.temperature is not None:
            non_negative_number("temperature", self.temperature)
            object.__setattr__(self, "temperature", float(self.temperature))  # 1 and 1.0 are one key
        positive_int("max_tokens", self.max_tokens)
        one_of("answer_format", self.answer_format, ANSWER_FORMATS)


@dataclass(frozen=True)
class ServiceSettings:
    """How to reach an OpenAI-compatible service. Nothing of it changes an answer, so no key depends on it.

    Attributes:
        base_url: of the service, with its version ("http://localhost:8000/v1"); None is OpenAI's, or $OPENAI_BASE_URL.
        key_variable: the environment variable that has the key; there is no other way to give one. A service with a
            base_url of its own is asked without a key where the variable is not set.
        timeout: seconds that the service may be silent in one attempt; to be reached, it has 10 at most.
        retries: further attempts after 408, 409, 429, 5xx, timeouts and dropped connections, after what Retry-After
            asks for or exponential pauses.
        concurrency: requests under way at once.
    """

    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 5
    concurrency: int = 16

    def __post_init__(self) -> None:
        positive_number("timeout", self.timeout)
        positive_int("concurrency", self.concurrency)
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ProfileError(f"retries: want an integer of at least 0, got {self.retries!r}")
        _check_url("base_url", self.base_url)

    @property
    def api_key(self) -> str | None:
        return os.environ.get(self.key_variable, "").strip() or None

    @property
    def url(self) -> str | None:
        """Of the service; None: the client's own."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None

    @property
    def place(self) -> str:
        """Where requests go, for messages."""
        return self.url or "the OpenAI API"

    def client(self, *, streams: bool = False) -> openai.AsyncOpenAI:
        """A client; to be closed by who asked for it.

        Args:
            streams: whether bodies may be so large that the timeout bounds but the wait for each part of them.

        Raises:
            ProfileError: openai is not installed, there is no key where one is needed, or what is set in the
                environment can be none.
        """
        try:
            import openai
        except ImportError as error:
            raise ProfileError('openai is not installed; pip install "prorec-fast[profiles]"') from error
        _check_url("OPENAI_BASE_URL", self.url)
        key = self.api_key or ("none" if self.url else "")
        if not key:
            raise ProfileError(f"no key: set the environment variable {self.key_variable}, or give a base URL")
        if self.api_key is None and self.key_variable != ServiceSettings.key_variable:
            raise ProfileError(f"no key: the environment variable {self.key_variable} is not set")
        if not (key.isascii() and key.isprintable()):
            raise ProfileError(f"the environment variable {self.key_variable} holds no key: odd characters in it")
        return openai.AsyncOpenAI(
            api_key=key,
            base_url=self.url,
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
            max_retries=self.retries,
            http_client=None if streams else _bounded_client(self.timeout),
        )

    def redacted(self, text: object) -> str:
        """`text` on one line of no great length, without the key, which services like to quote when they refuse it."""
        line = " ".join(str(text).split())
        if self.api_key is not None:
            line = line.replace(self.api_key, "***")
        return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."

    def explained(self, error: openai.APIError) -> ProfileError:
        """What an error of the client means for a run."""
        cause = "" if error.__cause__ is None else str(error.__cause__)  # of a lost connection
        return self.refusal(getattr(error, "status_code", None), error.code, f"{error} {cause}")

    def refusal(self, status: int | None, code: str | None, message: object) -> ProfileError:
        """What a reply that is no answer means for a run: its HTTP status (None: there was no reply), its error's code
        and message."""
        text = self.redacted(message)
        if status in (401, 402, 404) or (status == 429 and code == "insufficient_quota"):
            hint = "; does the base URL want a version, as in /v1?" if status == 404 and "/v" not in self.place else ""
            return ServiceRefused(f"{self.place} refuses: {text}{hint}")
        if status is not None and 400 <= status < 500 and status not in _RETRIED:
            hint = ""
            if "response_format" in text or "json_schema" in text:
                hint = '; for a server without JSON schemas, set the answer format "json"'
            return Rejected(f"{text}{hint}")
        return Unanswered(text)


def _bounded_client(timeout: float) -> Any:
    """The client's own timeout starts anew with each byte, and some services send blanks as long as they think."""
    import openai

    transport = import_module(openai.DefaultAsyncHttpxClient.__base__.__module__.partition(".")[0])  # httpx, or httpx2

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **given: Any) -> Any:
            try:
                return await asyncio.wait_for(super().send(request, **given), timeout)
            except asyncio.TimeoutError:  # before Python 3.11 not the built-in one
                raise transport.ReadTimeout("no whole reply in time", request=request) from None

    return Bounded()


def _check_url(name: str, url: str | None) -> None:
    if url is None:
        return
    if "@" in url.partition("://")[2].partition("/")[0]:  # not shown, as messages show other URLs
        raise ProfileError(f"{name}: want a URL without a user and password; a key comes from the environment alone")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and url.isprintable() and " " not in url
    except ValueError:
        good = False
    if not good:
        raise ProfileError(f"{name}: want a URL that starts with http:// or https://, got {url!r}")
