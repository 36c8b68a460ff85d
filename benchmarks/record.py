"""The results file: a machine, and what was measured on it. As a program, prints a short table of a file,
or with --name what this GPU's file is called."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch
from timing import OTHERS_SHARE

from prorec_fast._files import write_atomically

OTHERS = ("numpy", "scipy", "implicit", "faiss-cpu", "liger-kernel", "cut-cross-entropy")
RESULTS = Path(__file__).parent / "results"
if not RESULTS.is_dir():  # installed
    RESULTS = Path()


def machine(device: str) -> dict[str, Any]:
    """What the figures belong to: the processor or the GPU, and every version that they depend on."""
    import prorec_fast
    from prorec_fast import _native
    from prorec_fast.backends import processor

    found = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "instruction set": _native.extension().isa(),
        "torch": torch.__version__,
        "prorec_fast": prorec_fast.__version__,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
    }
    for name in OTHERS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | (_gpu() if device == "cuda" else {})


def _commit() -> str:
    """Of the working tree, and whether it has changes; where that came without its history, GIT_COMMIT says it."""
    root = Path(__file__).resolve().parents[1]
    if shutil.which("git") and (root / ".git").exists():
        command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return os.environ.get("GIT_COMMIT", "unknown")


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    driver = "unknown"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip() or driver
    triton = None
    if find_spec("triton"):
        import triton as installed

        triton = installed.__version__
    return {
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_mib": properties.total_memory // 2**20,
        "l2_mib": properties.L2_cache_size / 2**20,
        "driver": driver,
        "cuda": torch.version.cuda,
        "triton": triton,
    }


def default_file(device: str, folder: Path = RESULTS) -> Path:
    name = f"cpu-{platform.machine()}"
    if device == "cuda":
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    return folder / f"{name}.json"


def read(file: Path) -> dict[str, Any]:
    """A results file's content.

    Raises:
        ValueError: the file is another.
    """
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no results file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("machine"), dict):
        raise ValueError(f"{file} is no results file: it names no machine")
    return content


class Record:
    """A results file as it grows; without a file, the content alone. What it had stays where the machine and all
    versions are the same, else it is moved aside.

    Attributes:
        commit: whose figures are added; each entry names its own.

    Raises:
        ValueError: the file is there and has no results.
    """

    def __init__(self, file: Path | None, device: str) -> None:
        self.file, self.commit, here = file, _commit(), machine(device)
        earlier = read(file) if file is not None and file.exists() else {}
        if earlier and earlier["machine"] != here:
            names = (file.with_suffix(f".earlier{'' if n == 1 else f'-{n}'}.json") for n in count(1))
            aside = next(name for name in names if not name.exists())
            os.replace(file, aside)
            print(f"{file}: of another machine or other versions, moved to {aside.name}", file=sys.stderr)
            earlier = {}
        self.content: dict[str, Any] = earlier or {"machine": here}

    def add(self, section: str, name: str, value: Any) -> None:
        """Sets content[section][name], and writes the file in one step."""
        self.content.setdefault(section, {})[name] = value
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file, (json.dumps(self.content, indent=1) + "\n").encode())


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="the results file; default: benchmarks/results/<machine>.json, and with --tiny none",
    )  # fmt: skip


def opened(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Record:
    """That of --out, --tiny and --device."""
    try:
        file = arguments.out or (None if arguments.tiny else default_file(arguments.device))
        return Record(file, arguments.device)
    except (OSError, ValueError) as error:
        parser.error(f"--out: {error}")


def table(content: dict[str, Any]) -> list[str]:
    """A line for each case, in the last of its modes that ours was timed in: ours beside the fastest other provider."""
    from sizes import OURS
    from training_lines import training_lines

    named = ("gpu", "processor", "torch")
    lines = [", ".join(f"{key} {value}" for key, value in content["machine"].items() if key in named)]
    for label, case in content.get("cases", {}).items():
        if "failed" in case:
            lines.append(f"{label}: FAILED: {case['failed']}")
        mode, found = next(((m, f) for m, f in reversed(case.get("modes", {}).items()) if OURS in f), ("", {}))
        if not found:
            continue
        ours = found[OURS]
        line = f"{label} [{mode}]: {ours['median_ms']:.4g} ms"
        if "gb_per_s" in ours:
            line += f", {ours['gflop_per_s']:.4g} GFLOP/s, {ours['gb_per_s']:.4g} GB/s"
        if "share_of_ceiling" in ours:
            line += f", {ours['share_of_ceiling']:.2f} of the ceiling"
        others = {name: f["median_ms"] for name, f in found.items() if not name.startswith(OURS)}
        if others:
            best = min(others, key=others.__getitem__)
            line += f"; {best} {others[best]:.4g} ms ({others[best] / ours['median_ms']:.3g} x)"
        lines.append(line)
    for data, trainings in content.get("end_to_end", {}).items():
        lines += [line for name, found in trainings.items() for line in training_lines(data, name, found)]
    return lines


COLUMNS = ("median ms", "q1 .. q3", "extra MiB", "GFLOP/s", "GB/s", "of ceiling", "x ours")


def details(label: str, case: dict[str, Any]) -> list[str]:
    """A cell's providers in every mode, beside ours; then why others are missing."""
    from sizes import OURS

    did = "".join(f", {value:.4g} {name.upper()}" for name, value in case.get("work", {}).items())
    lines = [f"{label}{did}"]
    for mode, found in case.get("modes", {}).items():
        rows = [(f"[{mode}]", *COLUMNS)]
        for name, of in found.items():
            mib, ours = case["extra_mib"].get(name), found.get(OURS, of)["median_ms"]
            rates = (of.get("gflop_per_s"), of.get("gb_per_s"), of.get("share_of_ceiling"))
            spread = f"{_short(of['q1_ms'])} .. {_short(of['q3_ms'])}"
            cells = (_short(of["median_ms"]), spread, *map(_short, (mib, *rates)), _short(of["median_ms"] / ours))
            rows.append((name, *cells))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows:
            cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            lines.append("  " + "  ".join([first.ljust(widths[0]), *cells]))
        if share := disturbed(case, mode):
            lines.append(f"  disturbed: others had {share:.0%} of the processors in places")
    return lines + [f"  without {name}: {why}" for name, why in case.get("skipped", {}).items()]


def disturbed(case: dict[str, Any], mode: str) -> float:
    """The share of the processors that others had while a case was timed, where it is too large; else 0."""
    share = case.get("others_share", {}).get(mode, 0.0)
    return share if share > OTHERS_SHARE else 0.0


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--name"]:
        print(default_file("cuda").name)
    else:
        print(*table(read(Path(sys.argv[1]))), sep="\n")
