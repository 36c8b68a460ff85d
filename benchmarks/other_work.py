"""What the processors do beside the process that is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


class OtherWork:
    """Of the time, since `restart`, of the processors that this process may run on: what other processes had, and other
    machines on the same processors."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.processors, self.busy = _busy_ticks()
        self.own, self.start = time.process_time(), time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def share(self) -> float:
        """0 where the system does not tell."""
        if not self.processors:
            return 0.0
        # The system counts in ticks: a processor's count may be one too high.
        ticks = _busy_ticks()[1] - self.busy - self.processors
        others = ticks / os.sysconf("SC_CLK_TCK") - (time.process_time() - self.own)
        return min(max(0.0, others / (self.seconds() * self.processors)), 1.0)


def _busy_ticks() -> tuple[int, int]:
    """The number of processors that this process may run on, and how long they were busy, with what a hypervisor gave
    to others; no processors where the system does not tell."""
    try:
        counts = dict(line.split(maxsplit=1) for line in STAT.read_text().splitlines() if line.startswith("cpu"))
        own = [list(map(int, counts[f"cpu{number}"].split())) for number in os.sched_getaffinity(0)]
        return len(own), sum(sum(each[:3]) + sum(each[5:8]) for each in own)
    except (AttributeError, KeyError, OSError, ValueError):
        return 0, 0
