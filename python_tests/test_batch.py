"""The Batch API as a transport, over a service on loopback: waves, lines that fail, and what is set."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from dataclasses import replace

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from batch_runs import CHAT, CREATE, PRICES, Heard, asked, lines_asked, one_step, profiles_of, records, walk
from llm_batches import BatchPlan
from llm_faults import first
from llm_server import LLMServer

from prorec_fast.profiles import batch, online
from prorec_fast.profiles.errors import BudgetReached, ServiceRefused
from prorec_fast.profiles.session import Session
from prorec_fast.profiles.settings import ServiceSettings
from prorec_fast.profiles.store import Store

pytestmark = pytest.mark.usefixtures("no_certificates")


def test_waves_of_batches_bring_every_chain_to_its_end_at_half_the_price(tmp_path, truth):
    with LLMServer(batches=BatchPlan(polls=3, shuffle=True)) as server:
        heard = walk(server.base_url, tmp_path / "store", 12)
        assert asked(server, *CREATE) == 2  # a wave a step
        made = [record.request for record in records(server) if record.request.path == "/v1/batches"]
        bodies, names = [request.body for request in made], [request.idempotency_key for request in made]
    assert heard.profiles == truth.profiles and not heard.failures and not heard.notes
    assert len(server.paid) == 24 and set(server.paid.values()) == {1}
    tokens = heard.spent.prompt_tokens, heard.spent.completion_tokens
    assert heard.spent.dollars == pytest.approx(PRICES.chat_cost("test-model", *tokens) / 2)
    assert heard.spent.answers == heard.payments == 24
    assert (1, 12, 0) in heard.looks and heard.looks[-1] == (0, 0, 0)
    assert [body["metadata"] for body in bodies] == [{"prorec_fast": name} for name in names]
    assert os.listdir(tmp_path) == ["store"]


def test_the_model_is_asked_the_same_as_online(tmp_path):
    with LLMServer() as server:
        for transport in (batch, online):
            walk(server.base_url, tmp_path / transport.__name__, 1, start=one_step, transport=transport)
        bodies = [record.request.body for record in records(server) if record.request.path.endswith("completions")]
    assert bodies[0] == {name: value for name, value in bodies[1].items() if name != "stream"}


def test_a_wave_is_split_over_batches_side_by_side(tmp_path, truth):
    with LLMServer() as server:
        heard = walk(server.base_url, tmp_path / "store", 12, max_requests=5)
        assert max(heard.looks)[:2] == (3, 12) and asked(server, *CREATE) == 6
        small = walk(server.base_url, tmp_path / "other", 5, max_bytes=1000)
        uploads = [r.request.body for r in records(server) if r.request.path == "/v1/files"][6:]
    assert heard.profiles == truth.profiles
    assert small.profiles == profiles_of(truth, 5)
    inputs = [[line for line in body.splitlines() if line.startswith("{")] for body in uploads]
    assert [len(lines) for lines in inputs[:3]] == [2, 2, 1]
    assert all(sum(len(line) + 1 for line in lines) <= 1000 for lines in inputs)


def test_what_no_file_can_hold_is_rejected(tmp_path):
    with LLMServer() as server:
        heard = walk(server.base_url, tmp_path / "store", 2, max_bytes=100)
        assert not records(server)
    assert [kind for kind, _ in heard.failures.values()] == ["rejected"] * 2


def test_two_chains_that_ask_the_same_share_the_answer(tmp_path):
    with LLMServer() as server:
        heard = walk(server.base_url, tmp_path / "store", 4, start=lambda row: one_step(row % 2))
    assert len(server.paid) == 2 and set(server.paid.values()) == {1}
    assert heard.profiles[0] == heard.profiles[2] != heard.profiles[1] == heard.profiles[3]


def test_a_malformed_answer_is_asked_again_in_the_next_wave(tmp_path):
    with LLMServer(faults=lambda r: "not-json" if r.batch and len(r.body["messages"]) == 1 else None) as server:
        heard = walk(server.base_url, tmp_path / "store", 3, start=one_step)
        assert asked(server, *CREATE) == 2
    assert len(heard.profiles) == 3 and heard.spent.answers == 6


def test_what_is_stored_is_not_sent(tmp_path, truth):
    with LLMServer() as server:
        walk(server.base_url, tmp_path / "store", 3)
        heard = walk(server.base_url, tmp_path / "store", 4)
        assert heard.spent.answers == 8 and set(lines_asked(server).values()) == {1}
        asked_before = len(records(server))
        assert walk(server.base_url, tmp_path / "store", 4).profiles == profiles_of(truth, 4)
        assert len(records(server)) == asked_before


def test_a_line_that_fails_for_now_is_in_the_next_wave(tmp_path, truth):
    with LLMServer(faults=first(1, "rate-limit", "chat/completions")) as server:
        heard = walk(server.base_url, tmp_path / "store")
        assert set(lines_asked(server).values()) == {2}
    assert heard.profiles == profiles_of(truth, 6) and set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    "fault, kind, times",
    [("server-error", "unanswered", 3), ("rate-limit", "unanswered", 3), ("bad-request", "rejected", 1)],
)
def test_a_line_that_keeps_failing_fails_its_node_alone(tmp_path, truth, fault, kind, times):
    with LLMServer(faults=lambda r: fault if r.batch and "number1 " in str(r.body) else None) as server:
        heard = walk(server.base_url, tmp_path / "store", 3, retries=2)
        assert sorted(lines_asked(server).values()) == [1, 1, 1, 1, times]
    assert heard.failures.keys() == {1} and heard.failures[1][0] == kind and "status" in heard.failures[1][1]
    assert heard.profiles == {row: truth.profiles[row] for row in (0, 2)} and not heard.left


@pytest.mark.parametrize("fault", ["unauthorized", "quota", "unknown-model"])
def test_a_line_refused_for_all_stops_the_run_and_what_came_is_kept(tmp_path, truth, fault):
    with LLMServer(faults=lambda r: fault if r.batch and "number1 " in str(r.body) else None) as server:
        with pytest.raises(ServiceRefused, match="refuses"):
            walk(server.base_url, tmp_path / "store", 3)
        assert len(server.paid) == 2
    with LLMServer() as server:
        assert walk(server.base_url, tmp_path / "store", 3).profiles == profiles_of(truth, 3)
        assert len(server.paid) == 4


def test_what_an_expired_batch_has_done_is_kept(tmp_path, truth):
    with LLMServer(batches=lambda number: BatchPlan(expire_after=0.5 if number == 0 else None)) as server:
        heard = walk(server.base_url, tmp_path / "store")
    assert heard.profiles == profiles_of(truth, 6) and set(server.paid.values()) == {1}
    with LLMServer(batches=BatchPlan(expire_after=0.0)) as server:
        heard = walk(server.base_url, tmp_path / "other", 2)
        assert asked(server, *CREATE) == 2
    assert [kind for kind, _ in heard.failures.values()] == ["unanswered"] * 2 and not heard.spent.answers


def test_a_cancelled_batch_is_read_and_the_rest_sent_again(tmp_path, truth):
    def cancel(heard, what):
        if what == "look" and heard.looks[-1] == (1, 6, 0) and asked(server, *CREATE) == 1:
            urllib.request.urlopen(f"{server.base_url}/batches/batch_000001/cancel", data=b"").close()

    plans = [BatchPlan(polls=10**6), BatchPlan()]
    with LLMServer(batches=lambda number: plans[min(number, 1)]) as server:
        heard = walk(server.base_url, tmp_path / "store", at=cancel)
    assert heard.profiles == profiles_of(truth, 6) and set(server.paid.values()) == {1}


def test_a_batch_is_opened_with_what_nobody_has_or_is_at(tmp_path):
    answer = {"model": "m", "prompt_chars": 1, "prompt_tokens": 1, "completion_tokens": 1, "cost": 0.5}
    with Store(tmp_path / "store") as store, Store(tmp_path / "store") as other:
        assert other.lease("leased")
        other.save_answer("answered", "{}", **answer)
        wanted = [(key, 7, 0.1) for key in ("leased", "answered", "a", "b", "c")]
        first, keys = store.open_batch(wanted[:4], model="m")
        assert keys == ["a", "b"] and store.batch_requests(first.name) == {"a": 7, "b": 7}
        assert other.take_batch(first.name) is None
        second, keys = other.open_batch(wanted, model="m", budget=0.85)
        assert keys == ["c"] and store.open_batch(wanted, model="m") is None
        with pytest.raises(BudgetReached):
            store.open_batch([("d", 7, 0.1)], model="m", budget=0.85)
        assert store.take_batch("none") is None and other.lease("none")
        store.release(first.name)
        assert other.take_batch(first.name) == first and store.forget_batches() == 0
        other.release(first.name, second.name)
        assert store.forget_batches() == 2 and store.lease("a") and not store.batched()


def test_settings_are_checked(tmp_path):
    with Store(tmp_path / "store") as store:
        session = Session(store, CHAT, ServiceSettings("http://127.0.0.1:9/v1"), Heard(), PRICES)
        with pytest.raises(ValueError, match=r"session\.batch"):
            asyncio.run(batch.run([], session))
        for name in ("poll", "max_requests", "max_bytes"):
            with pytest.raises(ValueError, match=name):
                asyncio.run(batch.run([], replace(session, batch=True), **{name: 0}))
