"""Chains over a service on loopback: what is asked and paid, by one process or two, and what faults that pass cost."""

from __future__ import annotations

import asyncio
import json
import multiprocessing

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from llm_faults import LOST_AFTER, LOST_BEFORE, SPOILED, first
from llm_server import LLMServer
from online_runs import CHAT, Reply, chain, chains, failing, messages, run, session_of
from pydantic import BaseModel, ConfigDict, Field

from prorec_fast.profiles import answers, online
from prorec_fast.profiles.errors import BudgetReached, ProfileError
from prorec_fast.profiles.requests import ChatRequest
from prorec_fast.profiles.settings import ChatSettings
from prorec_fast.profiles.store import Store

FORK = multiprocessing.get_context("fork")


class Nested(BaseModel):
    model_config = ConfigDict(extra="forbid")
    replies: list[Reply]
    score: int | None = Field(description="From 1 to 5, or null.")


def test_every_chain_ends_and_is_paid_for_once(store):
    with LLMServer(latency=0.2) as server:  # long enough for six requests to meet on a busy machine
        session = session_of(store, server.base_url, concurrency=6)
        outcome = run(session, chains(30, steps=3))
        requests = server.requests
        assert server.peak_in_flight == 6 and set(server.paid.values()) == {1} and len(server.paid) == 90
    assert outcome.results.keys() == {("item", row) for row in range(30)} and outcome.answers == 90
    assert not outcome.failures and len({str(texts) for texts in outcome.results.values()}) == 30
    keys = {ChatRequest(tuple(messages(row, step)), Reply).key(CHAT) for row in range(30) for step in range(3)}
    assert {record.request.idempotency_key for record in requests} == keys
    tokens = server.stats()
    assert store.spent().answers == 90 and store.spent().prompt_tokens == tokens["prompt_tokens"]
    assert store.spent().completion_tokens == tokens["completion_tokens"]
    again = run(session_of(store, "http://127.0.0.1:1/v1", retries=0), chains(30, steps=3))
    assert again.results == outcome.results and again.answers == 0


@pytest.mark.parametrize("answer_format", ["schema", "json"])
def test_what_is_sent_is_the_body_that_a_batch_would_send(store, answer_format):
    chat = ChatSettings("m", temperature=0.5, max_tokens=99, seed=7, answer_format=answer_format)
    schemas = [Reply, Nested, answers.OriginalProfile, answers.Aspects, answers.Preferences, answers.NewProfiles]

    def asked(schema):
        yield ChatRequest(({"role": "system", "content": "Say ü🙂."}, *messages(0)), schema)

    with LLMServer() as server:
        for schema in schemas:
            session = session_of(store, server.base_url, chat=chat)
            run(session, [(("item", 0), lambda schema=schema: asked(schema))])
        bodies = [record.request.body for record in server.requests]
    assert not any(body.pop("stream", None) for body in bodies)  # the client says that it wants none
    assert bodies == [next(asked(schema)).body(chat) for schema in schemas]


def test_one_question_of_two_nodes_is_paid_for_once(store):
    with LLMServer(latency=0.02) as server:
        outcome = run(session_of(store, server.base_url), [(("item", n), lambda: chain(5)) for n in range(8)])
        assert set(server.paid.values()) == {1} and len(server.paid) == 1
    assert len(outcome.results) == 8


@pytest.mark.parametrize("fault", ["rate-limit", "server-error", "overloaded", *LOST_BEFORE, *LOST_AFTER, *SPOILED])
def test_a_fault_that_passes_costs_nothing_but_time(store, fault):
    """Every second request meets it, once. What the model answered wrongly the chain asks again, and pays for."""

    def every_second(request):
        asked = request.body["messages"]
        return fault if request.attempt == 0 and len(asked) == 1 and asked[0]["content"][9] in "135" else None

    spoiled = fault in SPOILED and fault not in ("invented-ids", "obey-injection")  # which are nothing to these chains
    with LLMServer(faults=every_second, idempotent=True, slow_for=1.0) as server:
        timeout = 0.4 if fault == "slow" else 5.0
        outcome = run(session_of(store, server.base_url, timeout=timeout, concurrency=6), chains(6))
        assert sum(record.fault == fault for record in server.requests) == 3
        assert set(server.paid.values()) == {1}
        assert len(outcome.results) == 6 and not outcome.failures
        assert store.spent().answers == outcome.answers == len(server.paid) == (9 if spoiled else 6)


@pytest.mark.parametrize("fault", ["server-error", "dropped", "garbage-body", "not-json", "refusal"])
def test_a_fault_that_stays_fails_its_node_alone(store, fault):
    def of_one(request):
        return fault if "Question 3," in request.body["messages"][0]["content"] else None

    with LLMServer(faults=of_one, retry_after=0.01) as server:
        session = session_of(store, server.base_url, retries=1, concurrency=2)
        outcome = run(session, chains(12))
        asked = sum(record.fault == fault for record in server.requests)
    kind, reason = outcome.failures.pop(("item", 3))
    assert not outcome.failures and len(outcome.results) == 11
    assert kind == ("malformed" if fault in SPOILED else "unanswered") and "\n" not in reason
    assert asked == {"server-error": 2, "dropped": 2}.get(fault, 3)
    said = {"server-error": "had an error", "dropped": "disconnected", "garbage-body": "<html>", "refusal": "refusal"}
    assert said.get(fault, "Invalid JSON") in reason
    assert store.spent().answers == 11 + (3 if fault in SPOILED else 0)


def test_an_answer_after_another_is_asked_when_retry_after_says_so(store):
    with LLMServer(faults=first(1, "rate-limit"), retry_after=1) as server:
        run(session_of(store, server.base_url, concurrency=2), chains(2))
        times = {}
        for record in server.requests:
            times.setdefault(record.request.digest, []).append(record.time)
    assert all(1.0 <= second - before < 1.4 for before, second in times.values())


def test_a_budget_is_reached_and_never_exceeded(store):
    request = ChatRequest(tuple(messages(0)), Reply)
    with LLMServer(latency=0.01) as server:
        run(session_of(store, server.base_url, concurrency=1), chains(1))
        once = store.spent().dollars
        most = session_of(store, server.base_url).most_cost(request)
        assert most > 3 * once  # so that requests under way reserve much more than they cost
        budget = most + 20.5 * once
        session = session_of(store, server.base_url, budget=budget, concurrency=6)
        error = failing(session, chains(100))
        assert isinstance(error, BudgetReached) and "is left of $" in str(error)
        spent = store.spent().dollars
        assert budget - most < spent <= budget and not session.outcome.failures
        assert len(server.paid) == store.spent().answers
        tokens = server.stats()
        assert spent == pytest.approx((tokens["prompt_tokens"] * 1000 + tokens["completion_tokens"] * 2000) / 1e6)
        asked = len(server.requests)
        assert isinstance(failing(session_of(store, server.base_url, budget=budget), chains(100)), BudgetReached)
        assert len(server.requests) == asked
        outcome = run(session_of(store, server.base_url, budget=10 * budget), chains(100))
        assert len(outcome.results) == 100 and set(server.paid.values()) == {1}


def test_a_budget_wants_a_price(store):
    with pytest.raises(ProfileError, match="budget: no price is known of 'other'"):
        session_of(store, None, chat=ChatSettings("other"), budget=1.0)
    for budget in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="budget: want"):
            session_of(store, None, budget=budget)


def _run_beside(path, base_url, both, told):
    with Store(path) as store:
        session = session_of(store, base_url, concurrency=3)
        both.wait()
        outcome = run(session, chains(30, steps=2))
        told.put((len(outcome.results), outcome.answers))


def test_two_processes_on_one_store_share_the_work(tmp_path):
    path, both, told = tmp_path / "answers.sqlite", FORK.Barrier(2), FORK.SimpleQueue()
    with LLMServer(latency=0.05) as server:
        processes = [FORK.Process(target=_run_beside, args=(path, server.base_url, both, told)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
            process.kill()
        ends = [told.get(), told.get()]
        assert set(server.paid.values()) == {1} and len(server.paid) == 60
    assert [results for results, _ in ends] == [30, 30]
    assert sum(paid for _, paid in ends) == 60 and all(paid > 5 for _, paid in ends)


def test_an_answer_that_another_pays_for_is_waited_for(store):
    keys = [ChatRequest(tuple(messages(row)), Reply).key(CHAT) for row in range(2)]
    with LLMServer(latency=0.02) as server, Store(store.path) as other:
        assert all(other.lease(key) for key in keys)

        async def answered_and_given_up():
            await asyncio.sleep(0.1)
            assert not server.requests
            other.save_answer(
                keys[0], json.dumps({"choices": [{"message": {"content": '{"text": "theirs"}'}}]}),
                model="m", prompt_chars=1, prompt_tokens=1, completion_tokens=1, cost=0.0,
            )  # fmt: skip
            other.release(keys[1])

        async def both():
            session = session_of(store, server.base_url, concurrency=1)  # two chains may wait, one may ask
            await asyncio.gather(online.run(chains(12), session), answered_and_given_up())
            return session.outcome

        outcome = asyncio.run(both())
        assert len(server.paid) == 11 and outcome.results["item", 0] == ["theirs"] and len(outcome.results) == 12
        assert server.peak_in_flight == 1
