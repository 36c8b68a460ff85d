"""What ends a run of chains over a service on loopback, and what the next one finds: kept, and not paid for again."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from llm_server import LLMServer
from online_runs import CHAT, Outcome, Reply, chain, chains, failing, messages, run, session_of

from prorec_fast.profiles import online
from prorec_fast.profiles.errors import NothingToSay, ProfileError, ServiceRefused
from prorec_fast.profiles.requests import ChatRequest


@pytest.mark.parametrize("fault", ["unauthorized", "quota", "unknown-model"])
def test_a_service_that_answers_nobody_ends_the_run(store, fault):
    with LLMServer(faults={fault: 1.0}) as server:
        session = session_of(store, server.base_url, retries=0)
        error = failing(session, chains(50))
        assert len(server.requests) <= 4
    assert isinstance(error, ServiceRefused) and str(error).startswith(f"{server.base_url} refuses: Error code: 4")
    assert not session.outcome.failures and store.spent().answers == 0
    assert all(store.lease(ChatRequest(tuple(messages(row)), Reply).key(CHAT)) for row in range(50))


def test_what_was_rejected_before_the_end_is_known(store):
    faults = {3: "bad-request", 30: "unauthorized"}

    def by_row(request):
        return faults.get(int(request.body["messages"][0]["content"].split(",")[0].split()[1]))

    with LLMServer(faults=by_row) as server:
        session = session_of(store, server.base_url, concurrency=2)
        assert isinstance(failing(session, chains(40)), ServiceRefused)
        assert session.outcome.failures.keys() == {("item", 3)} and len(session.outcome.results) >= 28


@pytest.mark.parametrize("fault", ["bad-request", "forbidden"])
def test_a_rejected_request_is_its_nodes_alone_unless_all_are_rejected(store, fault):
    def some(request):
        return fault if request.body["messages"][0]["content"].split(",")[0][-1] in "369" else None

    with LLMServer(faults=some) as server:
        outcome = run(session_of(store, server.base_url, concurrency=2), chains(40))
        assert outcome.failures.keys() == {("item", row) for row in range(40) if row % 10 in (3, 6, 9)}
        assert {kind for kind, _ in outcome.failures.values()} == {"rejected"}
        assert len(outcome.results) == 28 and len(server.requests) == 40
        last = run(session_of(store, server.base_url), [chains(4)[3]])  # nothing is asked after it
        assert last.failures.keys() == {("item", 3)}
    with LLMServer(faults={fault: 1.0}) as server:
        session = session_of(store, server.base_url)
        error = failing(session, chains(100)[50:])
        assert isinstance(error, ServiceRefused) and "8 requests in a row" in str(error)
        assert len(server.requests) <= 8 + 3 and not session.outcome.failures  # what is left may be asked again


def test_a_service_that_is_not_there_ends_the_run_in_time(store):
    began = time.monotonic()
    session = session_of(store, "http://127.0.0.1:1/v1", retries=1, concurrency=8)
    error = failing(session, chains(1000))
    assert isinstance(error, ServiceRefused) and "8 requests in a row brought no answer from http" in str(error)
    assert "connect" in str(error).split("the last:")[1] and "\n" not in str(error)
    assert time.monotonic() - began < 3 and len(session.outcome.failures) < 16


def test_a_service_that_goes_away_ends_the_run_and_the_next_goes_on(store):
    server = LLMServer(latency=0.01)

    class Stops(Outcome):
        def paid(self):
            super().paid()
            if self.answers == 20:
                server.__exit__(None, None, None)

    with suppress(RuntimeError):  # of the exit that comes second
        server.__enter__()
    session = session_of(store, server.base_url, retries=1)
    session.outcome = Stops()
    error = failing(session, chains(100))
    assert isinstance(error, ServiceRefused) and "requests in a row" in str(error)
    assert 20 <= store.spent().answers == len(session.outcome.results) <= len(server.paid) <= 24
    with server:
        outcome = run(session_of(store, server.base_url), chains(100))
        assert len(outcome.results) == 100 and sum(server.paid.values()) <= 104


def test_stop_keeps_what_is_under_way(store):
    class Stops(Outcome):
        def paid(self):
            super().paid()
            if self.answers == 10:
                session.stop = ProfileError("enough")

    with LLMServer(latency=0.05) as server:
        session = session_of(store, server.base_url, concurrency=5)
        session.outcome = Stops()
        left = iter(chains(1000, steps=2))
        error = failing(session, left)
        assert str(error) == "enough" and 10 <= store.spent().answers == len(server.paid) <= 15
    assert not session.outcome.failures and len(list(left)) > 900


def test_a_store_that_fails_ends_the_run_and_nothing_is_paid_for_again(store):
    class Closes(Outcome):
        def paid(self):
            super().paid()
            if self.answers == 5:
                store._db.close()

    with LLMServer(latency=0.02) as server:
        session = session_of(store, server.base_url)
        session.outcome = Closes()
        error = failing(session, chains(50))
        assert isinstance(error, ProfileError) and "answers.sqlite: cannot be used as a store" in str(error)
        assert 5 <= len(server.paid) <= 8 and len(server.requests) == len(server.paid)


@pytest.mark.parametrize("where", ["chains", "start", "chain", "outcome"])
def test_an_error_of_ours_is_raised_when_the_others_have_ended(store, where):
    class Oops(Exception):
        pass

    def broken():
        yield from chain(99)
        raise Oops

    def work():
        yield from chains(4)
        if where == "chains":
            raise Oops
        yield ("item", 99), {"start": lambda: 1 / 0, "chain": broken}.get(where, lambda: chain(99))
        yield from chains(50)[4:]

    class Fails(Outcome):
        def finished(self, node, result):
            super().finished(node, result)
            if node == ("item", 99):
                raise Oops

    with LLMServer(latency=0.05) as server:
        session = session_of(store, server.base_url, concurrency=2)
        session.outcome = Fails()
        assert isinstance(failing(session, work()), Oops | ZeroDivisionError)
        assert 1 <= store.spent().answers == len(server.paid) <= 8


def test_a_node_of_which_nothing_can_be_said(store):
    def nothing():
        raise NothingToSay("no words")
        yield

    outcome = run(session_of(store, "http://127.0.0.1:1/v1"), [(("user", 2), nothing)])
    assert outcome.failures == {("user", 2): ("nothing to say", "no words")}


def test_cancelled_at_any_moment_it_can_begin_again(store):
    async def cancelled(session, answers):
        task = asyncio.create_task(online.run(chains(40, steps=2), session))
        while session.outcome.answers < answers:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with LLMServer(latency=0.01, idempotent=True) as server:
        for answers_first in (0, 1, 3, 6, 7):
            session = session_of(store, server.base_url)
            asyncio.run(cancelled(session, answers_first))
            assert not session.outcome.failures
        assert 0 < store.spent().answers < 80
        outcome = run(session_of(store, server.base_url), chains(40, steps=2))
        assert len(outcome.results) == 40 and set(server.paid.values()) == {1}
    assert store._read("PRAGMA integrity_check") == [("ok",)] and store._read("SELECT * FROM leases") == []
