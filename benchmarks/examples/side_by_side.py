"""What this folder's drop-in scripts share: a comparison of code as it was and as it becomes. As a program it runs them
all, under glibc's allocator as it comes and tuned, and prints the README's table.

python benchmarks/examples/side_by_side.py [NAME ...] [--rounds N] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the benchmarks' own modules

from sizes import AMAZON_BOOK, TINY, Provider, Setting, difference, loss_and_gradients
from timing import ALLOCATORS, EXACT_MEMORY, OTHERS_SHARE, WallClock, extra_memory, summary, time_providers

from prorec_fast import BipartiteGraph

__all__ = ["Provider", "Setting", "compare", "interactions", "loss_and_gradients"]

SCRIPTS = ("promax_loss", "contrast", "lightgcn", "mult_vae", "evaluation")
Build = Callable[[Setting], tuple[Provider, Provider]]


def interactions(graph: BipartiteGraph):
    """The graph as the scipy.sparse matrix that existing code has."""
    import scipy.sparse as sp

    indptr, indices = (t.numpy() for t in graph.csr())
    return sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), (graph.num_users, graph.num_items))


def compare(title: str, build: Build, tolerance: float = 1e-4) -> None:
    """A script's whole program. Nothing is timed whose values or gradients differ by more than `tolerance`, of
    ||after - before|| / ||before||."""
    parser = argparse.ArgumentParser(description=f"{title}, before and after.")
    parser.add_argument("--json", choices=("times", "memory"), help="find this alone, and print it as a line of JSON")
    arguments = _parsed(parser)
    at = TINY if arguments.tiny else AMAZON_BOOK
    if arguments.json == "memory":
        print(json.dumps(_memory(build, at)))
        return
    before, after = build(at)
    error = difference(after(), before())
    if not error <= tolerance:
        sys.exit(f"{title}: before and after differ by {error:.2g}, which is more than {tolerance:g}")
    both, tiny = {"before": before, "after": after}, arguments.tiny
    times, share = time_providers(both, WallClock(), "default", arguments.rounds, tiny)
    if share > OTHERS_SHARE:
        print(f"{title}: disturbed: others had {share:.0%} of the processors in places", file=sys.stderr)
    found = {"title": title, **{side: summary(taken)["median_ms"] for side, taken in times.items()}}
    if arguments.json:
        print(json.dumps(found))
        return
    extra = _found(Path(sys.argv[0]), "memory", EXACT_MEMORY, arguments)
    print(f"{title}: before and after agree to {error:.1g}")
    for side in times:
        print(f"{side:6} {found[side]:10.2f} ms {_mib(extra[side]):>10} beyond what there was")


def _memory(build: Build, at: Setting) -> dict[str, int | None]:
    for run in build(TINY):
        run()  # brings in code and threads
    return {side: extra_memory(run) for side, run in zip(("before", "after"), build(at), strict=True)}


def _found(script: Path, what: str, environment: dict[str, str], arguments: argparse.Namespace) -> dict:
    """What a process of the script's finds, times or memory: each wants an allocator of its own."""
    command = [sys.executable, str(script), "--json", what, "--rounds", str(arguments.rounds)]
    done = subprocess.run(
        command + ["--tiny"] * arguments.tiny, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return json.loads(done.stdout)


def row(name: str, arguments: argparse.Namespace) -> str:
    """The table's, of one script."""
    script = Path(__file__).with_name(f"{name}.py")
    times = [_found(script, "times", environment, arguments) for environment in ALLOCATORS.values()]
    extra = _found(script, "memory", EXACT_MEMORY, arguments)
    before, after = ([found[side] for found in times] for side in ("before", "after"))
    ratios = [b / a for b, a in zip(before, after, strict=True)]
    cells = [f"[{times[0]['title']}](benchmarks/examples/{name}.py)", f"{_some(before)} ms", f"{_some(after)} ms"]
    return "| " + " | ".join([*cells, _some(ratios), _mib(extra["before"]), _mib(extra["after"])]) + " |"


def _some(values: list[float]) -> str:
    return " / ".join(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in values)


def _mib(extra: int | None) -> str:
    return "unknown" if extra is None else f"{extra / 2**20:.0f} MiB"


def _parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--rounds", type=int, default=9, help="of which medians are taken")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed: a test")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds: want 1 or more, got {arguments.rounds}")
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; default: all")
    arguments = _parsed(parser)
    for name in arguments.names:
        if name not in SCRIPTS:
            parser.error(f"NAME: want one of {', '.join(SCRIPTS)}, got {name!r}")
    modes = " / ".join(ALLOCATORS)
    print(f"| | before: {modes} | after: {modes} | ratio: {modes} | memory before | after |\n|---|---|---|---|---|---|")
    for name in arguments.names or SCRIPTS:
        print(row(name, arguments), flush=True)


if __name__ == "__main__":
    main()
