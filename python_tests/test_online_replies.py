"""Replies that only other servers than ours on loopback give, and a key that none of them brings to light."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from llm_server import LLMServer
from online_runs import Reply, chains, failing, messages, run, session_of

from prorec_fast.profiles.errors import ServiceRefused
from prorec_fast.profiles.pricing import estimated_tokens
from prorec_fast.profiles.requests import ChatRequest
from prorec_fast.profiles.store import Store


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
