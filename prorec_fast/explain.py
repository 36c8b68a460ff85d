"""Which kernel an operation would run, and what that takes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch

from prorec_fast import _checks
from prorec_fast._checks import positive_int
from prorec_fast.backends import Kernel, kernel_of
from prorec_fast.costs import FORMULAS, Call, Cost
from prorec_fast.ops.environment_bpr import MAX_ENVIRONMENTS, MAX_PROFILES
from prorec_fast.ops.profile_contrast import MAX_PROFILES_ON_CUDA
from prorec_fast.ops.topk import MAX_SELECTED

_WITHOUT_GRADIENT = (
    "candidate_items", "pair_scores", "ranking_metrics", "sample_negatives", "similar_users",
    "teacher_distribution", "topk",
)  # fmt: skip
_OF_INTEGERS = ("candidate_items", "ranking_metrics", "sample_negatives")  # whose kernels no dtype keeps from running


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; as a string, a few lines.

    Attributes:
        operation, sizes, dtype, device, gradients: the call.
        kernel: what serves it: its name, its file in the repository and, where that is no kernel, why.
        ours: what that takes.
        eager: what the definition in plain PyTorch takes.
    """

    operation: str
    sizes: dict[str, int]
    dtype: torch.dtype
    device: torch.device
    gradients: bool
    kernel: Kernel
    ours: Cost
    eager: Cost

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        passes = "forward and backward" if self.gradients else "forward"
        lines = [
            f"{self.operation}: {sizes}; {str(self.dtype).removeprefix('torch.')} on {self.device}, {passes}",
            f"{self.kernel}; {self.kernel.file}",
        ]
        rows = [("", "GFLOP", "MiB read", "MiB written", "MiB held")]
        same = self.kernel.why is not None and self.ours == self.eager
        for name, cost in (("ours", self.ours), ("eager", self.eager))[same:]:
            sizes_moved = (cost.bytes_read, cost.bytes_written, cost.memory)
            rows.append((name, _short(cost.flops / 1e9), *(_short(size / 2**20) for size in sizes_moved)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows:
            cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *cells]))
        return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def explain(
    operation: str,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    gradients: bool = True,
    **sizes: int,
) -> Explanation:
    """Which kernel serves an operation of these sizes; what it computes, moves and holds, and what eager PyTorch does.

    Nothing is run: the figures are those of the formulas in prorec_fast/costs.py, which also says what is counted. They
    hold for the operation's default options.

    Args:
        operation: the name of a loss, or "teacher_distribution", "propagate", "topk", "ranking_metrics",
            "sample_negatives", "candidate_items", "similar_users" or "pair_scores".
        dtype: of the tables, or its name; nothing to operations that read integers alone.
        device: where they are.
        gradients: whether there is a backward pass, where the operation has one.
        sizes: what the operation's formula wants: numbers of rows and columns, 1 or more. Those it can do without are
            taken to be what they are at least.

    Raises:
        TypeError, ValueError: another operation, dtype or device, sizes that are missing, unknown or out of range; the
            message says what is wanted.
    """
    if operation not in FORMULAS:
        raise ValueError(f"operation: want one of {', '.join(FORMULAS)}, got {operation!r}")
    dtype, device = _checks.float_dtype("dtype", dtype), _checks.device("device", device)
    _check_sizes(operation, sizes)
    if operation == "similar_users":  # whose cosines are ranked in float32, of whatever dtype profiles are
        served, kernel = "topk", kernel_of("topk", device)
    else:
        read = torch.float32 if operation in _OF_INTEGERS else dtype
        served, kernel = operation, kernel_of(operation, device, read)
    beyond = _beyond(operation, sizes, device)
    if kernel.why is None and beyond:
        kernel = Kernel("reference (plain PyTorch)", f"prorec_fast/reference/{served}.py", beyond)
    on_cuda = device.type == "cuda" and kernel.why is None
    gradients = bool(gradients) and operation not in _WITHOUT_GRADIENT
    processors = _processors(device) if on_cuda else 1
    call = Call(dtype, on_cuda, gradients, torch.get_num_threads(), processors, served=kernel.why is None)
    ours, eager = FORMULAS[operation](call, **sizes)
    if kernel.why and operation != "similar_users":  # where topk's definition ranks a part of the cosines at a time
        ours = eager
    return Explanation(operation, sizes, dtype, device, gradients, kernel, ours, eager)


def _check_sizes(operation: str, sizes: dict[str, int]) -> None:
    known = list(inspect.signature(FORMULAS[operation]).parameters.values())[1:]
    needed = [p.name for p in known if p.default is p.empty]
    optional = [p.name for p in known if p.default is not p.empty]
    missing, unknown = [name for name in needed if name not in sizes], sizes.keys() - needed - set(optional)
    if missing or unknown:
        raise ValueError(
            f"{operation}: want the sizes {', '.join(needed)}"
            + (f" and, as may be, {', '.join(optional)}" if optional else "")
            + (f"; missing {', '.join(missing)}" if missing else "")
            + (f"; it has no {', '.join(sorted(unknown))}" if unknown else "")
        )
    for name, size in sizes.items():
        positive_int(name, size)


def _beyond(operation: str, sizes: dict[str, int], device: torch.device) -> str | None:
    """Why no kernel takes these sizes."""
    limits = {"environment_bpr": {"num_profiles": MAX_PROFILES, "num_environments": MAX_ENVIRONMENTS}}
    if device.type == "cuda":
        limits |= {
            "profile_contrast": {"num_profiles": MAX_PROFILES_ON_CUDA},
            "similar_users": {"k": MAX_SELECTED},
            "topk": {"k": MAX_SELECTED},
        }
    ranked = sizes.get("num_items", sizes.get("num_users", 0))  # topk selects from no more than there are
    for name, most in limits.get(operation, {}).items():
        if (min(sizes.get(name, 0), ranked) if name == "k" else sizes.get(name, 0)) > most:
            return f"no kernel takes {name} above {most}"
    return None


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
