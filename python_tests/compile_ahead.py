"""Run as a program, without TRITON_INTERPRET: compiles the package's Triton kernels for one chip, which is its
argument, and prints their names and then what became of each form, in lines of JSON."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prorec_fast import triton_kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def all_variants(chip: int):
    for module in pkgutil.iter_modules(triton_kernels.__path__):
        module = import_module(f"{triton_kernels.__name__}.{module.name}")
        yield from getattr(module, "variants", lambda chip: ())(chip)


def all_kernels() -> set[str]:
    """Names of the kernels that are launched: what is only called by them compiles with them."""
    found = set()
    for module in pkgutil.iter_modules(triton_kernels.__path__):
        module = import_module(f"{triton_kernels.__name__}.{module.name}")
        found |= {name for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    return {name for name in found if name.endswith("_kernel")}


def compile_variant(variant, chip: int) -> dict[str, object]:
    def argument_type(name: str) -> str:
        if name in variant.constants:
            return "constexpr"
        return variant.types.get(name, "*fp32" if name.endswith("_ptr") else "i32")

    names = variant.kernel.arg_names
    signature = {name: argument_type(name) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    compiled = triton.compile(
        ASTSource(variant.kernel, signature, constexprs=variant.constants, attrs=aligned),
        target=GPUTarget("cuda", chip, 32),
        options=dict(num_warps=variant.num_warps, num_stages=variant.num_stages, enable_fp_fusion=True),
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    constants = {name: value for name, value in variant.constants.items() if value is not False}
    types = sorted({variant.types.get(name, "") for name in names if name.endswith("_ptr")} - {""})
    return dict(
        kernel=variant.kernel.__name__, what=f"{' '.join(types)} {constants} {variant.num_warps} warps",
        registers=found["REG"], stack=found["STACK"] + found["LOCAL"], shared=compiled.metadata.shared,
    )  # fmt: skip


if __name__ == "__main__":
    chip = int(sys.argv[1])
    print(json.dumps(sorted(all_kernels())))
    for variant in all_variants(chip):
        print(json.dumps(compile_variant(variant, chip)), flush=True)
