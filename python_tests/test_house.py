"""The package as a whole: what importing it costs, what is public, what the extension links to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from processes import run_python

import prorec_fast
from prorec_fast import _native, losses

PUBLIC = {
    "losses": (
        "EnvironmentLoss",
        "TeacherDistribution",
        "bpr",
        "cross_view_info_nce",
        "distribution_kl",
        "environment_bpr",
        "explain",
        "gaussian_kl",
        "info_nce",
        "mix_environments",
        "multinomial_nll",
        "profile_contrast",
    ),
    "retrieval": (
        "Whitening",
        "candidate_items",
        "choose",
        "enrich",
        "rank_candidates",
        "search",
        "similar_users",
        "sparsity_level_budget",
    ),
    "models": ("CVGA", "LDiffRec", "LRGCCF", "LightGCN", "MF", "MultVAE", "SimGCL"),
    "frameworks": ("ProMax",),
    "data": ("load",),
}


def test_public_names_are_there():
    for name in ("BipartiteGraph", "propagate", "topk", "ranking_metrics", "sample_negatives", "show_backends", "fit"):
        assert callable(getattr(prorec_fast, name)), name
    for module, names in PUBLIC.items():
        assert all(callable(getattr(getattr(prorec_fast, module), name)) for name in names), module
    assert set(prorec_fast.__all__) <= set(dir(prorec_fast))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = prorec_fast.nonsense


def test_importing_needs_torch_and_numpy_alone():
    run_python(
        """
        import sys, numpy, torch  # which may look for what they like
        names = ("scipy", "safetensors", "tqdm", "pytest", "triton", "pyarrow", "openai", "pydantic", "matplotlib")
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in names:
                    raise ImportError(f"importing prorec_fast asked for {name}")
        sys.meta_path.insert(0, Refuse())
        import prorec_fast
        from prorec_fast import losses, graph, ranking, retrieval, sampling, data, models, frameworks, train, cli
        from prorec_fast import profiles
        """
    )


def test_importing_the_package_imports_no_torch():
    run_python("import sys, prorec_fast; assert 'torch' not in sys.modules")


def test_extension_links_to_no_torch_and_no_cuda():
    if sys.platform != "linux":
        pytest.skip("reads ELF dependencies")
    linked = subprocess.run(["ldd", _native.extension().__file__], capture_output=True, text=True, check=True).stdout
    assert not [line for line in linked.splitlines() if any(name in line for name in ("torch", "c10", "cuda", "omp"))]


def test_extension_shares_the_thread_pool_of_torch():
    if "gomp" in torch.__config__.parallel_info() or "OpenMP" in torch.__config__.parallel_info():
        assert _native.extension().parallel_backend() == "gomp"


def _loss_and_gradient(seed: int):
    generator = torch.Generator().manual_seed(seed)
    user, item = (torch.randn(n, 32, generator=generator).requires_grad_() for n in (600, 5000))
    loss = losses.distribution_kl(user, item, user.detach().flip(0), item.detach().flip(0))
    return torch.autograd.grad(loss, (user, item))


def test_kernels_release_the_gil():
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        user, item = torch.randn(3000, 128), torch.randn(20_000, 128)
        start = time.perf_counter()
        losses.TeacherDistribution(user, item)  # one call of a hundred milliseconds or more
        end = time.perf_counter()
    finally:
        done.set()
        thread.join()
    assert sum(start < t < end for t in ticks) > 5


def test_kernels_run_from_several_python_threads_at_once():
    alone = [_loss_and_gradient(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(_loss_and_gradient, [0, 1, 2, 3] * 3))
    for got, want in zip(together, alone * 3, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_package_is_typed():
    assert (Path(prorec_fast.__file__).parent / "py.typed").is_file()


def test_unknown_instruction_set_is_refused():
    with pytest.raises(AssertionError, match="PROREC_FAST_ISA=sse9: want baseline"):
        run_python("from prorec_fast import _native; _native.extension().isa()", PROREC_FAST_ISA="sse9")


def test_show_backends_names_every_operation(capsys):
    prorec_fast.show_backends()
    printed = capsys.readouterr().out
    for name in ("distribution_kl", "propagate", "topk", "instruction set", prorec_fast.__version__):
        assert name in printed
