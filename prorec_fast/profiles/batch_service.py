"""The Batch API of a service: input files, batches, and the lines that come back.

https://platform.openai.com/docs/guides/batch describes the files; a line of the input is {"custom_id", "method", "url",
"body"}, a line of the output {"custom_id", "response": {"status_code", "body"}, "error"}.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from .errors import ProfileError, Rejected, ServiceRefused, Unanswered
from .settings import ServiceSettings

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

_ENDPOINT = "/v1/chat/completions"
_MARK = "prorec_fast"  # the field of a batch's metadata that has our name of it
WAY_OUT = "ask where it was made; if it is gone for good, --forget-batches has its requests asked, and paid for, again"
_ENDED = ("completed", "failed", "expired", "cancelled")


def input_line(key: str, body: dict[str, Any]) -> bytes:
    """A request as an input file has it."""
    line = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class OutputLine:
    """What became of one request of a batch.

    Attributes:
        status: HTTP status; None: the service never came to it.
        body: the JSON text of the reply with status 200, else None.
        code, message: of the error, where there is one.
    """

    key: str
    status: int | None
    body: str | None
    code: str | None = None
    message: str = ""

    @classmethod
    def read(cls, text: bytes) -> OutputLine:
        """A line of an output or error file.

        Raises:
            ValueError: it is none.
        """
        line = json.loads(text)
        if not isinstance(line, dict) or not isinstance(line.get("custom_id"), str):
            raise ValueError("a line without a custom_id")
        response = _object(line.get("response"))
        status, body = response.get("status_code"), response.get("body")
        error = _object(line.get("error")) or _object(_object(body).get("error"))
        if status == 200 and not error:
            return cls(line["custom_id"], 200, json.dumps(body))
        message = f"status {status}, {error.get('message') or error.get('code') or 'no reason given'}"
        return cls(line["custom_id"], status if isinstance(status, int) else None, None, error.get("code"), message)


@dataclass(frozen=True)
class Report:
    """How far a batch has come.

    Attributes:
        completed: requests that it has answered.
        done: those, and the ones that it failed to.
        files: of the output and of the errors, those that there are.
        code, problem: why it failed its validation.
    """

    status: str
    completed: int
    done: int
    files: tuple[str, ...]
    code: str | None
    problem: str

    @property
    def ended(self) -> bool:
        return self.status in _ENDED


class BatchService:
    """What is asked of a service.

    Every method raises ServiceRefused where it will not do it, and Unanswered where it may another time.
    """

    def __init__(self, client: openai.AsyncOpenAI, settings: ServiceSettings) -> None:
        self._client, self._settings = client, settings

    async def upload(self, name: str, file: IO[bytes]) -> str:
        """The id of the input file of our batch `name`."""
        with self._explained():
            given = await self._client.files.create(file=(_file_name(name), file), purpose="batch")
            return _text(given.id, "id")

    async def uploaded(self, name: str) -> str | None:
        """The id of the file, if an `upload` that was cut short came to its end there."""
        with self._explained(f"lists no files; {WAY_OUT}"):
            async for file in self._client.files.list(purpose="batch"):
                if file.filename == _file_name(name):
                    return _text(file.id, "id")
        return None

    async def create(self, name: str, file: str) -> str:
        """The id of a new batch. Unanswered: it may have been made, or be made still."""
        client = self._client.with_options(max_retries=0)  # the client's own would make a second batch
        with self._explained():
            batch = await client.batches.create(
                input_file_id=file,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={_MARK: name},
                extra_headers={"Idempotency-Key": name},
            )
            return _text(batch.id, "id")

    async def created(self, name: str, file: str) -> str | None:
        """The id of the batch, if a `create` that was cut short came to its end there."""
        with self._explained(f"lists no batches; {WAY_OUT}"):
            async for batch in self._client.batches.list(limit=100):
                if _is_ours(batch, name, file):
                    return _text(batch.id, "id")
        return None

    async def report(self, name: str, file: str, id: str) -> Report:
        """How far the batch has come.

        Raises:
            ServiceRefused: also where the service has none of this id, or it is another's.
        """
        with self._explained(f"has no batch {id}; {WAY_OUT}"):
            batch = await self._client.batches.retrieve(id)
            status = _text(batch.status, "status")
            if not _is_ours(batch, name, file):
                raise ServiceRefused(f"{self._settings.place} has another's batch {id}; {WAY_OUT}")
            counts, errors = batch.request_counts, (batch.errors and batch.errors.data) or []
            reasons = [self._settings.redacted(error.message or error.code) for error in errors[:3]]
            return Report(
                status,
                counts.completed if counts else 0,
                counts.completed + counts.failed if counts else 0,
                tuple(filter(None, (batch.output_file_id, batch.error_file_id))),
                errors[0].code if errors else None,
                "; ".join(reasons) or "no reason given",
            )

    async def lines(self, file: str) -> AsyncIterator[list[bytes]]:
        """The lines of a file, as they come."""
        import openai

        rest = b""
        try:
            async with self._client.files.with_streaming_response.content(file) as response:
                async for part in response.iter_bytes():
                    *whole, rest = (rest + part).split(b"\n")
                    yield whole
        except openai.APIError as error:
            raise self._problem(error, f"has no file {file} for a batch of ours; {WAY_OUT}") from None
        except Exception as error:  # of the client's transport, which is not always the same package
            raise Unanswered(f"a download broke off: {self._settings.redacted(error)}") from error
        yield [rest]

    @contextmanager
    def _explained(self, missing: str = "has no Batch API, or not for this key") -> Iterator[None]:
        import openai

        try:
            yield
        except openai.APIError as error:
            raise self._problem(error, missing) from None  # which may quote the key
        except (AttributeError, TypeError) as error:  # the client takes whatever comes with status 200
            raise Unanswered("a reply of another form than the Batch API's") from error

    def _problem(self, error: openai.APIError, missing: str) -> ProfileError:
        if getattr(error, "status_code", None) in (404, 405, 501):
            return ServiceRefused(f"{self._settings.place} {missing} ({self._settings.redacted(error)})")
        problem = self._settings.explained(error)
        if isinstance(problem, Rejected):
            return ServiceRefused(f"{self._settings.place} refuses: {problem}")
        return problem


def _file_name(name: str) -> str:
    return f"prorec-fast-{name}.jsonl"


def _is_ours(batch: Batch, name: str, file: str) -> bool:
    """A service may forget metadata; the same file has been given to no other batch."""
    return batch.input_file_id == file and (batch.metadata or {}).get(_MARK, name) == name


def _text(value: object, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise Unanswered(f"a reply whose {field} is {value!r:.40}")
    return value


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
