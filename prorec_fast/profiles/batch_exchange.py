"""Requests out and answers in, through the batches that a store knows of."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import replace

from .batch_service import WAY_OUT, BatchService, OutputLine, Report, input_line
from .errors import BudgetReached, ProfileError, Rejected, ServiceRefused, Unanswered
from .open_batches import OpenBatch
from .requests import Answer, ChatRequest
from .session import Session

_PATIENCE = 10  # looks at one batch, in a row, that the service may fail to answer


class BatchExchange:
    """The open batches of a store, sent and read.

    Attributes:
        problems: by the key of a request, what came in place of its answer since this was last looked at.
    """

    def __init__(
        self, service: BatchService, session: Session, settle: float, max_requests: int, max_bytes: int
    ) -> None:
        self.service, self.session, self.store = service, session, session.store
        self.settle, self.max_requests, self.max_bytes = settle, max_requests, max_bytes
        self.problems: dict[str, ProfileError] = {}
        self.done: dict[str, int] = {}  # by batch, at the last look
        self.unanswered: Counter[str] = Counter()  # looks in a row, by batch
        self.sent_alone: set[str] = set()
        self.crowded = False  # the service took a batch and would take no other beside it

    # to the service

    async def send_all(self, waiting: dict[str, ChatRequest]) -> None:
        """Send, of what is waited for, all that no batch holds, no other process is at, and the budget allows."""
        if self.crowded and self.store.batches():
            return
        self.crowded = False
        held = self.store.batched()
        for group in self.files({key: request for key, request in waiting.items() if key not in held}):
            if self.session.stop is not None:
                break
            entries = [(key, request.prompt_chars, self.session.most_cost(request)) for key, request in group.items()]
            try:
                opened = self.store.open_batch(entries, model=self.session.chat.model, budget=self.session.budget)
            except BudgetReached:
                if self.store.batches():  # they will cost less than what is set aside for them
                    break
                raise
            if opened is not None:
                batch, keys = opened
                try:
                    await self.patiently("upload", self.send(batch, [group[key] for key in keys], keys))
                finally:
                    self.store.release(batch.name)
        self.tell()

    def files(self, requests: dict[str, ChatRequest]) -> Iterator[dict[str, ChatRequest]]:
        """The requests in parts, each for one input file."""
        part: dict[str, ChatRequest] = {}
        size = 0
        for key, request in requests.items():
            length = len(self.line(key, request))
            if length > self.max_bytes:
                self.problems[key] = Rejected(f"{length} bytes; a batch takes {self.max_bytes}")
                continue
            if part and (len(part) == self.max_requests or size + length > self.max_bytes):
                yield part
                part, size = {}, 0
            part[key] = request
            size += length
        if part:
            yield part

    def line(self, key: str, request: ChatRequest) -> bytes:
        return input_line(key, request.body(self.session.chat))

    async def send(self, batch: OpenBatch, requests: list[ChatRequest], keys: list[str]) -> None:
        try:
            with tempfile.TemporaryFile(dir=self.store.path.parent) as file:
                for key, request in zip(keys, requests, strict=True):
                    file.write(self.line(key, request))
                file.seek(0)
                name = await self.service.upload(batch.name, file)
        except BaseException:
            self.store.end_batch(batch.name)
            raise
        if len(self.store.batches()) == 1:
            self.sent_alone.add(batch.name)
        await self.create(replace(batch, file=name))

    async def create(self, batch: OpenBatch) -> None:
        self.store.note_batch(batch.name, file=batch.file, asked=time.time())
        try:
            name = await self.service.create(batch.name, batch.file)
        except Unanswered:
            self.store.note_batch(batch.name, asked=time.time())  # it may appear after this
            raise
        except ServiceRefused:
            self.store.end_batch(batch.name)
            raise
        self.store.note_batch(batch.name, id=name)

    # from the service

    async def look_at_all(self) -> None:
        """Ask after every open batch, and read those that have ended."""
        for name in self.store.batches():
            if self.session.stop is not None:
                break
            batch = self.store.take_batch(name)
            if batch is None:
                continue
            try:
                await self.patiently(name, self.look_at(batch))
            finally:
                self.store.release(name)
        self.tell()

    async def look_at(self, batch: OpenBatch) -> None:
        if batch.file is None:
            file = await self.service.uploaded(batch.name)
            if file is None:
                self.store.end_batch(batch.name)
                return
            batch = replace(batch, file=file)
        if batch.id is None:
            name = None if batch.asked is None else await self.service.created(batch.name, batch.file)
            if name is None:
                if batch.asked is None or abs(time.time() - batch.asked) >= self.settle:
                    await self.create(batch)
                return
            self.store.note_batch(batch.name, id=name)
            batch = replace(batch, id=name)
        report = await self.service.report(batch.name, batch.file, batch.id)
        self.done[batch.name] = report.done
        if report.ended:
            await self.read(batch, report)

    async def read(self, batch: OpenBatch, report: Report) -> None:
        """Store all that an ended batch has brought; what it has not is free again."""
        reading = _Reading(self.session, batch)
        for file in report.files:
            async with contextlib.aclosing(self.service.lines(file)) as parts:
                async for part in parts:
                    reading.take(part)
        if reading.missing and (reading.unreadable or reading.lines < report.completed):
            raise Unanswered(
                f"of the {report.completed} answers of batch {batch.id}, {reading.lines} can be read; {WAY_OUT}"
            )
        self.store.end_batch(batch.name)
        if reading.strangers:
            self.session.outcome.note(f"batch {batch.id}: {reading.strangers} answers to what was not asked, left out")
        if report.status != "failed":
            self.crowded = False
            without = Unanswered(f"batch {batch.id} is {report.status}, without a line for this request")
            self.problems |= reading.problems | dict.fromkeys(reading.missing, without)
        elif report.code == "token_limit_exceeded" and batch.name not in self.sent_alone:
            self.crowded = True
        else:
            raise ServiceRefused(f"{self.session.service.place} refuses batch {batch.id}: {report.problem}")

    async def patiently(self, name: str, step: Awaitable[None]) -> None:
        """Leave what the service does not answer for the next look, a number of times."""
        try:
            await step
            self.unanswered.pop(name, None)
        except Unanswered as error:
            self.unanswered[name] += 1
            if self.unanswered[name] >= _PATIENCE:
                place, times = self.session.service.place, self.unanswered[name]
                raise ServiceRefused(f"{place} failed {times} times in a row; the last time: {error}") from error

    def tell(self) -> None:
        open_now = self.store.batches()
        done = sum(self.done.get(name, 0) for name in open_now)
        self.session.outcome.batches(len(open_now), sum(open_now.values()), done)

    def tell_open(self) -> None:
        """Say what goes on although the run ends."""
        if open_now := self.store.batches():
            self.session.outcome.note(
                f"{len(open_now)} batches with {sum(open_now.values())} requests go on at "
                f"{self.session.service.place}; the same command reads them when they are done"
            )


class _Reading:
    """What the files of an ended batch say.

    Attributes:
        expected: characters of the prompt, by the keys that have no answer yet.
        problems: what there is in place of an answer, by key.
        lines, unreadable, strangers: how many there were; how many were no lines of a batch, or not of this one.
    """

    def __init__(self, session: Session, batch: OpenBatch) -> None:
        self.session, self.batch = session, batch
        self.expected = session.store.batch_requests(batch.name)
        self.problems: dict[str, ProfileError] = {}
        self.lines = self.unreadable = self.strangers = 0

    @property
    def missing(self) -> set[str]:
        return self.expected.keys() - self.problems.keys()

    def take(self, texts: list[bytes]) -> None:
        with self.session.store.together():
            for text in filter(bytes.strip, texts):
                try:
                    line = OutputLine.read(text)
                except ValueError:
                    self.unreadable += 1
                    continue
                self.lines += 1
                if line.key in self.expected:
                    self.take_line(line)
                elif self.session.store.answer(line.key) is None:
                    self.strangers += 1

    def take_line(self, line: OutputLine) -> None:
        if line.body is None:
            self.problems[line.key] = self.session.service.refusal(line.status, line.code, line.message)
            return
        try:
            Answer.from_body(line.key, line.body)
        except ValueError:
            self.problems[line.key] = Unreadable("a reply that is no chat completion")
            return
        self.session.keep(line.key, line.body, self.batch.model, self.expected.pop(line.key))


class Unreadable(Unanswered):
    """A reply that cannot be used, and may be paid for each time."""
