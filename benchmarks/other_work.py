"""What the processors do beside the process that is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
ROUNDING = 2  # ticks of the system's clock by which its count of so short a time may be off


class OtherWork:
    """Of all processors' time since `restart`, what other processes had, and other machines on the same processors."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.busy, self.own, self.start = _busy_ticks(), time.process_time(), time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def share(self) -> float:
        """0 where the system does not tell."""
        if self.busy is None:
            return 0.0
        own, rate = time.process_time() - self.own, os.sysconf("SC_CLK_TCK")
        others = (_busy_ticks() - self.busy - ROUNDING) / rate - own
        return max(0.0, others / (self.seconds() * os.cpu_count()))


def _busy_ticks() -> int | None:
    """Of all processors, what a hypervisor gave to others among them; None where the system does not tell."""
    try:
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, STAT.read_text().split("\n", 1)[0].split()[1:])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq + steal
