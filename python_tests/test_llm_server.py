"""The loopback service that the profile pipeline is tested against, driven by the openai client itself."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

from llm_faults import first  # noqa: E402
from llm_server import LLMServer  # noqa: E402


class Profiles(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    summary: str
    profiles: list[str]


class Chosen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    ids: list[int]


def drive(server, conversation, **client):
    """What `conversation(client)` returns, with an openai client of its own."""

    async def run():
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-secret", **client) as connected:
            return await conversation(connected)

    return asyncio.run(run())


def user(text, **given):
    return {"model": "m", "messages": [{"role": "user", "content": json.dumps({"text": text, **given})}]}


def test_answers_fit_the_schema_and_depend_on_the_request_alone():
    async def both(client):
        asked = [user("Dragons above mountains"), user("Kitchens, cheese and wine"), user("Dragons above mountains")]
        asked = [{**body, "response_format": Profiles} for body in asked]
        return [(await client.chat.completions.parse(**body)).choices[0].message.parsed for body in asked]

    with LLMServer() as server:
        dragons, kitchens, again = drive(server, both)
    assert dragons == again != kitchens
    assert len({dragons.summary, *dragons.profiles, *kitchens.profiles}) > 3
    assert list(server.paid.values()) == [2, 1] and server.stats()["paid_twice"] == 1


def test_retries_honour_retry_after():
    async def ask(client):
        return await client.chat.completions.create(**user("patience"))

    with LLMServer(faults=first(2, "rate-limit"), retry_after=0.1) as server:
        start = time.monotonic()
        drive(server, ask)
        assert 0.2 < time.monotonic() - start < 0.8
    assert [record.status for record in server.requests] == [429, 429, 200]
    assert list(server.paid.values()) == [1]
