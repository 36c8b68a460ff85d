"""Files and batches of the loopback service, driven by the openai client itself."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("openai", reason="the client is openai's")

import openai
from llm_batches import BatchPlan
from llm_client import CHAT, Profiles, ask, asking, drive
from llm_server import LLMServer


def uploaded(bodies):
    lines = [{"custom_id": f"n{i}", "method": "POST", "url": CHAT, "body": body} for i, body in enumerate(bodies)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def submitted(client, content, **metadata):
    source = await client.files.create(file=("requests.jsonl", content), purpose="batch")
    assert (source.bytes, source.filename) == (len(content), "requests.jsonl")
    assert (await client.files.content(source.id)).content == content
    return await client.batches.create(
        input_file_id=source.id, endpoint=CHAT, completion_window="24h", metadata=metadata
    )


async def finished(client, batch):
    """Its statuses, and its output and error lines by custom id."""
    seen = [batch.status]
    while seen[-1] not in ("completed", "failed", "expired", "cancelled"):
        batch = await client.batches.retrieve(batch.id)
        seen.append(batch.status)
    files = []
    for name in (batch.output_file_id, batch.error_file_id):
        text = (await client.files.content(name)).text if name else ""
        files.append({line["custom_id"]: line for line in map(json.loads, text.splitlines())})
    assert batch.request_counts.completed == len(files[0]) and batch.request_counts.failed == len(files[1])
    return seen, *files


def batched(server, bodies):
    async def conversation(client):
        return await finished(client, await submitted(client, uploaded(bodies)))

    return drive(server, conversation)


def test_a_batch_answers_as_the_chat_does():
    bodies = [asking(f"user {number}", Profiles) for number in range(6)]
    with LLMServer(batches=BatchPlan(polls=3, shuffle=True)) as server:
        seen, output, errors = batched(server, bodies)
        assert seen == ["validating", "in_progress", "in_progress", "completed"] and not errors
        assert list(output) != sorted(output) == [f"n{number}" for number in range(6)]
        assert output["n4"]["response"]["status_code"] == 200
        content = output["n4"]["response"]["body"]["choices"][0]["message"]["content"]
        assert content == drive(server, ask("user 4", Profiles)).message.content
    assert sorted(server.paid.values()) == [1, 1, 1, 1, 1, 2]


def test_lines_of_a_batch_meet_faults():
    def script(request):
        return None if not request.batch else "server-error" if "2" in str(request.body) else "dropped"

    with LLMServer(faults=script) as server:
        _, output, errors = batched(server, [asking(f"user {number}") for number in range(4)])
    assert sorted(output) == ["n0", "n1", "n3"] and list(errors) == ["n2"]
    assert errors["n2"]["response"]["status_code"] == 500
    assert len(server.paid) == 3
    assert [record.fault for record in server.requests if record.request.batch] == [None, None, "server-error", None]


def test_a_batch_can_expire_and_the_next_complete():
    def plan(number):
        return BatchPlan(polls=1, expire_after=0.5 if number == 0 else None)

    bodies = [asking(f"user {number}") for number in range(5)]
    with LLMServer(batches=plan) as server:
        seen, output, errors = batched(server, bodies)
        assert seen[-1] == "expired" and sorted(output) == ["n0", "n1"] and sorted(errors) == ["n2", "n3", "n4"]
        assert errors["n2"]["response"] is None and errors["n2"]["error"]["code"] == "batch_expired"
        assert batched(server, bodies[2:])[0][-1] == "completed"
    assert list(server.paid.values()) == [1] * 5


@pytest.mark.parametrize(
    ("content", "plan", "code"),
    [
        (uploaded([asking("x")]), BatchPlan(fail="token_limit_exceeded"), "token_limit_exceeded"),
        (uploaded([asking("x")]) * 2, BatchPlan(), "duplicate_custom_id"),
        (uploaded([asking("x")]).replace(b"chat/completions", b"embeddings"), BatchPlan(), "invalid_url"),
        (uploaded([asking("x"), asking("y")]), BatchPlan(max_lines=1), "too_many_requests"),
        (b'{"custom_id": 3}\n', BatchPlan(), "invalid_json_line"),
        (b"", BatchPlan(), "empty_file"),
    ],
)
def test_a_batch_can_fail_its_validation(content, plan, code):
    async def conversation(client):
        batch = await client.batches.retrieve((await submitted(client, content)).id)
        return batch.status, [error.code for error in batch.errors.data]

    with LLMServer(batches=plan) as server:
        assert drive(server, conversation) == ("failed", [code])
    assert not server.paid


def test_batches_are_listed_cancelled_and_take_time():
    async def conversation(client):
        made = [await submitted(client, uploaded([asking("x")]), run=str(number)) for number in range(3)]
        listed = [batch async for batch in client.batches.list(limit=2)]
        assert [batch.id for batch in listed] == [batch.id for batch in reversed(made)]
        assert [batch.metadata["run"] for batch in listed] == ["2", "1", "0"]
        files = [file.id async for file in client.files.list(purpose="batch", limit=2)]
        assert files == [batch.input_file_id for batch in listed]
        assert [file async for file in client.files.list(purpose="fine-tune")] == []
        assert (await client.batches.cancel(made[0].id)).status == "cancelling"
        assert (await client.batches.retrieve(made[0].id)).status == "cancelled"
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_nonsense")
        with pytest.raises(openai.BadRequestError, match="No such File"):
            await client.batches.create(input_file_id="file-0", endpoint=CHAT, completion_window="24h")
        await finished(client, made[2])

    with LLMServer(batches=BatchPlan(polls=0, delay=0.3)) as server:
        start = time.monotonic()
        drive(server, conversation)
        assert time.monotonic() - start > 0.3
