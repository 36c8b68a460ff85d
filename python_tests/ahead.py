"""Work of other processes that tests look at, begun when the run begins: the tests, most of them single-threaded, leave
it the other cores."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Ahead:
    """Calls `work(run, *arguments)`, each once however often it is asked for; `run` is for its processes."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._begun: dict[tuple, Future] = {}
        self._processes: list[subprocess.Popen] = []
        self._ended = False

    def begin(self, work: Callable, *arguments) -> Future:
        key = (work, *arguments)
        if key not in self._begun:
            self._begun[key] = self._pool.submit(work, self._run, *arguments)
        return self._begun[key]

    def _run(self, command: list, **options) -> str:
        """Standard output of `command`, which gives way to the tests; fails with the end of what it printed."""
        assert not self._ended
        process = subprocess.Popen(
            ["nice", *map(str, command)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options,
        )  # fmt: skip
        self._processes.append(process)
        out, err = process.communicate()
        assert process.returncode == 0, out[-4000:] + err[-4000:]
        return out

    def end(self) -> None:
        """Nobody asks any more: whatever still runs is killed, with the processes that it has started."""
        self._ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        self._pool.shutdown()
