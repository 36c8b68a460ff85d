"""Runs over the Batch API that end before their batches do, and the runs that collect them."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from batch_runs import CHAT, CREATE, PRICES, asked, one_step, profiles_of, records, walk
from llm_batches import BatchPlan
from llm_server import LLMServer
from profile_data import make_folder

from prorec_fast.cli import main
from prorec_fast.profiles import online
from prorec_fast.profiles.errors import BudgetReached, InOpenBatch, ServiceRefused
from prorec_fast.profiles.store import Store

pytestmark = pytest.mark.usefixtures("no_certificates")


def interrupt_when_open(heard, what):
    if what == "look" and heard.looks[-1][0]:
        heard.session.stop = KeyboardInterrupt()


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


@pytest.mark.parametrize("others", [0, 1])
def test_a_batch_that_the_service_does_not_know_is_not_given_up(tmp_path, others):
    with LLMServer() as server, pytest.raises(KeyboardInterrupt):
        walk(server.base_url, tmp_path / "store", at=interrupt_when_open)
    with LLMServer() as server:
        walk(server.base_url, tmp_path / "other", others)
        with pytest.raises(ServiceRefused, match="batch_000001") as caught:
            walk(server.base_url, tmp_path / "store")
        assert caught.value.heard.left and asked(server, *CREATE) == 2 * others


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
