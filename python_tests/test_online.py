"""Chains over a service on loopback: what is asked and paid, and how each thing that goes wrong ends."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from llm_faults import LOST_AFTER, LOST_BEFORE, SPOILED, first
from llm_server import LLMServer
from pydantic import BaseModel, ConfigDict, Field

from prorec_fast.profiles import answers, online
from prorec_fast.profiles.errors import BudgetReached, NothingToSay, ProfileError, ServiceRefused
from prorec_fast.profiles.pricing import Prices, estimated_tokens
from prorec_fast.profiles.requests import ChatRequest, ask
from prorec_fast.profiles.session import Session
from prorec_fast.profiles.settings import ChatSettings, ServiceSettings
from prorec_fast.profiles.store import Store

CHAT = ChatSettings("m", max_tokens=64)
PRICES = Prices(chat={"m": (1000.0, 2000.0)}, embedding={})  # a token costs as much as a thousand do elsewhere
FORK = multiprocessing.get_context("fork")


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str


class Nested(BaseModel):
    model_config = ConfigDict(extra="forbid")
    replies: list[Reply]
    score: int | None = Field(description="From 1 to 5, or null.")


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


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "answers.sqlite") as opened:
        yield opened


def test_every_chain_ends_and_is_paid_for_once(store):
    with LLMServer(latency=0.02) as server:
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


# what ends a run


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


# money


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


# replies that only other servers give


@contextmanager
def replying(reply, status=200, pause=0.0, **headers):
    """A service with one reply for everybody, with a pause after each byte; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in {"content_type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            with suppress(ConnectionError):
                for part in [reply] if not pause else map(bytes, zip(reply)):
                    self.wfile.write(part)
                    time.sleep(pause)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def completion(**parts):
    content = json.dumps({"text": "fine"})
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], **parts}).encode()


def test_a_reply_that_drips_does_not_outlast_the_timeout(store):
    began = time.monotonic()
    with replying(b" " * 200 + completion(), pause=0.05) as url:
        outcome = run(session_of(store, url, timeout=0.3, retries=1), chains(1))
    kind, reason = outcome.failures["item", 0]
    assert kind == "unanswered" and "no whole reply in time" in reason and time.monotonic() - began < 5


@pytest.mark.parametrize("form", ["application/json", "text/html", "text/plain; charset=no-such"])
@pytest.mark.parametrize("usage", [{}, {"usage": {"prompt_tokens": -3}}])
def test_an_answer_without_usage_is_kept_and_counted_by_its_size(store, usage, form):
    with replying(completion(**usage), content_type=form) as url:
        outcome = run(session_of(store, url), chains(1))
    request = ChatRequest(tuple(messages(0)), Reply)
    assert outcome.results == {("item", 0): ["fine"]}
    spent = store.spent()
    assert (spent.prompt_tokens, spent.completion_tokens) == (estimated_tokens(request.prompt_chars), 4)
    assert spent.dollars == pytest.approx((spent.prompt_tokens * 1000 + 4 * 2000) / 1e6)


@pytest.mark.parametrize(("reply", "headers"), [
    (b"", {}), (b"\xff\xfe\x00", {}), (b'{"error": {"message": "overloaded"}}', {}), (b"data: {}\n\n", {}),
    (b"[" * 100_000, {}), (b"no gzip", {"content_encoding": "gzip"}),
])  # fmt: skip
def test_a_reply_that_is_no_completion_is_no_answer(store, reply, headers):
    with replying(reply, **headers) as url:
        outcome = run(session_of(store, url, retries=0), chains(1))
    kind, reason = outcome.failures["item", 0]
    assert kind == "unanswered" and len(reason) < 300 and store.spent().answers == 0


@pytest.mark.parametrize(("status", "reply", "kind"), [
    (502, b"<html>" + b"x" * 100_000, "unanswered"), (418, b"short and stout", "rejected"),
    (400, b'{"error": {"message": "json_schema is unknown"}}', "rejected"), (302, b"", "unanswered"),
    (429, b'{"error": {"message": "slow down", "code": 429}}', "unanswered"),
])  # fmt: skip
def test_an_odd_refusal_fails_a_node_in_few_words(store, status, reply, kind):
    with replying(reply, status) as url:
        outcome = run(session_of(store, url, retries=0), chains(1))
    assert outcome.failures["item", 0][0] == kind and len(outcome.failures["item", 0][1]) < 700
    assert ('set the answer format "json"' in outcome.failures["item", 0][1]) == (b"json_schema" in reply)


def test_a_balance_of_nothing_ends_the_run(store):
    with replying(b'{"error": {"message": "Insufficient Balance"}}', 402) as url:
        error = failing(session_of(store, url), chains(5))
    assert isinstance(error, ServiceRefused) and "Insufficient Balance" in str(error)


# the key


def test_the_key_is_shown_nowhere(tmp_path, monkeypatch, caplog):
    secret = "sk-verysecret0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", f"{secret}\n")
    caplog.set_level(logging.DEBUG)
    shown = []
    with Store(tmp_path / "answers.sqlite") as store:
        for faults in ({"unauthorized": 1.0}, {"bad-request": 0.5, "dropped": 0.3}, {}):
            with LLMServer(faults=faults) as server, suppress(ServiceRefused):
                session = session_of(store, server.base_url, retries=1)
                try:
                    run(session, chains(6))
                except ServiceRefused as error:
                    shown += traceback.format_exception(error)
                shown.append(str(session.outcome.failures))
                shown.append(repr(session))
                assert all(record.request.authorized for record in server.requests)
        quoted = f'{{"error": {{"message": "{secret} may not"}}}}'.encode()
        with replying(quoted, 400) as url:
            shown.append(str(run(session_of(store, url), [chains(8)[7]]).failures))
        with replying(quoted, 401) as url:
            shown += traceback.format_exception(failing(session_of(store, url), [chains(8)[7]]))
        shown += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]
    assert "***" in shown[0] + "".join(shown) and "*** may not" in "".join(shown)
    assert secret not in "".join(shown) and "openai" in caplog.text and secret not in caplog.text
