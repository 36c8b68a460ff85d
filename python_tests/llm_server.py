"""A service on loopback that speaks OpenAI's HTTP API, with faults on demand and a ledger of what was paid.

In a test:    with LLMServer(faults={"rate-limit": 0.1}, seed=3) as server: ... server.base_url, server.paid
As a program: python python_tests/llm_server.py --port 8089 --faults rate-limit=0.1    (Ctrl-C stops it)
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from llm_answers import digest
from llm_batches import Batches, BatchPlan
from llm_faults import REFUSALS, RETRY_AFTER, SPOILED, Request, Script, by_chance, check_names, error_body, refused
from llm_http import Closed, Received, linger, multipart, receive, send
from llm_ledger import Ledger, Record
from llm_model import CHAT, CREATED, EMBEDDINGS, answered, inputs


@dataclass(frozen=True)
class Settings:
    faults: Mapping[str, float] | Script = field(default_factory=dict)  # probabilities by name, or request -> name
    batches: BatchPlan | Callable[[int], BatchPlan] = field(default_factory=BatchPlan)  # of all, or of the n-th
    seed: int = 0  # of the faults; answers depend on requests alone
    latency: float = 0.0  # seconds that the model takes
    retry_after: float = 0.02  # seconds; whole ones are sent as Retry-After alone, others as retry-after-ms too
    slow_for: float = 5.0  # seconds that the fault "slow" holds an answer back
    width: int = 64  # of embeddings for which no dimensions are asked
    context: int | None = None  # the most tokens of a chat's messages
    idempotent: bool = False  # an Idempotency-Key that came before gets the same answer again, for nothing


class LLMServer(Ledger):
    """The service, in a thread, from `with` to the end of its block. Entered again, it has the same port, files,
    batches and ledger. What goes wrong in it or in a fault script is raised at the block's end.

    Args:
        settings: or the fields of one by keyword.
        port: 0 for any free one.
    """

    def __init__(self, settings: Settings | None = None, *, port: int = 0, **given):
        super().__init__()
        self.settings = settings or Settings(**given)
        faults = self.settings.faults
        self._script = faults if callable(faults) else by_chance(faults, self.settings.seed)
        self._batches = Batches(self.settings.batches, self._answer_line)
        self._remembered: dict[str, tuple[str, dict]] = {}
        self._port = port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> LLMServer:
        self._problem: BaseException | None = None
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        ready.wait()
        if self._problem:
            raise self._problem
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._problem and error is None:
            raise self._problem

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._tasks = asyncio.get_running_loop(), asyncio.Event(), set()
        try:
            server = await asyncio.start_server(self._connection, "127.0.0.1", self._port, backlog=1024)
            self._port = server.sockets[0].getsockname()[1]
        except OSError as error:
            self._problem = error
            return
        finally:
            ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while True:
                received = await receive(reader)
                if received.path == "/stats":
                    await send(writer, 200, self.stats())
                else:
                    with self.flight():
                        await self._handle(reader, writer, received)
                if received.headers.get("connection", "").lower() == "close":
                    break
        except (Closed, asyncio.CancelledError):
            pass
        except Exception as error:
            self._problem = error
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: Received) -> None:
        try:
            body = received.body
        except ValueError:
            await send(writer, *error_body(400, "invalid_request_error", None, "The body is not valid JSON."))
            return
        request = self._request(received.method, received.path, body, received.headers)
        fault, status, paid = self._fault(request), None, False
        try:
            if fault == "dropped":
                writer.transport.abort()
                raise Closed
            if fault == "garbage-body":
                status = 200
                await send(writer, status, b"<html><body>upstream connect error</body></html>")
            elif fault in REFUSALS:
                status, answer = refused(fault, received.headers.get("authorization", "").removeprefix("Bearer "))
                await send(writer, status, answer, self._retry_after() if fault in RETRY_AFTER else {})
            else:
                status, answer, paid = await self._answer(request, fault, received)
                if fault == "slow":
                    await linger(reader, self.settings.slow_for)
                await send(writer, status, answer, half=fault == "half-body")
        finally:
            self.record(Record(request, fault, status, paid, time.time()))

    def _request(self, method: str, path: str, body: object, headers: dict, batch: bool = False) -> Request:
        key = digest(path if method == "POST" else f"{method} {path}", body)
        authorized = "authorization" in headers
        return Request(method, path, body, key, self.attempt(key), headers.get("idempotency-key"), authorized, batch)

    def _fault(self, request: Request) -> str | None:
        fault = self._script(request)
        check_names([fault] if fault else [])
        return None if fault in SPOILED and request.path != CHAT else fault

    def _retry_after(self) -> dict[str, str]:
        seconds = self.settings.retry_after
        whole = {"Retry-After": str(math.ceil(seconds))}
        return whole if seconds == int(seconds) else {**whole, "retry-after-ms": f"{seconds * 1000:g}"}

    async def _answer(self, request: Request, fault: str | None, received: Received) -> tuple[int, dict | bytes, bool]:
        """Status, body, and whether it was paid for now."""
        costs = request.method == "POST" and request.path in (CHAT, EMBEDDINGS)
        if costs:
            await asyncio.sleep(self.settings.latency)
        key = request.idempotency_key if self.settings.idempotent and request.method == "POST" else None
        if key in self._remembered:
            known, answer = self._remembered[key]
            if known == request.digest:
                return 200, answer, False
            message = "The Idempotency-Key came with another request before."
            return *error_body(400, "invalid_request_error", "idempotency_key_reuse", message), False
        status, answer = self._charged(request, fault) if costs else self._free(request, received)
        if key and status == 200:
            self._remembered[key] = request.digest, answer
        return status, answer, costs and status == 200

    def _charged(self, request: Request, fault: str | None) -> tuple[int, dict]:
        status, answer = answered(request, fault, self.settings.width, self.settings.context)
        if status == 200:
            texts = inputs(request.body) if request.path == EMBEDDINGS else []
            self.pay(request.digest, answer["usage"], [(request.body["model"], text) for text in texts])
        return status, answer

    def _answer_line(self, path: str, body: dict) -> tuple[int, dict]:
        """A line of a batch, which the faults of connections do not reach."""
        request = self._request("POST", path, body, {}, batch=True)
        fault = self._fault(request)
        fault = fault if fault in (*REFUSALS, *SPOILED) else None
        status, answer = refused(fault, "") if fault in REFUSALS else self._charged(request, fault)
        self.record(Record(request, fault, status, status == 200, time.time()))
        return status, answer

    def _free(self, request: Request, received: Received) -> tuple[int, dict | bytes]:
        wrong = f"Invalid URL ({request.method} {request.path})"
        match (request.method, *request.path.strip("/").split("/")):
            case ("GET", "v1", "models"):
                entry = {"id": "test-model", "object": "model", "created": CREATED, "owned_by": "tests"}
                return 200, {"object": "list", "data": [entry]}
            case ("POST", "v1", "files"):
                parts = multipart(received)
                if "file" in parts and "purpose" in parts:
                    name, content = parts["file"]
                    return 200, self._batches.add_file(content, name, parts["purpose"][1].decode())
                wrong = "'file' and 'purpose' are required."
            case ("GET", "v1", "files", name, *tail) if self._batches.file(name) and tail in ([], ["content"]):
                return 200, self._batches.file(name)[1 if tail else 0]
            case ("POST", "v1", "batches"):
                try:
                    return 200, self._batches.create(request.body)
                except ValueError as error:
                    wrong = str(error)
            case ("GET", "v1", "files"):
                purpose = received.query.get("purpose", [None])[0]
                return 200, self._batches.files(purpose, *_page_asked(received, 10_000))
            case ("GET", "v1", "batches"):
                return 200, self._batches.page(*_page_asked(received, 20))
            case ("GET", "v1", "batches", name) if shown := self._batches.poll(name):
                return 200, shown
            case ("POST", "v1", "batches", name, "cancel") if shown := self._batches.cancel(name):
                return 200, shown
        return error_body(404 if wrong.startswith("Invalid URL") else 400, "invalid_request_error", None, wrong)


def _page_asked(received: Received, limit: int) -> tuple[int, str | None]:
    return int(received.query.get("limit", [limit])[0]), received.query.get("after", [None])[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="A test server that speaks OpenAI's API on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--stats", type=Path, metavar="FILE", help="where what GET /stats says is written at the end")
    parser.add_argument("--faults", nargs="*", default=[], metavar="NAME=PROBABILITY")
    _add_fields(parser, Settings(), "--")
    _add_fields(parser, BatchPlan(), "--batch-")
    given = vars(parser.parse_args())
    port, stats, pairs = (given.pop(name) for name in ("port", "stats", "faults"))
    plan = BatchPlan(**{name[6:]: given.pop(name) for name in list(given) if name.startswith("batch_")})
    try:
        faults = {name: float(rate) for name, _, rate in (pair.partition("=") for pair in pairs)}
        server = LLMServer(port=port, faults=faults, batches=plan, **given)
    except ValueError as error:
        parser.error(f"--faults: {error}")
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell script starts its background jobs with SIGINT ignored
        signal.signal(name, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), server:
            print(server.base_url, flush=True)
            while True:
                time.sleep(3600)
    except OSError as error:
        print(f"port {port}: {error}", file=sys.stderr)
        return 2
    if stats:
        stats.write_text(json.dumps(server.stats()))
    return 0


def _add_fields(parser: argparse.ArgumentParser, defaults: object, prefix: str) -> None:
    kinds = {"int": int, "int | None": int, "float": float, "float | None": float, "str | None": str}
    for each in fields(defaults):
        option = prefix + each.name.replace("_", "-")
        if each.type == "bool":
            parser.add_argument(option, action="store_true")
        elif each.type in kinds:
            parser.add_argument(option, type=kinds[each.type], default=getattr(defaults, each.name))


if __name__ == "__main__":
    sys.exit(main())
