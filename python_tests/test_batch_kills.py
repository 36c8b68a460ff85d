"""Runs over the Batch API whose process is killed, and several processes that share one."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip("openai", reason="profiles need openai")

from batch_runs import CHAT, CREATE, UPLOAD, asked, profiles_of, records, two_steps, walk
from llm_batches import BatchPlan
from llm_server import LLMServer
from pydantic import BaseModel, ConfigDict, Field

from prorec_fast.profiles.store import Store

pytestmark = pytest.mark.usefixtures("no_certificates")

PROCESSES = multiprocessing.get_context("fork")  # started while the server's thread waits for requests


class LongProfile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=3000)


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
