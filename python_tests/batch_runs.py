"""Runs of chains over the Batch API of the loopback service: what a run heard, and what the service was asked."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from pydantic import BaseModel, ConfigDict

from prorec_fast.profiles import batch
from prorec_fast.profiles.pricing import Prices
from prorec_fast.profiles.requests import ask
from prorec_fast.profiles.session import Session
from prorec_fast.profiles.settings import ChatSettings, ServiceSettings
from prorec_fast.profiles.store import Store

CHAT = ChatSettings("test-model", max_tokens=100)
PRICES = Prices(chat={"test-model": (1.0, 2.0)}, embedding={})
CREATE = ("POST", "/v1/batches")
UPLOAD = ("POST", "/v1/files")


class Profile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


def two_steps(row, schema=Profile):
    first = yield from ask([{"role": "user", "content": f"Reader number{row} likes reading stories"}], schema)
    second = yield from ask([{"role": "user", "content": f"Say otherwise: {first.value.text}"}], schema)
    return second.value.text


def one_step(row):
    checked = yield from ask([{"role": "user", "content": f"Reader number{row} likes reading stories"}], Profile)
    return checked.value.text


class Heard:
    """An outcome that remembers, and calls `at` with what it hears."""

    def __init__(self, at=None):
        self.profiles, self.failures, self.looks, self.notes = {}, {}, [], []
        self.payments = 0
        self.at = at or (lambda heard, what: None)

    def finished(self, node, result):
        self.profiles[node[1]] = result
        self.at(self, "finished")

    def failed(self, node, kind, reason):
        self.failures[node[1]] = (kind, reason)

    def paid(self):
        self.payments += 1
        self.at(self, "paid")

    def batches(self, open, requests, done):
        self.looks.append((open, requests, done))
        self.at(self, "look")

    def note(self, line):
        self.notes.append(line)


def walk(url, path, rows=6, *, start=two_steps, at=None, transport=batch, chat=CHAT, retries=1, budget=None, **options):
    """What one run hears; `at` may stop it by setting `heard.session.stop`. A run's error is raised with what it heard
    in its attribute `heard`."""
    if transport is batch:
        options = {"poll": 0.01, "settle": 0.1, **options}
    heard = Heard(at)
    with Store(path) as store:
        service = ServiceSettings(url, timeout=5, retries=retries)
        heard.session = Session(store, chat, service, heard, PRICES, budget, batch=transport is batch)
        chains = [(("item", row), lambda row=row: start(row)) for row in range(rows)]
        try:
            asyncio.run(transport.run(chains, heard.session, **options))
        except Exception as error:
            error.heard = heard
            raise
        finally:
            heard.spent, heard.left = store.spent(), store.batches()
    return heard


def records(server):
    """What the server was asked; it notes that when it has answered."""
    while server.in_flight:
        time.sleep(0.001)
    return server.requests


def asked(server, *what):
    return sum((record.request.method, record.request.path) == what for record in records(server))


def lines_asked(server):
    """How often each request came as a line of a batch."""
    return Counter(record.request.digest for record in records(server) if record.request.batch)


def profiles_of(truth, rows):
    return {row: truth.profiles[row] for row in range(rows)}
