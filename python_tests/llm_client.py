"""The openai client itself, as the tests of the loopback service and of its batches drive it."""

from __future__ import annotations

import asyncio
import json

import openai
import pydantic

CHAT = "/v1/chat/completions"


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class Profiles(Strict):
    summary: str
    profiles: list[str]


class Chosen(Strict):
    ids: list[int]


def drive(server, conversation, **client):
    """What `conversation(client)` returns, with an openai client of its own, which retries only if told to."""

    async def run():
        given = {"base_url": server.base_url, "api_key": "sk-secret", "max_retries": 0, **client}
        async with openai.AsyncOpenAI(**given) as connected:
            return await conversation(connected)

    return asyncio.run(run())


def asking(text, schema=None, **given):
    body = {"model": "m", "messages": [{"role": "user", "content": json.dumps({"text": text, **given})}]}
    if schema is not None:
        form = {"name": schema.__name__, "schema": schema.model_json_schema(), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def ask(text="patience", schema=None, headers=None, **given):
    """A conversation: one question, and the message of its answer."""

    async def conversation(client):
        body = asking(text, schema, **given)
        return (await client.chat.completions.create(**body, extra_headers=headers)).choices[0]

    return conversation
