"""The Batch API as a transport, over a service on loopback: waves, faults, kills, several processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import signal
import ssl
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from llm_batches import BatchPlan
from llm_faults import first
from llm_server import LLMServer
from profile_data import make_folder
from pydantic import BaseModel, ConfigDict, Field

from prorec_fast.cli import main
from prorec_fast.profiles import batch, online
from prorec_fast.profiles.errors import BudgetReached, InOpenBatch, ServiceRefused
from prorec_fast.profiles.pricing import Prices
from prorec_fast.profiles.requests import ask
from prorec_fast.profiles.session import Session
from prorec_fast.profiles.settings import ChatSettings, ServiceSettings
from prorec_fast.profiles.store import Store

CHAT = ChatSettings("test-model", max_tokens=100)
PRICES = Prices(chat={"test-model": (1.0, 2.0)}, embedding={})
CREATE = ("POST", "/v1/batches")
UPLOAD = ("POST", "/v1/files")
PROCESSES = multiprocessing.get_context("fork")  # started while the server's thread waits for requests


class Profile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


class LongProfile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=3000)


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


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch):
    """Reading them takes a client longer than most of these runs, and nothing here is https."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **__: None)


def records(server):
    """What the server was asked; it notes that when it has answered."""
    while server.in_flight:
        time.sleep(0.001)
    return server.requests


def asked(server, *what):
    return sum((record.request.method, record.request.path) == what for record in records(server))


def read(record):
    return record.request.path.endswith("/content")


def lines_asked(server):
    """How often each request came as a line of a batch."""
    return Counter(record.request.digest for record in records(server) if record.request.batch)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """What the chains of twelve rows come to where nothing goes wrong."""
    with LLMServer() as server:
        return walk(server.base_url, tmp_path_factory.mktemp("truth") / "store", 12)


def profiles_of(truth, rows):
    return {row: truth.profiles[row] for row in range(rows)}


# --- Waves ---


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


# --- Lines that fail ---


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


# --- Batches that fail ---


def test_a_batch_that_fails_its_validation_stops_the_run_and_leaves_nothing_open(tmp_path, truth):
    plans = [BatchPlan(fail="billing_hard_limit_reached"), BatchPlan(), BatchPlan()]
    with LLMServer(batches=plans.__getitem__) as server:
        with pytest.raises(ServiceRefused, match=r"batch_000001: The batch was refused\."):
            walk(server.base_url, tmp_path / "store")
        assert not server.paid
        assert walk(server.base_url, tmp_path / "store").profiles == profiles_of(truth, 6)


def test_batches_too_many_at_once_are_sent_one_after_the_other(tmp_path, truth):
    full = "token_limit_exceeded"
    with LLMServer(batches=lambda number: BatchPlan(fail=full if number in (1, 2) else None, polls=4)) as server:
        heard = walk(server.base_url, tmp_path / "store", max_requests=2)
        made = [r.request.method == "POST" for r in records(server) if r.request.path == "/v1/batches" or read(r)]
    assert made[:5] == [True, True, True, False, True]  # another once the one that was taken has been read
    assert heard.profiles == profiles_of(truth, 6) and set(server.paid.values()) == {1}
    with LLMServer(batches=BatchPlan(fail=full)) as server:
        with pytest.raises(ServiceRefused, match="refused"):
            walk(server.base_url, tmp_path / "other")
        assert asked(server, *CREATE) == 1


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_a_service_without_batches_is_told_from_others(tmp_path, path):
    with LLMServer(faults=lambda r: "unknown-model" if r.path == path else None) as server:
        with pytest.raises(ServiceRefused, match="has no Batch API") as caught:
            walk(server.base_url, tmp_path / "store")
        assert not caught.value.heard.left and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
@pytest.mark.parametrize("fault", ["unauthorized", "bad-request"])
def test_a_refused_upload_or_batch_leaves_nothing_open(tmp_path, path, fault, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = LLMServer(faults=lambda r: fault if r.path == path else None)
    with server, pytest.raises(ServiceRefused, match="refuses") as caught:
        walk(server.base_url, tmp_path / "store")
    assert not caught.value.heard.left and "sk-secret" not in str(caught.value)


# --- Replies that are lost ---


@pytest.mark.parametrize("fault", ["half-body", "dropped", "garbage-body", "server-error", "rate-limit"])
def test_a_batch_is_made_once_though_the_reply_is_lost(tmp_path, truth, fault):
    def script(request):
        if (request.method, request.path) == CREATE and request.attempt == 0:
            time.sleep(0.2)  # longer than it takes to settle, which is counted from the reply
            return fault

    with LLMServer(faults=script) as server:
        heard = walk(server.base_url, tmp_path / "store", settle=0.15)
        tries = [r.time for r in records(server) if (r.request.method, r.request.path) == CREATE]
    assert heard.profiles == profiles_of(truth, 6) and set(server.paid.values()) == {1}
    assert len(tries) == (2 if fault == "half-body" else 4)
    if fault != "half-body":  # where it may yet appear, it is waited for
        assert tries[1] - tries[0] > 0.14


def once(fault, path):
    """A script: the first request for a path meets a fault. (No two uploads are the same request.)"""
    left = [fault]
    return lambda request: left.pop() if left and request.path == path else None


@pytest.mark.parametrize("fault", ["half-body", "garbage-body"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches/batch_000001", "/v1/files/file-000002/content"])
def test_other_replies_that_are_lost_are_asked_for_again(tmp_path, truth, path, fault):
    with LLMServer(faults=once(fault, path)) as server:
        heard = walk(server.base_url, tmp_path / "store", 3)
    assert heard.profiles == profiles_of(truth, 3) and set(server.paid.values()) == {1}


def test_patience_begins_anew_when_the_service_answers(tmp_path, truth):
    with LLMServer(
        faults=lambda r: "server-error" if "/batches/" in r.path and r.attempt % 9 < 8 else None,
        batches=BatchPlan(polls=3),
        retry_after=0.001,
    ) as server:
        assert walk(server.base_url, tmp_path / "store", 3, retries=0).profiles == profiles_of(truth, 3)


def test_a_service_that_fails_for_good_ends_the_run_and_another_collects(tmp_path, truth):
    failing = True

    def script(request):
        return "rate-limit" if failing and request.method == "GET" else None

    with LLMServer(faults=script, retry_after=0.001) as server:
        with pytest.raises(ServiceRefused, match="times in a row") as caught:
            walk(server.base_url, tmp_path / "store", retries=0)
        assert caught.value.heard.left and "the same command" in caught.value.heard.notes[-1]
        failing = False
        heard = walk(server.base_url, tmp_path / "store")
    assert heard.profiles == profiles_of(truth, 6) and set(server.paid.values()) == {1}


# --- What comes back ---


def test_duplicates_and_strangers_do_no_harm(tmp_path, truth):
    def edit(lines):
        failed = {**lines[1], "response": None, "error": {"code": "odd", "message": "not yet"}}
        strange = {**lines[0], "custom_id": "what?"}
        return ["<html>\n", strange, failed, *lines, lines[0], failed, *reversed(lines[1:]), json.dumps(lines[0])]

    with LLMServer(batches=BatchPlan(edit=edit)) as server:
        heard = walk(server.base_url, tmp_path / "store", 3)
    assert heard.profiles == profiles_of(truth, 3) and heard.spent.answers == 6
    assert len(heard.notes) == 2 and all("1 answers to what was not asked" in note for note in heard.notes)


@pytest.mark.parametrize("body", [None, {"choices": []}, {"error": {"message": "no"}}])
def test_a_body_that_is_no_completion_is_asked_for_again_a_few_times(tmp_path, truth, body):
    def edit(lines):
        return [{**line, "response": {**line["response"], "body": body}} for line in lines[:1]] + lines[1:]

    with LLMServer(batches=lambda number: BatchPlan(edit=edit if number == 0 else None)) as server:
        heard = walk(server.base_url, tmp_path / "store", 3)
        assert max(lines_asked(server).values()) == 2
    assert heard.profiles == profiles_of(truth, 3)
    with LLMServer(batches=BatchPlan(edit=edit)) as server:
        heard = walk(server.base_url, tmp_path / "other", 1, retries=3)
        assert max(lines_asked(server).values()) == (4 if body == {"error": {"message": "no"}} else 3)
    assert heard.failures[0][0] == "unanswered"


def test_the_last_line_needs_no_end(tmp_path, truth):
    with LLMServer(batches=BatchPlan(edit=lambda lines: [*lines[:-1], json.dumps(lines[-1])])) as server:
        assert walk(server.base_url, tmp_path / "store", 3).profiles == profiles_of(truth, 3)


@pytest.mark.parametrize("spoilt", [lambda lines: lines[1:], lambda lines: [*lines[1:], lines[1], "<html>"]])
def test_an_output_that_is_not_whole_is_not_taken_for_the_end(tmp_path, truth, spoilt):
    with LLMServer(batches=BatchPlan(edit=spoilt)) as server:
        with pytest.raises(ServiceRefused, match="of the 3 answers of batch batch_000001") as caught:
            walk(server.base_url, tmp_path / "store", 3)
        assert set(lines_asked(server).values()) == {1}
    assert caught.value.heard.left and caught.value.heard.spent.answers >= 2
    assert (1, 3, 3) in caught.value.heard.looks


@pytest.mark.parametrize("others", [0, 1])
def test_a_batch_that_the_service_does_not_know_is_not_given_up(tmp_path, others):
    with LLMServer() as server, pytest.raises(KeyboardInterrupt):
        walk(server.base_url, tmp_path / "store", at=interrupt_when_open)
    with LLMServer() as server:
        walk(server.base_url, tmp_path / "other", others)
        with pytest.raises(ServiceRefused, match="batch_000001") as caught:
            walk(server.base_url, tmp_path / "store")
        assert caught.value.heard.left and asked(server, *CREATE) == 2 * others


# --- Money, and the end of a run ---


def test_a_budget_sends_what_it_can_and_goes_on_with_what_is_left(tmp_path):
    with LLMServer() as server:
        price = walk(server.base_url, tmp_path / "all", 12, start=one_step).spent.dollars
    with LLMServer() as server:
        with pytest.raises(BudgetReached) as caught:
            walk(server.base_url, tmp_path / "store", 12, start=one_step, budget=0.8 * price)
        heard = caught.value.heard
        assert 2 <= heard.spent.answers < 10 and heard.spent.dollars <= 0.8 * price and not heard.left
        assert asked(server, *CREATE) > 1 and not heard.failures
        assert walk(server.base_url, tmp_path / "store", 12, start=one_step).spent.answers == 12
    assert set(server.paid.values()) == {1}


def interrupt_when_open(heard, what):
    if what == "look" and heard.looks[-1][0]:
        heard.session.stop = KeyboardInterrupt()


def test_a_stopped_run_says_that_batches_go_on_and_the_next_collects_them(tmp_path, truth):
    with LLMServer() as server:
        with pytest.raises(KeyboardInterrupt):
            walk(server.base_url, tmp_path / "store", at=interrupt_when_open, poll=60)
        assert asked(server, *CREATE) == 1
        with Store(tmp_path / "store") as store:
            assert list(store.batches().values()) == [6]
            with pytest.raises(BudgetReached):  # what open batches may cost is set aside
                store.lease("another", 1e-6, budget=6 * PRICES.chat_cost(CHAT.model, 0, CHAT.max_tokens, batch=True))
        with pytest.raises(InOpenBatch, match="batch"):
            walk(server.base_url, tmp_path / "store", transport=online)
        heard = walk(server.base_url, tmp_path / "store")
        assert heard.profiles == profiles_of(truth, 6) and asked(server, *CREATE) == 2
    assert set(server.paid.values()) == {1}
    assert walk(server.base_url, tmp_path / "store", transport=online).profiles == heard.profiles


def test_a_run_that_waits_hears_that_it_is_to_stop(tmp_path):
    def stop_soon(heard, what):
        if what == "look" and heard.looks[-1][0]:
            threading.Timer(0.1, interrupt_when_open, (heard, what)).start()

    begun = time.monotonic()
    with LLMServer() as server, pytest.raises(KeyboardInterrupt):
        walk(server.base_url, tmp_path / "store", at=stop_soon, poll=20)
    assert time.monotonic() - begun < 10


def test_batches_of_other_settings_are_collected_too(tmp_path, truth):
    with LLMServer() as server:
        with pytest.raises(KeyboardInterrupt):
            walk(server.base_url, tmp_path / "store", 5, at=interrupt_when_open)
        heard = walk(server.base_url, tmp_path / "store", 1, start=lambda row: one_step("x"))
        assert heard.spent.answers == 6 and not heard.left
    assert set(server.paid.values()) == {1}


def test_batches_that_have_ended_are_read_at_once(tmp_path, truth):
    with LLMServer(batches=BatchPlan(polls=1)) as server:
        with pytest.raises(KeyboardInterrupt):
            walk(server.base_url, tmp_path / "store", start=one_step, at=interrupt_when_open)
        assert len(walk(server.base_url, tmp_path / "store", start=one_step, poll=1000).profiles) == 6


def test_nobody_waits_for_what_he_has_not_asked(tmp_path):
    with LLMServer(batches=BatchPlan(polls=10**6)) as server:
        with pytest.raises(KeyboardInterrupt):
            walk(server.base_url, tmp_path / "store", at=interrupt_when_open)
        assert walk(server.base_url, tmp_path / "store", 0).left


def test_the_command_goes_through_batches_and_can_forget_them(tmp_path, capsys):
    folder = make_folder(tmp_path / "data", num_users=4, num_items=3)

    def command(server, *more):
        service = ["--base-url", server.base_url, "--transport", "batch", "--poll", "0.02", *more]
        return main(["profile", "--data", str(folder), "--model", "test-model", "--num-profiles", "2", *service])

    with LLMServer(batches=BatchPlan(fail="over")) as server:
        assert command(server) == 2 and "The batch was refused" in capsys.readouterr().err
    with LLMServer(faults=lambda r: "server-error" if r.method == "GET" else None, retry_after=0.001) as server:
        assert command(server, "--retries", "0") == 2 and "the same command" in capsys.readouterr().err
    with LLMServer() as server:
        assert command(server) == 2
        assert "--forget-batches" in capsys.readouterr().err and not server.paid
        assert command(server, "--forget-batches") == 0
        assert len(server.paid) == 7 * 4 and set(server.paid.values()) == {1}
        assert not [r for r in records(server) if r.request.path.endswith("completions") and not r.request.batch]


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


# --- Kills, and several processes ---


def die(heard, what, *, of, times):
    """Ends the process, as SIGKILL does, when `of` is heard for the n-th time."""
    heard.count = getattr(heard, "count", 0) + (what == of)
    if heard.count == times:
        os.kill(os.getpid(), signal.SIGKILL)


def started(*arguments, **options):
    process = PROCESSES.Process(target=walk, args=arguments, kwargs=options, daemon=True)
    process.start()
    return process


class KillsAt:
    """A script that kills a process when the n-th request comes (to `what`, or any), and lets the service go on as if
    nothing was, or with a fault."""

    def __init__(self, number, fault=None, what=None):
        self.number, self.fault, self.what, self.count = number, fault, what, 0
        self.process, self.there = None, threading.Event()

    def __call__(self, request):
        if request.batch or self.what not in (None, (request.method, request.path)):
            return None
        self.count += 1
        if self.count != self.number:
            return None
        self.there.wait()
        self.process.kill()
        return self.fault

    def run(self, *arguments):
        self.process = started(*arguments)
        self.there.set()
        self.process.join()
        return self.process.exitcode


def test_killed_at_any_request_a_run_pays_for_nothing_twice(tmp_path, truth):
    for number in itertools.count(1):
        script, path = KillsAt(number), tmp_path / f"store-{number}"
        with LLMServer(faults=script) as server:
            code = script.run(server.base_url, path, 2)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            heard = walk(server.base_url, path, 2, settle=60)
            assert heard.profiles == profiles_of(truth, 2) and not heard.left
            assert set(server.paid.values()) == {1} and len(server.paid) == 4
            assert asked(server, *UPLOAD) == asked(server, *CREATE) == 2, number
    assert number > 10


def test_killed_while_the_service_makes_no_batch_of_its_request_it_makes_one(tmp_path, truth):
    """The request for the batch was lost with the process; that it might have come is waited for."""
    script = KillsAt(2, "dropped")
    with LLMServer(faults=script) as server:
        assert script.run(server.base_url, tmp_path / "store", 2) == -signal.SIGKILL
        heard = walk(server.base_url, tmp_path / "store", 2, settle=0.3)
        tries = [r.time for r in records(server) if (r.request.method, r.request.path) == CREATE]
    assert len(tries) == 3 and tries[1] - tries[0] > 0.25
    assert heard.profiles == profiles_of(truth, 2) and set(server.paid.values()) == {1}


def test_killed_in_an_upload_it_sends_all_of_it_again(tmp_path, truth):
    script = KillsAt(2, "dropped", what=UPLOAD)
    with LLMServer(faults=script) as server:
        assert script.run(server.base_url, tmp_path / "store", 2) == -signal.SIGKILL
        heard = walk(server.base_url, tmp_path / "store", 2)
        assert asked(server, *UPLOAD) == 3 and asked(server, *CREATE) == 2
    assert heard.profiles == profiles_of(truth, 2) and set(server.paid.values()) == {1}


@pytest.mark.parametrize("of, times", [("paid", 70), ("finished", 20), ("look", 3)])
def test_killed_between_two_saves_it_reads_the_rest(tmp_path, of, times):
    long = {"start": partial(two_steps, schema=LongProfile), "chat": replace(CHAT, max_tokens=2000)}
    with LLMServer() as server:
        truth = walk(server.base_url, tmp_path / "truth", 40, **long)
    with LLMServer() as server:
        dying = started(server.base_url, tmp_path / "store", 40, **long, at=partial(die, of=of, times=times))
        dying.join()
        assert dying.exitcode == -signal.SIGKILL
        with Store(tmp_path / "store") as store:
            answers, left = store.spent().answers, sum(len(store.batch_requests(name)) for name in store.batches())
        assert {"paid": 40 < answers < 80, "finished": answers == 80, "look": answers == 0}[of]
        assert answers + left in (40, 80)
        heard = walk(server.base_url, tmp_path / "store", 40, **long)
    assert len(truth.profiles) == 40 and heard.profiles == truth.profiles and heard.spent == truth.spent
    assert len(server.paid) == 80 and set(server.paid.values()) == {1}


def test_two_processes_share_the_work(tmp_path, truth):
    with LLMServer(batches=BatchPlan(polls=4)) as server:
        both = [started(server.base_url, tmp_path / "store", 12, max_requests=5) for _ in range(2)]
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0]
        asked_before = len(records(server))
        heard = walk(server.base_url, tmp_path / "store", 12)
        assert len(records(server)) == asked_before
    assert heard.profiles == truth.profiles and heard.spent.answers == 24 and not heard.left
    assert len(server.paid) == 24 and set(server.paid.values()) == {1}


def test_a_process_takes_over_from_another_that_dies(tmp_path, truth):
    uploading = threading.Event()

    def script(request):
        if (request.method, request.path) == UPLOAD and not uploading.is_set():
            uploading.set()
            return "slow"

    with LLMServer(faults=script, slow_for=30.0) as server:
        other = started(server.base_url, tmp_path / "store", 12)
        uploading.wait()
        death = threading.Timer(0.3, other.kill)
        death.start()
        heard = walk(server.base_url, tmp_path / "store", 12)
        assert not death.is_alive() and asked(server, *UPLOAD) == 2  # it waited, and went on with the other's file
        other.join()
    assert heard.profiles == truth.profiles and set(server.paid.values()) == {1}
