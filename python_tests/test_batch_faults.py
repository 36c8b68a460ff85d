"""What goes wrong between a run and the Batch API: batches that fail, replies lost on their way, files cut short."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from batch_runs import CREATE, asked, lines_asked, profiles_of, records, walk
from llm_batches import BatchPlan
from llm_server import LLMServer

from prorec_fast.profiles.errors import ServiceRefused

pytestmark = pytest.mark.usefixtures("no_certificates")


def read(record):
    return record.request.path.endswith("/content")


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
