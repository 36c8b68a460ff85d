from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from prorec_fast import _native
from prorec_fast.backends import CUDA_LANGUAGE, backends, kernel_of
from prorec_fast.doctor import levels
from prorec_fast.doctor.checks import Check, check_device, one_line

_AGAIN = "install prorec_fast again and, where that does not help, report what `prorec-fast doctor --json` prints"


@dataclass(frozen=True)
class Diagnosis:
    """What a machine has, and how its kernels do.

    Attributes:
        facts: what backends.backends() found.
        checks: one for each call that was made.
        problems: what is wrong beyond single calls, in words that say what to do.
        notes: on a device whose operations plain PyTorch serves, which and why.
        seconds: what the checks took.
    """

    facts: dict[str, Any]
    checks: tuple[Check, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems and all(check.ok for check in self.checks)

    @property
    def places(self) -> list[str]:
        """Where kernels were checked, in order."""
        return list(dict.fromkeys(check.where for check in self.checks))

    @property
    def verdict(self) -> str:
        """One line: all is well, or what is off and what to do."""
        if self.ok:
            operations = len({check.operation for check in self.checks})
            well = f"all well: {len(self.checks)} calls of {operations} operations on {', '.join(self.places)}"
            return "; ".join([f"{well} in {self.seconds:.1f} s", *self.notes])
        off = {where: self._off(where) for where in self.places if self._off(where)}
        said = [*self.problems, *(f"{', '.join(operations)} on {where}" for where, operations in off.items())]
        to_do = self._advice(off)
        return f"off: {'; '.join(said)}" + (f". To do: {to_do}" if to_do else "")

    def _off(self, where: str) -> list[str]:
        """The operations that are off there."""
        return list(dict.fromkeys(check.operation for check in self.checks if check.where == where and not check.ok))

    def _advice(self, off: Collection[str]) -> str:
        """What to do where kernels are off in these places."""
        found = []
        used = self.facts["kernels"].get("CPU instruction set")
        well = [at for at in levels.LEVELS if levels.where(at) in self.places and levels.where(at) not in off]
        if levels.where(used) in off and well:
            found.append(f"set PROREC_FAST_ISA={well[-1]}, whose kernels are well")
        if any(where.startswith("cuda") for where in off):
            found.append("keep these tensors on the CPU, or in float64, which runs the definition")
        return "; ".join([*found, _AGAIN]) if off else ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            **self.facts,
            "problems": self.problems,
            "notes": self.notes,
            "checks": [{**asdict(check), "ok": check.ok} for check in self.checks],
            "seconds": round(self.seconds, 3),
        }


def diagnose(devices: Sequence[torch.device]) -> Diagnosis:
    """Checks the kernels of these devices, on the CPU those of every instruction set that it has."""
    started = time.perf_counter()
    problems: list[str] = []
    notes: list[str] = []
    checks: list[Check] = []
    for device in devices:
        where, used = str(device), None
        if device.type == "cpu":
            used, problem = _used_level()
            if used is None:
                problems.append(problem)
                continue
            where = levels.where(used)
        served = {name: kernel_of(name, device) for name in CUDA_LANGUAGE}
        for why in dict.fromkeys(kernel.why for kernel in served.values() if kernel.why):
            names = ", ".join(name for name, kernel in served.items() if kernel.why == why)
            notes.append(f"on {where} plain PyTorch serves {names}: {why}")
        try:
            for check in check_device(device, where, {name for name, kernel in served.items() if not kernel.why}):
                checks.append(check)
        except Exception as error:  # tensors cannot be made there any more
            problems.append(f"{where} does not answer: {one_line(error)}")
        if used is not None:
            try:
                checks += levels.check_others(used)
            except OSError as error:  # no process can be started
                notes.append(f"other instruction sets were not checked: {error}")
    seconds = time.perf_counter() - started
    return Diagnosis(backends(), tuple(checks), tuple(problems), tuple(notes), seconds)


def _used_level() -> tuple[str | None, str]:
    """The CPU's instruction set, or None and what keeps its kernels from running."""
    try:
        return _native.extension().isa(), ""
    except ImportError as error:
        return None, str(error)
    except ValueError as error:
        return None, f"{error}; unset it"
