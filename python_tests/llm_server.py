"""A service that speaks OpenAI's HTTP API on loopback, with faults on demand and a ledger of what was paid.

In a test:   with LLMServer(faults={"rate-limit": 0.1}, seed=3) as server: ... server.base_url, server.paid
As a program: python python_tests/llm_server.py --port 8089 --faults rate-limit=0.1   (Ctrl-C stops it)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import llm_answers
from llm_answers import count_tokens, digest
from llm_batches import ENDPOINTS, Batches, BatchPlan
from llm_faults import (
    REFUSALS,
    RETRY_AFTER,
    SPOILED,
    Request,
    Script,
    by_chance,
    check_names,
    error_body,
    spoil,
)

CREATED = 1_700_000_000  # of completions: the same request has the same answer, to the byte
MOST_INPUTS = 2048  # texts of one embeddings request
MOST_TOKENS = 8192  # of one text to embed


@dataclass(frozen=True)
class Settings:
    faults: Mapping[str, float] | Script = field(default_factory=dict)  # probabilities by name, or request -> name
    seed: int = 0  # of the faults; answers depend on requests alone
    latency: float = 0.0  # seconds before the model has run
    retry_after: float = 0.02  # seconds; whole ones come as Retry-After alone, others as retry-after-ms too
    slow_for: float = 5.0  # seconds that the fault "slow" holds an answer back
    width: int = 64  # of embeddings where a request does not say
    context: int | None = None  # tokens that a chat's messages may have
    idempotent: bool = False  # an Idempotency-Key seen before gets the same answer again, for nothing
    batches: BatchPlan | Callable[[int], BatchPlan] = field(
        default_factory=BatchPlan
    )  # the plan of all batches, or of the n-th


@dataclass(frozen=True)
class Record:
    """A request that came, or a line of a batch: what it asked, what became of it, when (time.time())."""

    request: Request
    fault: str | None
    status: int | None
    paid: bool
    time: float


class Ledger:
    """What was asked and paid for. The server's thread writes; any thread may read."""

    def __init__(self):
        self._lock = threading.Lock()
        self._paid, self._texts, self._attempts = Counter(), Counter(), Counter()
        self._requests: list[Record] = []
        self._tokens = Counter()
        self.in_flight = self.peak_in_flight = 0

    @property
    def paid(self) -> Counter[str]:
        """How often each request (its digest) was answered and charged."""
        with self._lock:
            return Counter(self._paid)

    @property
    def paid_texts(self) -> Counter[tuple[str, str]]:
        """How often each (model, text) was embedded and charged, in whatever requests."""
        with self._lock:
            return Counter(self._texts)

    @property
    def requests(self) -> list[Record]:
        with self._lock:
            return list(self._requests)

    def stats(self) -> dict:
        with self._lock:
            faults = Counter(record.fault for record in self._requests if record.fault)
            paths = Counter(f"{record.request.method} {record.request.path}" for record in self._requests)
            return {
                "paid": dict(self._paid), "paid_once": len(self._paid),
                "paid_twice": sum(count > 1 for count in self._paid.values()),
                "texts": len(self._texts), "texts_paid_twice": sum(count > 1 for count in self._texts.values()),
                "requests": len(self._requests), "paths": dict(paths), "faults": dict(faults), **self._tokens,
                "in_flight": self.in_flight, "peak_in_flight": self.peak_in_flight,
            }  # fmt: skip

    def attempt(self, key: str) -> int:
        with self._lock:
            self._attempts[key] += 1
            return self._attempts[key] - 1

    def pay(self, request: Request, usage: dict) -> None:
        with self._lock:
            self._paid[request.digest] += 1
            self._tokens.update({name: count for name, count in usage.items() if name != "total_tokens"})
            if request.path == "/v1/embeddings":
                self._texts.update((request.body["model"], text) for text in _inputs(request.body))

    def record(self, record: Record) -> None:
        with self._lock:
            self._requests.append(record)

    @contextlib.contextmanager
    def flight(self):
        with self._lock:
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            yield
        finally:
            with self._lock:
                self.in_flight -= 1


class Model:
    """The two endpoints that cost: (status, body) of a request, without any HTTP."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def answer(self, request: Request, fault: str | None) -> tuple[int, dict]:
        chat = request.path == "/v1/chat/completions"
        wrong = (self._chat_problem if chat else self._embeddings_problem)(request.body)
        if wrong:
            return error_body(400, "invalid_request_error", wrong[0], wrong[1])
        return 200, self._chat(request, fault) if chat else self._embeddings(request.body)

    def _chat(self, request: Request, fault: str | None) -> dict:
        body = request.body
        choice = spoil(fault, request, llm_answers.chat_content(body))
        finish = choice.pop("finish_reason")
        used = count_tokens(choice["content"] or choice["refusal"] or "")
        asked = _prompt_tokens(body)
        return {
            "id": f"chatcmpl-{request.digest}", "object": "chat.completion", "created": CREATED, "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", **choice}, "logprobs": None,
                         "finish_reason": finish}],
            "usage": {"prompt_tokens": asked, "completion_tokens": used, "total_tokens": asked + used},
        }  # fmt: skip

    def _chat_problem(self, body: dict) -> tuple[str | None, str] | None:
        messages = body.get("messages")
        if not isinstance(body.get("model"), str):
            return None, "you must provide a model parameter"
        if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
            return None, "Invalid 'messages': a non-empty array of objects is wanted."
        if body.get("stream") or body.get("n", 1) != 1:
            return None, "This server neither streams nor answers more than once."
        form = body.get("response_format") or {}
        if form.get("type") == "json_schema" and form["json_schema"].get("strict"):
            problem = llm_answers.strict_problem(form["json_schema"]["schema"])
            if problem:
                return None, f"Invalid schema for response_format {form['json_schema'].get('name')!r}: {problem}."
        if form.get("type") == "json_object" and "json" not in json.dumps(messages).lower():
            return None, "'messages' must contain the word 'json' in some form, to use 'json_object'."
        if self._settings.context is not None and _prompt_tokens(body) > self._settings.context:
            return "context_length_exceeded", f"This model's maximum context length is {self._settings.context} tokens."
        return None

    def _embeddings(self, body: dict) -> dict:
        texts, encoding = _inputs(body), body.get("encoding_format", "float")
        width = body.get("dimensions") or self._settings.width
        vectors = [llm_answers.encoded(llm_answers.embedding(text, width), encoding) for text in texts]
        used = sum(count_tokens(text) for text in texts)
        return {
            "object": "list", "model": body["model"],
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }  # fmt: skip

    def _embeddings_problem(self, body: dict) -> tuple[str | None, str] | None:
        if not isinstance(body.get("model"), str):
            return None, "you must provide a model parameter"
        texts = _inputs(body)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            return None, "'$.input' is invalid: a text or an array of texts, none of them empty."
        if len(texts) > MOST_INPUTS:
            return None, f"'$.input' is invalid: at most {MOST_INPUTS} texts."
        if max(map(count_tokens, texts)) > MOST_TOKENS:
            return None, f"This model's maximum context length is {MOST_TOKENS} tokens."
        if body.get("encoding_format", "float") not in ("float", "base64"):
            return None, "'encoding_format' must be 'float' or 'base64'."
        return None


def _inputs(body: dict) -> list:
    given = body.get("input")
    return given if isinstance(given, list) else [given]


def _prompt_tokens(body: dict) -> int:
    return sum(count_tokens(json.dumps(message.get("content"))) for message in body["messages"])


class _Closed(Exception):
    """The connection is to be closed, without more being sent."""


class LLMServer(Ledger):
    """The service, in a thread from `with` to the end of its block. Keyword arguments as in Settings."""

    def __init__(self, settings: Settings | None = None, *, port: int = 0, **given):
        super().__init__()
        self.settings = settings or Settings(**given)
        faults = self.settings.faults
        self._script = faults if callable(faults) else by_chance(faults, self.settings.seed)
        self._model = Model(self.settings)
        self._batches = Batches(self.settings.batches, self._answer_line)
        self._remembered: dict[str, tuple[str, dict]] = {}
        self._port = port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> LLMServer:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        if not ready.wait(10) or not self._thread.is_alive():
            raise OSError(f"port {self._port} of 127.0.0.1 could not be opened")
        return self

    def __exit__(self, *error) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._tasks = asyncio.get_running_loop(), asyncio.Event(), set()
        try:
            server = await asyncio.start_server(self._connection, "127.0.0.1", self._port, backlog=1024)
            self._port = server.sockets[0].getsockname()[1]
        finally:
            ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- HTTP ---

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
            writer.close()
        except (_Closed, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Reads one request and answers it; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest if each)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        url = urlsplit(target)
        if url.path == "/stats":
            await _send(writer, 200, self.stats())
        else:
            with self.flight():
                await self._handle(reader, writer, method, url.path, parse_qs(url.query), headers, raw)
        return headers.get("connection", "").lower() != "close"

    async def _handle(self, reader, writer, method, path, query, headers, raw) -> None:
        try:
            body = json.loads(raw) if headers.get("content-type", "").startswith("application/json") and raw else None
        except ValueError:
            await _send(writer, *error_body(400, "invalid_request_error", None, "The body is not valid JSON."))
            return
        request = self._request(method, path, body if body is not None else raw.decode("latin-1"), headers)
        fault, status, paid = self._fault(request), None, False
        try:
            if fault == "dropped":
                raise _Closed
            if fault == "garbage-body":
                status = 200
                await _send(writer, 200, b"<html><body>upstream connect error</body></html>")
                return
            if fault in REFUSALS:
                key = headers.get("authorization", "").removeprefix("Bearer ")
                status, answer = _refused(fault, key)
                await _send(writer, status, answer, self._retry_after() if fault in RETRY_AFTER else {})
                return
            status, answer, paid = await self._answer(request, fault, query, headers, raw)
            if fault == "slow":
                await _linger(reader, self.settings.slow_for)
            await _send(writer, status, answer, half=fault == "half-body")
        finally:
            self.record(Record(request, fault, status, paid, time.time()))

    def _request(self, method: str, path: str, body: object, headers: dict, batch: bool = False) -> Request:
        key = digest(path if method == "POST" else f"{method} {path}", body)
        return Request(
            method, path, body, key, self.attempt(key),
            headers.get("idempotency-key"), "authorization" in headers, batch,
        )  # fmt: skip

    def _fault(self, request: Request) -> str | None:
        fault = self._script(request)
        if fault is not None:
            check_names([fault])
        return None if fault in SPOILED and request.path != "/v1/chat/completions" else fault

    def _retry_after(self) -> dict[str, str]:
        seconds = self.settings.retry_after
        whole = {"Retry-After": str(math.ceil(seconds))}
        return whole if seconds == int(seconds) else {**whole, "retry-after-ms": f"{seconds * 1000:g}"}

    # --- The endpoints ---

    async def _answer(self, request: Request, fault, query, headers, raw) -> tuple[int, dict | bytes, bool]:
        """Status, body, and whether it was paid for now."""
        costs = request.method == "POST" and request.path in ENDPOINTS
        if costs and self.settings.latency:
            await asyncio.sleep(self.settings.latency)
        key = request.idempotency_key if self.settings.idempotent and request.method == "POST" else None
        if key in self._remembered:
            known, answer = self._remembered[key]
            if known != request.digest:
                message = "The Idempotency-Key was used with another request."
                return *error_body(400, "idempotency_error", "idempotency_key_reuse", message), False
            return 200, answer, False
        status, answer = self._charged(request, fault) if costs else self._free(request, query, headers, raw)
        if key and status == 200:
            self._remembered[key] = request.digest, answer
        return status, answer, costs and status == 200

    def _charged(self, request: Request, fault: str | None) -> tuple[int, dict]:
        status, answer = self._model.answer(request, fault)
        if status == 200:
            self.pay(request, answer["usage"])
        return status, answer

    def _free(self, request: Request, query, headers, raw) -> tuple[int, dict | bytes]:
        match (request.method, *request.path.strip("/").split("/")):
            case ("GET", "v1", "models"):
                entry = {"id": "test-model", "object": "model", "created": CREATED, "owned_by": "tests"}
                return 200, {"object": "list", "data": [entry]}
            case ("POST", "v1", "files"):
                parts = _multipart(headers.get("content-type", ""), raw)
                if "file" not in parts or "purpose" not in parts:
                    return error_body(400, "invalid_request_error", None, "'file' and 'purpose' are required.")
                filename, content = parts["file"]
                return 200, self._batches.add_file(content, filename, parts["purpose"][1].decode())
            case ("GET", "v1", "files", name, *tail) if self._batches.file(name) and tail in ([], ["content"]):
                return 200, self._batches.file(name)[1 if tail else 0]
            case ("POST", "v1", "batches"):
                made = self._batches.create(request.body)
                wrong = isinstance(made, str)
                return error_body(400, "invalid_request_error", None, made) if wrong else (200, made)
            case ("GET", "v1", "batches"):
                return 200, self._batches.page(int(query.get("limit", ["20"])[0]), query.get("after", [None])[0])
            case ("GET", "v1", "batches", name) if shown := self._batches.poll(name):
                return 200, shown
            case ("POST", "v1", "batches", name, "cancel") if shown := self._batches.cancel(name):
                return 200, shown
        return error_body(404, "invalid_request_error", None, f"Invalid URL ({request.method} {request.path})")

    def _answer_line(self, path: str, body: dict) -> tuple[int, dict]:
        """A line of a batch. Faults of the connection do not reach it."""
        request = self._request("POST", path, body, {}, batch=True)
        fault = self._fault(request)
        fault = fault if fault in (*REFUSALS, *SPOILED) else None
        status, answer = _refused(fault, "") if fault in REFUSALS else self._charged(request, fault)
        self.record(Record(request, fault, status, status == 200, time.time()))
        return status, answer


def _refused(fault: str, key: str) -> tuple[int, dict]:
    status, kind, code, message = REFUSALS[fault]
    return error_body(status, kind, code, message.replace("{key}", key))


async def _linger(reader: asyncio.StreamReader, seconds: float) -> None:
    """Waits, but not for a client that has gone."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(min(left, 0.02))


async def _send(writer, status: int, body: dict | bytes, headers: Mapping[str, str] | None = None, half=False) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}", f"Content-Type: {kind}"]
    lines += [f"Content-Length: {len(data)}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (data[: len(data) // 2] if half else data))
    await writer.drain()
    if half:
        writer.close()
        raise _Closed


def _multipart(content_type: str, raw: bytes) -> dict[str, tuple[str, bytes]]:
    """(file name, content) by field name."""
    fields = {}
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    for part in raw.split(b"--" + boundary)[1:-1] if boundary else ():
        head, _, content = part.partition(b"\r\n\r\n")
        line = next(line for line in head.decode().split("\r\n") if line.lower().startswith("content-disposition"))
        given = dict(each.strip().split("=", 1) for each in line.split(";")[1:])
        fields[given["name"].strip('"')] = given.get("filename", "").strip('"'), content.removesuffix(b"\r\n")
    return fields


# --- The program ---


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A test server that speaks OpenAI's API on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--faults", nargs="*", default=[], metavar="NAME=PROBABILITY")
    parser.add_argument("--stats", type=Path, metavar="FILE", help="write what GET /stats says here at the end")
    for name, default in asdict(Settings()).items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        elif name not in ("faults", "batches"):
            kind = int if name in ("seed", "width", "context") else float
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    for name, default in asdict(BatchPlan()).items():
        if isinstance(default, bool):
            parser.add_argument(f"--batch-{name}", action="store_true")
        else:
            kind = str if name == "fail" else float if name in ("delay", "expire_after") else int
            parser.add_argument(f"--batch-{name.replace('_', '-')}", type=kind, default=default)
    given = vars(parser.parse_args(arguments))
    port, stats = given.pop("port"), given.pop("stats")
    plan = BatchPlan(**{name[6:]: given.pop(name) for name in list(given) if name.startswith("batch_")})
    try:
        faults = {name: float(rate) for name, _, rate in (each.partition("=") for each in given.pop("faults"))}
        server = LLMServer(port=port, faults=faults, batches=plan, **given)
    except ValueError as error:
        parser.error(f"--faults: {error}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), server:
        print(server.base_url, flush=True)
        while True:
            time.sleep(3600)
    if stats:
        stats.write_text(json.dumps(server.stats()))


if __name__ == "__main__":
    sys.exit(main())
