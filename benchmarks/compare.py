"""Times every operation's providers interleaved in one process, with glibc's allocator as it comes and tuned, and
writes benchmarks/results/<machine>.json, where other cases of the same machine and commit stay.

    python benchmarks/compare.py [--rounds N] [--only NAME ...] [--out FILE]

Half of eager PyTorch's time on a CPU is page faults: glibc gives every large freed tensor back to the system and asks
for it again. `tuned` tells it to keep them, so the ratio against it is the one of the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from sizes import assert_agree

TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
# name: (benchmark file, its function, arguments)
CASES: dict[str, tuple[str, str, dict]] = {
    "distribution_kl": ("bench_distribution_kl", "providers", {}),
    "distribution_kl, eps 1e-8": ("bench_distribution_kl", "providers", {"eps": 1e-8, "compiled": False}),
    "distribution_kl, d 64": ("bench_distribution_kl", "providers", {"dim": 64, "compiled": False}),
    "distribution_kl, d 128": ("bench_distribution_kl", "providers", {"dim": 128, "compiled": False}),
    "four InfoNCE blocks": ("bench_info_nce", "providers", {}),
    "bpr": ("bench_bpr", "providers", {}),
    "propagate": ("bench_propagate", "providers", {"compiled": False}),
    "propagate, d 64": ("bench_propagate", "providers", {"dim": 64, "compiled": False}),
    "propagate, d 128": ("bench_propagate", "providers", {"dim": 128, "compiled": False}),
    "ProMax step": ("bench_step", "providers", {}),
    "full-ranking evaluation": ("bench_ranking_metrics", "evaluation_providers", {"compiled": False}),
    "an epoch's negatives and batches": ("bench_epoch", "providers", {}),
}


def measure(name: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each provider, in rounds of one call each."""
    module, function, arguments = CASES[name]
    providers: dict[str, Callable] = getattr(import_module(module), function)(**arguments)
    times: dict[str, list[float]] = {provider: [] for provider in providers}
    if isinstance(next(iter(providers.values()))()[0], torch.Tensor):  # an epoch's batches are random
        assert_agree(providers)
    for _ in range(rounds):
        for provider, run in providers.items():
            run()  # the caches as this provider leaves them
            start = time.perf_counter()
            run()
            times[provider].append(1e3 * (time.perf_counter() - start))
    return times


def summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"median_ms": ordered[len(ordered) // 2], "min_ms": ordered[0], "max_ms": ordered[-1]}


def machine() -> dict[str, object]:
    import prorec_fast
    from prorec_fast import _native

    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "processor": model,
        "threads": torch.get_num_threads(),
        "instruction set": _native.extension().isa(),
        "torch": torch.__version__,
        "prorec_fast": prorec_fast.__version__,
        "commit": commit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    results_file = Path(__file__).parent / "results" / f"cpu-{platform.machine()}.json"
    parser.add_argument("--out", type=Path, default=results_file)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.rounds)))
        return
    earlier = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results: dict[str, dict] = earlier.get("results", {}) if earlier.get("machine") == machine() else {}
    for name in arguments.only:
        for allocator, environment in (("default", {}), ("tuned", TUNED)):
            command = [sys.executable, __file__, "--one", name, "--rounds", str(arguments.rounds)]
            done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
            found = {p: summary(times) for p, times in json.loads(done.stdout.splitlines()[-1]).items()}
            results.setdefault(name, {})[allocator] = found
            line = ", ".join(f"{p} {f['median_ms']:.2f} (min {f['min_ms']:.2f})" for p, f in found.items())
            print(f"{name} [{allocator}] ms: {line}", flush=True)
    temporary = arguments.out.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    os.replace(temporary, arguments.out)


if __name__ == "__main__":
    main()
