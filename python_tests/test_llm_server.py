"""The loopback service that the profile pipeline is tested against, driven by the openai client itself: its
answers, its ledger and its program."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

pytest.importorskip("openai", reason="the client is openai's")

import openai
import pydantic
from llm_answers import chat_content
from llm_client import Chosen, Profiles, Strict, ask, asking, drive
from llm_server import LLMServer


def test_answers_fit_the_schema_and_depend_on_the_request_alone():
    async def all_three(client):
        texts = ("Dragons above mountains", "Kitchens, cheese and wine", "Dragons above mountains")
        given = [{**asking(text, count=3), "response_format": Profiles} for text in texts]
        return [(await client.chat.completions.parse(**body)).choices[0].message.parsed for body in given]

    with LLMServer() as server:
        dragons, kitchens, again = drive(server, all_three)
    assert dragons == again
    assert len({*dragons.profiles, *kitchens.profiles, dragons.summary, kitchens.summary}) == 8
    assert "dragons" in dragons.model_dump_json().lower() and "dragons" not in kitchens.model_dump_json().lower()
    assert list(server.paid.values()) == [2, 1] and server.stats()["paid_twice"] == 1


def test_answers_honour_what_a_schema_can_say():
    class Aspect(Strict):
        kind: Literal["liked", "disliked"]
        weight: int = pydantic.Field(ge=3, le=5)
        share: float = pydantic.Field(ge=0, le=1)

    class Wide(Strict):
        aspects: list[Aspect] = pydantic.Field(min_length=5, max_length=6)
        best: Aspect
        short: str = pydantic.Field(max_length=10)
        sure: bool
        few: list[str] = pydantic.Field(max_length=1)
        note: str | None

    answers = [chat_content(asking(f"text {number}", Wide)) for number in range(20)]
    assert len(set(answers)) == 20
    for answer in answers:
        Wide.model_validate_json(answer)


def test_json_mode_finds_the_schema_in_the_system_message():
    system = f'Answer {{so}}, not {{"a": 1}}, but JSON of this schema:\n{json.dumps(Profiles.model_json_schema())}'
    body = asking("Dragons", count=2)
    body["messages"].insert(0, {"role": "system", "content": system})
    with LLMServer() as server:
        given = {**body, "response_format": {"type": "json_object"}}
        answer = drive(server, lambda client: client.chat.completions.create(**given)).choices[0].message.content
    assert len(Profiles.model_validate_json(answer).profiles) == 2


def test_candidates_are_chosen_among():
    offered = [{"id": number, "title": f"Book {number}"} for number in range(100, 120)]
    for number in range(20):
        chosen = json.loads(chat_content(asking(f"reader {number}", Chosen, candidates=offered, count=7)))["ids"]
        assert len(chosen) == len(set(chosen)) == 7 and set(chosen) <= set(range(100, 120))


def test_a_long_answer_is_cut_where_the_request_says():
    body = {**asking("brevity", Profiles), "max_completion_tokens": 9}
    with LLMServer() as server:
        answer = drive(server, lambda client: client.chat.completions.create(**body))
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 9


def test_embeddings_are_near_for_near_texts():
    texts = ["a quiet story of dragons", "a quiet story of sailors", "cheap noodles downtown"]

    async def embed(client):
        as_bytes = await client.embeddings.create(model="e", input=texts)
        as_numbers = await client.embeddings.create(model="e", input=texts, encoding_format="float")
        short = await client.embeddings.create(model="e", input=texts[0], dimensions=8)
        return [np.array([entry.embedding for entry in answer.data]) for answer in (as_bytes, as_numbers, short)]

    with LLMServer(width=32) as server:
        vectors, numbers, short = drive(server, embed)
    np.testing.assert_allclose(vectors, numbers, atol=1e-7)
    assert vectors.shape == (3, 32) and short.shape == (1, 8)
    cosines = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    assert cosines[0, 1] > 0.5 > abs(cosines[0, 2])
    assert server.paid_texts == {("e", texts[0]): 3, ("e", texts[1]): 2, ("e", texts[2]): 2}


def test_requests_that_openai_would_not_take_are_refused():
    class Loose(pydantic.BaseModel):
        text: str

    chats = [asking("x", Loose), {"model": "m", "messages": []}, {**asking("x"), "response_format": {"type": "xml"}}]
    chats += [asking("more words than the context holds " * 4), {**asking("x"), "n": 2}]
    inputs = [[], [""], ["x"] * 2049, ["word " * 8193]]

    async def statuses(client):
        calls = [client.chat.completions.create(**body) for body in chats]
        calls += [client.embeddings.create(model="e", input=given) for given in inputs]
        return [type(done) for done in await asyncio.gather(*calls, return_exceptions=True)]

    with LLMServer(context=24) as server:
        assert drive(server, statuses) == [openai.BadRequestError] * 9
    assert not server.paid


@pytest.mark.parametrize(("idempotent", "paid"), [(False, 2), (True, 1)])
def test_a_known_idempotency_key_is_charged_once(idempotent, paid):
    keyed = {"Idempotency-Key": "one"}
    with LLMServer(faults=lambda request: None if server.requests else "half-body", idempotent=idempotent) as server:
        with pytest.raises(openai.APIConnectionError):
            drive(server, ask(headers=keyed))
        answer = drive(server, ask(headers=keyed))
        assert list(server.paid.values()) == [paid]
        assert drive(server, ask(headers={"Idempotency-Key": "two"})) == answer
        assert list(server.paid.values()) == [paid + 1]
        assert [record.paid for record in server.requests] == [True, not idempotent, True]
        if idempotent:
            with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
                drive(server, ask("something else", headers=keyed))
    assert [record.request.idempotency_key for record in server.requests[:3]] == ["one", "one", "two"]
    assert all(record.request.authorized for record in server.requests)
    assert "sk-secret" not in repr(server.requests)


def test_many_at_once():
    async def flood(client):
        await asyncio.gather(*(ask(f"number {number}")(client) for number in range(192)))

    with LLMServer(latency=0.2) as server:
        start = time.monotonic()
        drive(server, flood)
        assert time.monotonic() - start < 15  # one after the other takes 38
    assert 64 <= server.peak_in_flight <= 192 and server.in_flight == 0
    assert len(server.paid) == 192 == server.stats()["paid_once"]


def test_a_server_entered_again_is_the_same():
    server = LLMServer()
    with server:
        place, before = server.base_url, drive(server, ask())
    with pytest.raises(openai.APIConnectionError):
        drive(server, ask())
    with server:
        assert server.base_url == place and drive(server, ask()) == before
        with pytest.raises(OSError), LLMServer(port=int(place.split(":")[2][:-3])):
            pass
    assert list(server.paid.values()) == [2]


def program(*options):
    command = [sys.executable, str(Path(__file__).parent / "llm_server.py"), *options]
    # as a shell script starts its background jobs
    ignoring = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ignoring)


def test_the_program_serves_until_it_is_interrupted(tmp_path):
    stats = tmp_path / "stats.json"
    options = ["--faults", "bad-request=1", "--batch-polls", "1", "--stats", str(stats)]
    with program(*options) as running:
        try:
            base_url = running.stdout.readline().strip()
            request = urllib.request.Request(f"{base_url}/models")
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(request)
            with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats") as answer:
                shown = json.load(answer)
            taken = program("--port", base_url.split(":")[2][:-3])
            assert "Traceback" not in taken.communicate(timeout=30)[1] and taken.returncode == 2
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
    assert shown["faults"] == {"bad-request": 1} and shown["paid"] == {}
    assert json.loads(stats.read_text())["requests"] == 1


def test_the_program_names_the_faults_there_are():
    with program("--faults", "nonsense=1") as running:
        assert "no fault is called 'nonsense'; there are rate-limit," in running.communicate(timeout=30)[1]
    assert running.returncode == 2
