"""Texts to vectors over a service on loopback: what is sent, what is paid for, what is taken for an answer."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

pytest.importorskip("openai", reason="embeddings of a service need openai")

from llm_answers import embedding
from llm_faults import first
from llm_server import LLMServer
from processes import HERE

from prorec_fast.profiles import EmbedSettings, Prices, ServiceSettings, Store
from prorec_fast.profiles.embed import EmbedSession, batches, embed, gather
from prorec_fast.profiles.embeddings import read_embeddings, read_tokens
from prorec_fast.profiles.errors import BudgetReached, ProfileError, ServiceRefused

MODEL = "text-embedding-3-small"
PRICES = Prices(chat={}, embedding={MODEL: 1000.0})  # a dollar for a thousand tokens
TEXTS = [f"the {word} of number {number}" for number in range(15) for word in ("sea", "hill")]


class SpoiltServer(LLMServer):
    """`spoil(request, answer)` changes the answers to calls for embeddings, which are paid all the same."""

    def __init__(self, spoil, **given):
        super().__init__(**given)
        self._spoil = spoil

    def _charged(self, request, fault):
        status, answer = super()._charged(request, fault)
        return status, self._spoil(request, answer) or answer


def session(store, server, *, retries=2, concurrency=4, budget=None, progress=None, **given):
    settings = EmbedSettings(MODEL, **{"batch_texts": 8, **given})
    service = ServiceSettings(server.base_url, concurrency=concurrency, timeout=5, retries=retries)
    return EmbedSession(store, service, settings, PRICES, budget, progress)


def run(texts, store, server, **given):
    return asyncio.run(embed(texts, session(store, server, **given)))


def sent(server):
    """The texts of each call."""
    return [record.request.body["input"] for record in server.requests]


# what is sent, and kept


def test_vectors_come_in_the_order_of_the_texts_and_equal_texts_are_paid_for_once(store):
    seen = []
    texts = TEXTS + TEXTS[::-1]
    with LLMServer(width=16) as server:
        embedded = run(texts, store, server, progress=lambda now: seen.append((now.done, now.total)))
        assert set(server.paid_texts.values()) == {1} and len(server.paid_texts) == 30
        assert [len(call) for call in sent(server)].count(8) == 3 and len(sent(server)) == 4
        assert server.requests[0].request.body["encoding_format"] == "base64"
        assert "dimensions" not in server.requests[0].request.body
    np.testing.assert_array_equal(gather(store, embedded.keys), np.array([embedding(t, 16) for t in texts], np.float32))
    assert (embedded.total, embedded.reused, embedded.done, embedded.failures) == (30, 0, 30, {})
    assert seen[0] == (0, 30) and seen[-1] == (30, 30) and sorted(seen) == seen
    spent = store.spent(MODEL)
    assert spent.answers == 4 and spent.prompt_chars == sum(map(len, TEXTS))
    assert spent.prompt_tokens == server.stats()["prompt_tokens"]
    assert spent.dollars == pytest.approx(spent.prompt_tokens / 1000)


def test_what_is_stored_is_not_sent_and_dimensions_are_another_key(store):
    with LLMServer(width=16) as server:
        run(TEXTS[:9], store, server)
        embedded = run(TEXTS, store, server)
        assert (embedded.reused, embedded.done) == (9, 30) and set(server.paid_texts.values()) == {1}
        asked = len(server.requests)
        assert run(TEXTS, store, server).reused == 30 and len(server.requests) == asked
        narrow = run(TEXTS[:2], store, server, dimensions=4)
        assert server.requests[-1].request.body["dimensions"] == 4
    assert narrow.reused == 0 and gather(store, narrow.keys).shape == (2, 4)
    assert EmbedSettings("a").key("x") != EmbedSettings("b").key("x") != EmbedSettings("b").key("y")
    assert EmbedSettings("a").key("x") == EmbedSettings("a", batch_texts=3, max_chars=9).key("x")
    with pytest.raises(ProfileError, match="1 of 2 texts have no vector"):
        gather(store, [narrow.keys[0], "other"])
    store.save_vectors([("other", np.ones(7))], model=MODEL)
    with pytest.raises(ProfileError, match=r"widths \[4, 7\]"):
        gather(store, [narrow.keys[0], "other"])


def test_portions_have_bounds_and_do_not_move_with_what_is_stored():
    wanted = {str(place): "x" * 40 for place in range(7)}  # 10 tokens each
    by_count = list(batches(wanted, set(), EmbedSettings("m", batch_texts=3)))
    assert [list(batch) for batch in by_count] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    by_tokens = list(batches(wanted, set(), EmbedSettings("m", batch_tokens=25)))
    assert [len(batch) for batch in by_tokens] == [2, 2, 2, 1]
    assert len(list(batches(wanted, set(), EmbedSettings("m", batch_tokens=1)))) == 7
    lacking = list(batches(wanted, {"0", "3", "4", "5"}, EmbedSettings("m", batch_texts=3)))
    assert [list(batch) for batch in lacking] == [["1", "2"], ["6"]]


def test_long_texts_are_cut_and_counted_and_empty_ones_refused(store):
    with LLMServer() as server:
        embedded = run(["short", "y" * 50, "y" * 60, "z" * 51, "z" * 51], store, server, max_chars=50)
        assert sorted(len(text) for call in sent(server) for text in call) == [5, 50, 50]
        assert embedded.cut == 2 and embedded.total == 3 and embedded.keys[1] == embedded.keys[2]
        asked = len(server.requests)
        for bad, message in (("", "texts\\[1\\]: want something"), (" \n", "texts\\[1\\]"), ("\ud800", "surrogate")):
            with pytest.raises(ProfileError, match=message):
                run(["new", bad], store, server)
        assert len(server.requests) == asked
    for wrong in ({"model": ""}, {"model": "m", "dimensions": 0}, {"model": "m", "batch_texts": 0}):
        with pytest.raises(ValueError, match=r"model|dimensions|batch_texts"):
            EmbedSettings(**wrong)


# what goes wrong


@pytest.mark.parametrize("fault", ["rate-limit", "server-error", "dropped", "half-body"])
def test_the_client_s_retries_mend_what_passes(store, fault):
    with LLMServer(faults=first(1, fault)) as server:
        assert run(TEXTS, store, server).done == 30
    assert len(server.requests) == 4 * 2


def test_one_text_that_is_rejected_fails_alone(store):
    long = "word " * 9000  # more tokens than the service takes of a text
    with LLMServer() as server:
        embedded = run([*TEXTS[:5], long, *TEXTS[5:]], store, server, max_chars=100_000, concurrency=1)
        assert embedded.done == 30 and list(embedded.failures) == [embedded.keys[5]]
        assert all(part in embedded.failures[embedded.keys[5]] for part in ("maximum context length", "max_chars"))
        assert set(server.paid_texts.values()) == {1}
    assert store.lease(embedded.keys[5])  # the failure has let go of its lease


def test_a_service_that_rejects_everything_ends_the_run(store):
    with LLMServer(faults=first(99, "bad-request")) as server:
        with pytest.raises(ServiceRefused, match=r"16 requests in a row .*Invalid value"):
            run(TEXTS * 9, store, server, batch_texts=2)
        assert len(server.requests) < 25
    assert store.lease_each(dict.fromkeys(map(EmbedSettings(MODEL).key, TEXTS), 0.0))


def test_rejected_texts_among_others_end_nothing(store):
    bad = set(TEXTS[::4])
    with LLMServer(faults=lambda request: "bad-request" if bad & set(request.body["input"]) else None) as server:
        embedded = run(TEXTS, store, server, batch_texts=4, concurrency=1)
        assert [record.status for record in server.requests].count(400) > 16
    assert embedded.done == 22 and len(embedded.failures) == 8


def test_what_is_under_way_when_the_run_ends_is_kept(store):
    def script(request):
        return "unauthorized" if TEXTS[0] in request.body["input"] else None

    with LLMServer(faults=script, latency=0.2) as server:
        with pytest.raises(ServiceRefused):
            run(TEXTS, store, server)
        assert len(server.paid_texts) == len(store.with_vectors([EmbedSettings(MODEL).key(t) for t in TEXTS])) == 22


@pytest.mark.parametrize("fault", ["unauthorized", "unknown-model", "quota"])
def test_a_service_that_refuses_is_not_asked_on(store, fault, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with LLMServer(faults=first(99, fault)) as server:
        with pytest.raises(ServiceRefused, match="refuses") as caught:
            run(TEXTS, store, server, retries=0, concurrency=2)
        assert len(server.requests) <= 2
    assert "sk-very-secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert b"sk-very-secret" not in b"".join(path.read_bytes() for path in store.path.parent.iterdir())


def test_what_got_no_answer_is_a_failure_that_another_run_mends(store):
    down = True

    def script(request):
        return "server-error" if down and TEXTS[0] in request.body["input"] else None

    with LLMServer(faults=script) as server:
        embedded = run(TEXTS, store, server, retries=0)
        assert embedded.done == 22 and set(embedded.failures) == set(embedded.keys[:8])
        down = False
        assert run(TEXTS, store, server).done == 30
        assert set(server.paid_texts.values()) == {1}


# what is taken for an answer


def _row(values):
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def _first(change):
    """A spoiler of the first attempt at every call."""
    return lambda request, answer: change(answer) if request.attempt == 0 else None


def _without_last(answer):
    answer["data"].pop()


def _repeated_index(answer):
    answer["data"][-1]["index"] = 0


def _negative_index(answer):
    answer["data"][0]["index"] = -1


def _no_index(answer):
    del answer["data"][0]["index"]


def _narrower(answer):
    answer["data"][-1]["embedding"] = _row(np.ones(3))


def _text(answer):
    answer["data"][0]["embedding"] = "no base64 at all!"


def _no_data(answer):
    answer["data"] = {"0": answer["data"]}


@pytest.mark.parametrize(
    "change", [_without_last, _repeated_index, _negative_index, _no_index, _narrower, _text, _no_data]
)
def test_a_malformed_answer_is_asked_again_and_what_it_cost_is_counted(store, change):
    with SpoiltServer(_first(change), width=8) as server:
        embedded = run(TEXTS[:8], store, server)
        assert embedded.done == 8 and len(server.requests) == 2
    np.testing.assert_array_equal(gather(store, embedded.keys)[3], np.float32(embedding(TEXTS[3], 8)))
    assert store.spent().prompt_tokens == server.stats()["prompt_tokens"] and store.spent().answers == 2


def test_vectors_are_placed_by_their_index_and_lists_of_numbers_are_read(store):
    def shuffled(request, answer):
        for entry in answer["data"]:
            entry["embedding"] = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").tolist()
        answer["data"].reverse()

    with SpoiltServer(shuffled, width=8) as server:
        embedded = run(TEXTS[:8], store, server)
    np.testing.assert_array_equal(
        gather(store, embedded.keys), np.array([embedding(t, 8) for t in TEXTS[:8]], np.float32)
    )


@pytest.mark.parametrize("values", [np.zeros(8), np.full(8, np.nan), [np.inf, *np.ones(7)]])
def test_a_vector_without_use_is_asked_for_alone_then_named(store, values):
    def spoil(request, answer):
        if TEXTS[2] in request.body["input"]:
            answer["data"][request.body["input"].index(TEXTS[2])]["embedding"] = _row(values)

    with SpoiltServer(spoil, width=8) as server:
        embedded = run(TEXTS[:8], store, server)
        assert [len(call) for call in sent(server)] == [8, 1, 1]
        assert len({record.request.idempotency_key for record in server.requests}) == 3
    assert embedded.done == 7 and list(embedded.failures) == [embedded.keys[2]]
    assert "all zeros or not finite" in embedded.failures[embedded.keys[2]]


def test_a_width_other_than_asked_for_or_stored_is_refused(store):
    with LLMServer(width=8) as server:
        run(TEXTS[:1], store, server)
    with LLMServer(width=9) as server:
        embedded = run(TEXTS[:2], store, server)
    assert embedded.done == 1 and "9 numbers where others, or the dimensions asked for, are 8" in str(embedded.failures)
    with SpoiltServer(lambda request, answer: _narrower(answer), width=8) as server:
        embedded = run(["alone"], store, server, dimensions=5)
    assert "3 numbers" in str(embedded.failures)


def test_what_is_wrong_with_a_reply_is_said():
    entry = {"index": 0, "embedding": [1.0]}
    for count, problem in ((3, "2 vectors for 3 texts"), (2, "0 as the index of one, out of range or repeated")):
        with pytest.raises(ValueError, match=problem):
            read_embeddings(json.dumps({"data": [entry, entry]}), count, None)


@pytest.mark.parametrize("body", ["", "[]", "null", "1", '{"data": 3}', "<html>", "[" * 100_000])
def test_bodies_that_are_no_reply_are_value_errors(body):
    with pytest.raises(ValueError, match="holds no embeddings"):
        read_embeddings(body, 1, None)
    assert read_tokens(body) is None


@pytest.mark.parametrize("given", [[], [True], ["1"], [None], [10**400], {"0": 1}, None, "AAA=", "AAAA" * 5 + "=", ""])
def test_embeddings_that_are_no_numbers_are_value_errors(given):
    body = json.dumps({"data": [{"index": 0, "embedding": given}]})
    with pytest.raises(ValueError, match="an embedding "):
        read_embeddings(body, 1, None)


# money, and several processes


def test_a_budget_stops_and_more_of_it_goes_on(store):
    with LLMServer() as server:
        # a call of 8 texts costs 4 cents, and 16 are set aside: the second waits until it is known what the first cost
        embedded = run(TEXTS[:24], store, server, budget=0.22)
        assert "$0.22" in embedded.stopped and embedded.done == 16 and store.spent().dollars == pytest.approx(0.08)
        embedded = run(TEXTS, store, server, budget=2.0)
        assert embedded.done == 30 and embedded.stopped is None and set(server.paid_texts.values()) == {1}
        with pytest.raises(ProfileError, match="no price is known of 'other'"):
            EmbedSession(store, ServiceSettings(server.base_url), EmbedSettings("other"), PRICES, 1.0)
        with pytest.raises(ValueError, match="budget: want a finite number"):
            run(TEXTS, store, server, budget=float("nan"))


def test_leases_of_one_call_are_taken_together(tmp_path):
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as other:
        assert one.lease_each({"a": 1.0, "b": 1.0}, 3.0) == ["a", "b"]
        assert other.lease_each({"b": 1.0, "c": 1.0, "a": 1.0}, 3.0) == ["c"]
        with pytest.raises(BudgetReached, match=r"\$0.5"):
            other.lease_each({"d": 0.5}, 3.0)
        one.release("a", "b")
        assert other.lease_each({"a": 1.0, "d": 1.0}, 3.0) == ["a", "d"]
        other.save_vectors([("a", np.ones(2))], model="m", tokens=1, cost=0.5)
        assert one.lease_each({"a": 1.0, "b": 0.1}) == ["b"]
        assert one.with_vectors(["a", "b"]) == {"a"}


def test_two_processes_share_the_work_and_one_killed_is_no_loss(tmp_path):
    script = tmp_path / "embed_some.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, sys
            from prorec_fast.profiles import EmbedSettings, ServiceSettings, Store
            from prorec_fast.profiles.embed import EmbedSession, embed
            texts = [f"text of number {number}" for number in range(400)]
            with Store(sys.argv[1]) as store:
                service, settings = ServiceSettings(sys.argv[2], concurrency=4), EmbedSettings("m", batch_texts=4)
                print("ready", flush=True)
                sys.stdin.readline()
                print(asyncio.run(embed(texts, EmbedSession(store, service, settings))).done)
            """
        )
    )
    with LLMServer(latency=0.02, idempotent=True) as server:
        command = [sys.executable, script, tmp_path / "store", server.base_url]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": HERE}
        both = [subprocess.Popen(command, **pipes) for _ in range(2)]
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for process in both:
            process.stdin.write("\n")
            process.stdin.flush()
        while len(server.requests) < 30:
            assert any(process.poll() is None for process in both)
            time.sleep(0.005)
        both[0].kill()
        assert both[0].wait() == -signal.SIGKILL
        assert both[1].communicate(timeout=60)[0] == "400\n" and both[1].returncode == 0
        while server.in_flight:
            time.sleep(0.005)
        assert len(server.paid_texts) == 400 and set(server.paid_texts.values()) == {1}
    assert len({record.request.idempotency_key for record in server.requests}) == 100
    with Store(tmp_path / "store") as store:
        assert len(store.vectors([EmbedSettings("m").key(f"text of number {n}") for n in range(400)])) == 400
