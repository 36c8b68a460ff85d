"""Runs of chains of questions over a service on loopback, and an outcome that notes what it is told."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel, ConfigDict

from prorec_fast.profiles import online
from prorec_fast.profiles.pricing import Prices
from prorec_fast.profiles.requests import ask
from prorec_fast.profiles.session import Session
from prorec_fast.profiles.settings import ChatSettings, ServiceSettings

CHAT = ChatSettings("m", max_tokens=64)
PRICES = Prices(chat={"m": (1000.0, 2000.0)}, embedding={})  # a token costs as much as a thousand do elsewhere


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


class Outcome:
    """Notes what it is told."""

    def __init__(self):
        self.results, self.failures, self.answers = {}, {}, 0

    def finished(self, node, result):
        assert node not in self.results
        self.results[node] = result

    def failed(self, node, kind, reason):
        assert node not in self.failures
        self.failures[node] = kind, reason

    def paid(self):
        self.answers += 1


def messages(row, step=0):
    return [{"role": "user", "content": f"Question {row}, step {step}, of someone who likes mountains and rivers."}]


def chain(row, steps=1):
    """The texts of `steps` answers."""
    texts = []
    for step in range(steps):
        checked = yield from ask(messages(row, step), Reply)
        texts.append(checked.value.text)
    return texts


def chains(rows, steps=1):
    return [(("item", row), lambda row=row: chain(row, steps)) for row in range(rows)]


def session_of(store, base_url, *, chat=CHAT, budget=None, **service):
    service = {"concurrency": 4, "retries": 2, "timeout": 5.0, **service}
    return Session(store, chat, ServiceSettings(base_url, **service), Outcome(), PRICES, budget)


def run(session, work):
    asyncio.run(online.run(work, session))
    return session.outcome


def failing(session, work):
    """What a run raises."""
    with pytest.raises(BaseException) as caught:
        asyncio.run(online.run(work, session))
    return caught.value
