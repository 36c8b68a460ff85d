"""The file of paid answers: what it refuses, what it keeps, and who may pay, among processes that live and die."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from prorec_fast.profiles.errors import BudgetReached, ProfileError
from prorec_fast.profiles.store import Failure, Spent, Store

FORK = multiprocessing.get_context("fork")
PAID = {"model": "m", "prompt_chars": 40, "prompt_tokens": 10, "completion_tokens": 5}


def save(store, key, body="{}", cost=1.0, **changed):
    return store.save_answer(key, body, **{**PAID, "cost": cost, **changed})


@pytest.fixture
def other(store):
    """Another owner: of leases, processes know one another by their locks alone."""
    with Store(store.path) as opened:
        yield opened


def files(store):
    return sorted(file.name for file in store.path.parent.iterdir() if "-owner-" in file.name)


# what it keeps


def test_what_was_saved_is_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "deep er" / "a?b#%20 ü.sqlite"
    vector = np.arange(3, dtype=np.float64)
    with Store(path) as store:
        assert store.answer("k") is None and store.vectors(["v"]) == {} and store.spent() == Spent()
        assert save(store, "k", '{"a": "ü🙂"}') and path.with_name(f"{path.name}-wal").exists()
        store.save_vectors([("v", vector), ("w", -vector)], model="e", chars=7, tokens=2, cost=0.5)
        store.save_failure("run", "user", 1, Failure("malformed", "why", 2))
        store.save_profile("run", "user", 3, ["one", "ü"], {"model": "m"})
    with Store(str(path)) as store:
        assert store.answer("k") == '{"a": "ü🙂"}'
        found = store.vectors(["w", "none", "v"])
        assert found.keys() == {"v", "w"} and found["w"].dtype == np.float32
        np.testing.assert_array_equal(found["w"], -vector.astype(np.float32))
        assert store.spent() == Spent(2, 47, 12, 5, 1.5)
        assert store.spent("m") == Spent(1, 40, 10, 5, 1.0) and store.spent("x") == Spent()
        assert store.failures("run", "user") == {1: Failure("malformed", "why", 2)}
        assert store.failures("run", "item") == store.failures("other", "user") == {}
        assert list(store.profiles("run", "user")) == [(3, ["one", "ü"], {"model": "m"})]
        assert store.finished_rows("run", "user") == {3} and store.finished_rows("run", "item") == set()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_a_profile_ends_a_failure(store):
    store.save_failure("run", "user", 1, Failure("unanswered", "slow"))
    store.save_failure("run", "user", 1, Failure("malformed", "bad", 1))
    assert store.failures("run", "user") == {1: Failure("malformed", "bad", 1)}
    store.save_profile("run", "item", 1, ["x"], {})
    assert store.failures("run", "user")
    store.save_profile("run", "user", 1, ["x"], {})
    assert not store.failures("run", "user")


def test_many_profiles_and_vectors_are_read_in_parts(store):
    with store._transaction():
        store._db.executemany("INSERT INTO profiles VALUES ('r', 'user', ?, '[]', '{}')", [(n,) for n in range(1005)])
    assert [row for row, *_ in store.profiles("r", "user")] == list(range(1005))
    store.save_vectors([(str(n), np.full(1, n)) for n in range(1005)], model="e")
    found = store.vectors([str(n) for n in range(1010)])
    assert {key: float(vector[0]) for key, vector in found.items()} == {str(n): float(n) for n in range(1005)}


def test_an_answer_is_on_disk_when_it_is_saved_and_a_lease_need_not_be(store):
    def waits_for_the_disk():
        return store._read("PRAGMA synchronous") == [(2,)]  # 2: FULL

    assert store.lease("k") and not waits_for_the_disk()
    assert save(store, "k") and waits_for_the_disk()
    store.release("k")
    store.save_vectors([("v", np.zeros(2))], model="e")
    assert waits_for_the_disk()


def test_the_first_of_two_answers_stays_and_both_are_paid(store):
    assert save(store, "k", "first") == "first"
    assert save(store, "k", "second", cost=None) == "first" == store.answer("k")
    assert store.spent() == Spent(2, 80, 20, 10, 1.0, unpriced=1)


def test_a_path_is_what_it_was_when_the_folder_changes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Store("answers.sqlite") as store:
        monkeypatch.chdir("elsewhere")
        assert store.lease("k") and any("-owner-" in file.name for file in tmp_path.iterdir())
        save(store, "k")
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["answers.sqlite"]


# what it refuses


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path):
    garbage, folder = tmp_path / "garbage", tmp_path / "folder"
    garbage.write_bytes(b"no database" * 100)
    folder.mkdir()
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE cats (name)")
        db.execute("PRAGMA user_version=1")
    db.close()
    before = foreign.read_bytes()
    for path, said in [(garbage, "not a database"), (folder, "unable to open"), (foreign, "another program's"),
                       (garbage / "below", "exists|directory")]:  # fmt: skip
        with pytest.raises(ProfileError, match=f"^{path}: .*({said})"):
            Store(path)
    assert foreign.read_bytes() == before and garbage.read_bytes() == b"no database" * 100
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "foreign", "garbage"]


def test_a_store_of_another_version_is_refused(store, tmp_path):
    store._db.execute("PRAGMA user_version=2")
    with pytest.raises(ProfileError, match="a store of version 2, this is for 1"):
        Store(store.path)


def test_a_damaged_store_says_so(tmp_path):
    path = tmp_path / "answers.sqlite"
    with Store(path) as store, store._transaction():
        rows = [(str(n), "x" * 500) for n in range(200)]
        store._db.executemany("INSERT INTO answers VALUES (?, 'm', ?, 1, 1, 1, 0, 0)", rows)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4] + bytes(3 * len(content) // 4))
    with pytest.raises(ProfileError, match=r"answers\.sqlite: .*malformed"), Store(path) as store:
        [store.answer(str(n)) for n in range(200)]


def test_a_folder_that_nobody_may_write_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ProfileError, match="cannot be used as a store"):
        Store(tmp_path / "answers.sqlite")


def _with_small_files(path, told):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails like one to a full disk
    with Store(path) as store:
        save(store, "before")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
        kept = ["before"]
        try:
            while True:
                key = f"key {len(kept)}"
                store.lease(key, 1.0)
                save(store, key, "x" * 2000)
                kept.append(key)
        except ProfileError as error:
            told.put(str(error))
        told.put(kept)
        told.put([store.answer(key) is not None for key in kept])


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    path, told = tmp_path / "answers.sqlite", FORK.SimpleQueue()
    process = FORK.Process(target=_with_small_files, args=(path, told))
    process.start()
    error, kept, there = told.get(), told.get(), told.get()
    process.join()
    assert process.exitcode == 0 and "answers.sqlite: cannot be used as a store (disk I/O error" in error
    assert len(kept) > 5 and all(there)
    with Store(path) as store:
        assert [store.answer(key) is not None for key in kept] == there and store.spent().answers == len(kept)
        assert store.lease("k", 1.0) and save(store, "k")
        assert store._read("PRAGMA integrity_check") == [("ok",)]


def test_a_fork_opens_it_anew(store):
    def child(told):
        for call in (lambda: store.answer("k"), lambda: store.lease("k")):
            try:
                told.put(f"it got {call()}")
            except ProfileError as error:
                told.put(str(error))

    told = FORK.SimpleQueue()
    process = FORK.Process(target=child, args=(told,))
    process.start()
    assert "opened before a fork" in told.get() and "opened before a fork" in told.get()
    process.join()
    assert store.lease("k") and save(store, "k")


# leases and budgets


def test_a_lease_is_one_owners_until_it_ends(store, other):
    assert store.lease("k") and not store.lease("k") and not other.lease("k") and other.lease("l")
    store.release("k")
    assert other.lease("k")
    save(other, "k")
    assert not store.lease("k") and not other.lease("k")
    assert store.lease("v")
    store.save_vectors([("v", np.zeros(2))], model="e")
    assert not other.lease("v")
    assert other.lease("w")
    other.close()
    assert store.lease("w") and len(files(store)) == 1
    store.close()
    assert files(store) == []
    store.close()


def test_a_budget_covers_what_is_spent_and_what_is_leased(store, other):
    save(store, "before", cost=4.0)
    save(store, "free", cost=None)
    assert store.lease("a", 3.0, budget=10.0) and other.lease("b", 3.0, budget=10.0)
    with pytest.raises(BudgetReached, match=r"\$0\.0100.*\$10"):
        other.lease("c", 0.01, budget=10.0)
    assert other.lease("c", 0.0, budget=10.0) and other.lease("d", 1.0)  # of nothing, and without a budget
    store.release("d")
    assert not store.lease("d")  # it was the other's
    other.release("d")
    save(other, "b", cost=1.0)  # less than was set aside
    assert store.lease("e", 2.0, budget=10.0)
    with pytest.raises(BudgetReached):
        store.lease("f", 0.5, budget=10.0)
    assert not store.lease("b", 99.0, budget=10.0)  # is there
    other.close()  # its lease of nothing
    store.release("a")
    assert store.lease("f", 3.0, budget=10.0)
    assert store.spent().dollars == 5.0


def _owner(path, told):
    with Store(path) as store:
        told.put(store.lease("theirs", 5.0))
        time.sleep(60)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_leases_die_with_their_process_at_once(store, ending):
    told = FORK.SimpleQueue()
    process = FORK.Process(target=_owner, args=(store.path, told))
    process.start()
    try:
        assert told.get() is True and not store.lease("theirs", 5.0)
        with pytest.raises(BudgetReached):
            store.lease("ours", 5.0, budget=9.0)
        assert len(files(store)) == 2
        os.kill(process.pid, ending)
        process.join(10)
    finally:
        process.kill()
    assert store.lease("ours", 5.0, budget=9.0)  # what the dead leased counts no more
    assert len(files(store)) == 1
    store.release("ours")
    assert store.lease("theirs", 5.0, budget=9.0)


def test_files_of_dead_owners_without_leases_are_removed(tmp_path):
    with Store(tmp_path / "a.sqlite") as store, Store(tmp_path / "a.sqlite-2") as neighbour:
        dead = [tmp_path / f"a.sqlite-owner-{name}" for name in "xy"]
        for file in dead:
            file.touch()
        assert neighbour.lease("k") and all(file.exists() for file in dead)
        assert store.lease("k") and not any(file.exists() for file in dead) and len(files(neighbour)) == 2


def test_an_owner_whose_file_was_taken_for_a_dead_ones_takes_another(store, other, monkeypatch):
    import fcntl

    lock, taken = fcntl.flock, []

    def late(descriptor, how):
        if not taken and how == fcntl.LOCK_EX:  # between the making of the file and its lock, another looks at it
            taken.append(files(store)[0])
            other._alive(taken[0].partition("-owner-")[2])
        return lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert store.lease("k")
    monkeypatch.undo()
    assert files(store) != taken and len(files(store)) == 1 and not other.lease("k")


def test_threads_share_a_store(store):
    leased = Counter()

    def work(_):
        for n in range(30):
            if store.lease(str(n), 1.0, 1000.0):
                leased[n] += 1
                save(store, str(n))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert leased == Counter(range(30)) and store.spent().answers == 30


def _hammer(path, log, seed, told):
    chance, written = random.Random(seed), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with Store(path) as store:
        while left := [key for key in map(str, range(KEYS)) if store.answer(key) is None]:
            key = chance.choice(left)
            with suppress(BudgetReached):
                if store.lease(key, 1.0, KEYS + 1.5):
                    os.write(written, f"+{key}\n".encode())
                    if chance.random() < 0.2:
                        os.write(written, f"-{key}\n".encode())
                        store.release(key)
                    else:
                        save(store, key, "x" * 3000)
    told.put("done")


KEYS = 120


def test_processes_that_die_and_live_on_one_store(tmp_path):
    """Five at once, of which two are killed: no key is at two of them at once, what is paid is what is counted, the
    budget holds, and nobody meets a locked database."""
    path, log, told = tmp_path / "answers.sqlite", tmp_path / "log", FORK.SimpleQueue()
    processes = [FORK.Process(target=_hammer, args=(path, log, seed, told)) for seed in range(5)]
    for process in processes:
        process.start()
    try:
        for victim in processes[:2]:
            seen = log.stat().st_size if log.exists() else 0
            while not log.exists() or log.stat().st_size < seen + 60:
                time.sleep(0.001)
            victim.kill()
        for process in processes:
            process.join(60)
    finally:
        for process in processes:
            process.kill()
    assert [process.exitcode for process in processes] == [-9, -9, 0, 0, 0]
    with Store(path) as store:
        assert store._read("PRAGMA integrity_check") == [("ok",)]
        assert store._read("SELECT COUNT(*) FROM leases") == [(0,)]
        assert store.spent() == Spent(KEYS, 40 * KEYS, 10 * KEYS, 5 * KEYS, float(KEYS))
        assert store.lease("another") and len(files(store)) == 1
    taken = Counter(log.read_text().split())
    ended_without_answer = sum(count for entry, count in taken.items() if entry.startswith("-"))
    paid = sum(taken.values()) - 2 * ended_without_answer
    assert KEYS <= paid <= KEYS + 2  # a killed process may have been at one
