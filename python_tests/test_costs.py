"""The formulas of prorec_fast/costs.py against what is counted and measured, and `losses.explain`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cost_calls import Counter, make, peak_of_torch, run
from processes import run_python

from prorec_fast import _native, backends, losses
from prorec_fast.costs import FORMULAS, Call
from prorec_fast.explain import Explanation
from prorec_fast.reference import topk as reference_topk

SOURCES = Path(__file__).parents[1]
SIZES = {
    "bpr": dict(batch=3000, dim=32),
    "candidate_items": dict(num_users=900, num_items=1000, num_edges=10_000, num_similar=5, num_candidates=50_000),
    "cross_view_info_nce": dict(
        batch=700, dim=32, distinct_users=500, distinct_items=600, num_users=900, num_items=1000
    ),
    "distribution_kl": dict(batch=300, num_items=2000, dim=32, teacher_dim=48, num_users=700),
    "environment_bpr": dict(
        batch=3000, num_users=900, num_items=1000, dim=32, num_profiles=4, num_environments=5
    ),
    "gaussian_kl": dict(batch=3000, dim=32),
    "info_nce": dict(batch=700, dim=32),
    "mix_environments": dict(num_rows=3000, dim=32, num_profiles=4, num_environments=5),
    "multinomial_nll": dict(batch=300, num_items=2000, dim=32, num_targets=3000),
    "pair_scores": dict(num_pairs=60_000, num_users=1000, dim=32),
    "profile_contrast": dict(batch=3000, dim=32, num_profiles=4),
    "propagate": dict(num_users=900, num_items=1000, num_edges=20_000, dim=32, num_layers=3),
    "ranking_metrics": dict(num_users=900, num_items=1000, num_ranks=20, num_truth=4000),
    "sample_negatives": dict(batch=5000, num_users=900, num_edges=10_000, num=2),
    "similar_users": dict(num_users=1500, dim=96, k=5),
    "teacher_distribution": dict(num_users=1500, num_items=2000, dim=32),
    "topk": dict(batch=300, num_items=2000, dim=32, k=20),
}  # fmt: skip
# Where what is held is more than what allocators round.
LARGE = {
    "bpr": dict(batch=25_000, dim=64),
    "candidate_items": dict(num_users=20_000, num_items=60_000, num_edges=200_000, num_similar=6, num_candidates=0),
    "cross_view_info_nce": dict(batch=1000, dim=64, num_users=15_000, num_items=15_000),
    "distribution_kl": dict(batch=100, num_items=20_000, dim=64, teacher_dim=1, num_users=1000),
    "environment_bpr": dict(batch=3000, num_users=10_000, num_items=10_000, dim=32, num_profiles=4, num_environments=5),
    "gaussian_kl": dict(batch=15_000, dim=64),
    "info_nce": dict(batch=1000, dim=512),
    "mix_environments": dict(num_rows=15_000, dim=32, num_profiles=4, num_environments=5),
    "multinomial_nll": dict(batch=150, num_items=30_000, dim=32, num_targets=3000),
    "pair_scores": dict(num_pairs=3_000_000, num_users=3000, dim=2),
    "profile_contrast": dict(batch=15_000, dim=64, num_profiles=4),
    "propagate": dict(num_users=8000, num_items=8000, num_edges=80_000, dim=128, num_layers=2),
    "ranking_metrics": dict(num_users=100, num_items=4_000_000, num_ranks=20, num_truth=4000),
    "sample_negatives": dict(batch=800_000, num_users=900, num_edges=10_000, num=2),
    "similar_users": dict(num_users=6000, dim=256, k=100),
    "teacher_distribution": dict(num_users=100, num_items=60_000, dim=64),
    "topk": dict(batch=4000, num_items=1000, dim=16, k=100),
}
# Where gradients of whole tables are more than what the batch takes.
LARGE_TABLES = {
    "cross_view_info_nce": dict(batch=50, dim=32, num_users=4000, num_items=3000),
    "distribution_kl": dict(batch=20, num_items=2000, dim=32, teacher_dim=16, num_users=9000),
    "environment_bpr": dict(batch=300, num_users=3000, num_items=1000, dim=32, num_profiles=4, num_environments=3),
    "multinomial_nll": dict(batch=10, num_items=3000, dim=64, num_targets=100),
}
# Where a sum goes over elements of products of tables' entries, and not over matrices.
SUMS_OF_ROWS = ("bpr", "environment_bpr", "pair_scores", "propagate")
# What torch's own operations hold is the later versions'; 2.6 takes other temporaries for three of ours.
as_later_torch = pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 holds other temporaries")


def near(got: float, want: float, share: float, slack: float = 0.0) -> bool:
    return abs(got - want) <= share * want + slack


@as_later_torch
@pytest.mark.parametrize("operation", FORMULAS)
def test_eager_takes_what_is_counted(operation):
    made = make(operation, **SIZES[operation])
    for gradients in (False, True)[: 2 if made.leaves else 1]:
        found = FORMULAS[operation](Call(gradients=gradients), **SIZES[operation])[1]
        with Counter() as counted:
            run(made, eager=True, gradients=gradients)
        held = peak_of_torch(lambda gradients=gradients: run(made, eager=True, gradients=gradients))
        products = counted.products if operation in SUMS_OF_ROWS else counted.matrix_products
        assert found.flops == products, (found, products)
        for got, want in zip((found.bytes_read, found.bytes_written, found.memory),
                             (counted.read, counted.written, held), strict=True):  # fmt: skip
            assert near(got, want, 0.05), (gradients, got / want)


@as_later_torch
@pytest.mark.parametrize("operation", LARGE_TABLES)
def test_eager_holds_gradients_of_large_tables(operation):
    made = make(operation, **LARGE_TABLES[operation])
    held = peak_of_torch(lambda: run(made, eager=True, gradients=True))
    assert near(FORMULAS[operation](Call(), **LARGE_TABLES[operation])[1].memory, held, 0.05)


def test_eager_holds_a_chunk_of_the_scores_that_it_sorts(monkeypatch):
    monkeypatch.setattr(reference_topk, "CHUNK", 100_000)
    made = make("topk", **SIZES["topk"])
    held = peak_of_torch(lambda: run(made, eager=True, gradients=False))
    assert near(FORMULAS["topk"](Call(), **SIZES["topk"])[1].memory, held, 0.05)


@pytest.mark.parametrize("operation", FORMULAS)
def test_kernels_read_their_inputs_and_write_their_results(operation):
    """Of those that read whole tables; the others' inputs are not listed."""
    made = make(operation, **SIZES[operation])
    for gradients in (False, True)[: 2 if made.leaves else 1]:
        ours = FORMULAS[operation](Call(gradients=gradients), **SIZES[operation])[0]
        passes = 1 + (gradients and operation in ("bpr", "gaussian_kl", "profile_contrast"))
        inputs = sum(t.numel() * t.element_size() for t in made.inputs)
        if gradients and made.grad_out is not None and inputs:
            inputs += made.grad_out.nbytes
        assert not inputs or near(ours.bytes_read, passes * inputs, 0.01)
        if gradients:
            made_anew = sum(t.nbytes for t in made.leaves)
            assert near(ours.bytes_written, made_anew, 0.05) == (operation not in ("mix_environments", "propagate"))


@pytest.mark.parametrize("gradients", [False, True])
def test_cpu_kernels_multiply_as_the_definition_does(gradients):
    at = Call(gradients=gradients)
    for name in ("distribution_kl", "info_nce", "mix_environments", "multinomial_nll", "pair_scores", "propagate",
                 "similar_users", "teacher_distribution", "topk"):  # fmt: skip
        ours, eager = FORMULAS[name](at, **SIZES[name])
        assert ours.flops == eager.flops > 0, name
    ours, eager = FORMULAS["cross_view_info_nce"](at, **SIZES["cross_view_info_nce"])
    assert ours.flops == eager.flops * 500 * 600 / 700**2


def test_cpu_kernels_multiply_less_where_their_loops_do():
    """Counted by the loops themselves."""
    batch, dim, profiles, environments = range(3), range(2), range(4), range(5)
    sizes = dict(batch=3, num_users=7, num_items=8, dim=2, num_profiles=4, num_environments=5)
    mixtures = sum(1 for _ in batch for _ in dim for _ in environments for _ in profiles for _ in ("user", "items"))
    products = sum(1 for _ in batch for _ in dim for _ in environments)
    found = FORMULAS["environment_bpr"](Call(gradients=False), **sizes)[0]
    assert found.flops == 2 * (mixtures + products)
    tables = range(1 + 4)
    outer = sum(1 for _ in batch for _ in environments for _ in tables for _ in tables)
    rows = sum(1 for _ in batch for _ in ("user", "positive", "negative") for _ in tables for _ in tables for _ in dim)
    assert FORMULAS["environment_bpr"](Call(), **sizes)[0].flops == 2 * (mixtures + products + outer + rows)

    scores = sum(1 for _ in batch for i in profiles for j in profiles if i < j for _ in dim)
    sums = sum(1 for _ in batch for i in profiles for j in profiles if i != j for _ in dim)
    contrast = dict(batch=3, dim=2, num_profiles=4)
    assert FORMULAS["profile_contrast"](Call(gradients=False), **contrast)[0].flops == 2 * scores
    assert FORMULAS["profile_contrast"](Call(), **contrast)[0].flops == 2 * (2 * scores + sums)  # scored again
    dots = sum(1 for _ in batch for _ in dim)
    assert FORMULAS["bpr"](Call(gradients=False), batch=3, dim=2)[0].flops == 2 * dots
    assert FORMULAS["bpr"](Call(), batch=3, dim=2)[0].flops == 4 * dots


@as_later_torch
def test_cpu_kernels_hold_what_is_measured():
    """In a process each, because the CPU's kernels keep their scratch; float32, with gradients where there are any."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("reads a process's peak memory where Linux tells it")
    sizes = {name: dict(of) for name, of in LARGE.items()}
    printed = run_python(
        f"""
        import json, os, torch
        from cost_calls import make, run
        from processes import peak_memory

        def measure(operation, sizes):
            small = {{name: min(size, 40) for name, size in sizes.items()}}
            run(make(operation, **small), eager=False, gradients=True)  # what the first call brings in is not counted
            made = make(operation, **sizes)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak is the present again
            before = peak_memory()
            found = run(made, eager=False, gradients=True)
            count = found.indices.numel() if operation == "candidate_items" else 0
            print(json.dumps([operation, peak_memory() - before, count]), flush=True)

        torch.set_num_threads(1)  # processes are forked: there must be no other thread
        for operation, sizes in {sizes!r}.items():
            if not (child := os.fork()):
                measure(operation, sizes)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, operation
        """,
        MALLOC_MMAP_THRESHOLD_="65536",  # what is freed is gone, and not there to be used again
    )
    for operation, measured, count in map(json.loads, printed.splitlines()):
        if count:
            sizes[operation]["num_candidates"] = count
        found = FORMULAS[operation](Call(), **sizes.pop(operation))[0].memory
        # Scratch comes in huge pages of 2 MiB, or where the system has none free, as far as it is used.
        assert near(found, measured, 0.06, slack=3 << 20), (operation, found / 2**20, measured / 2**20)
    assert not sizes


@pytest.fixture
def nothing_runs(monkeypatch, simulated_device):
    """The device path, whose launches do nothing: what it holds is made by torch."""
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(InterpretedFunction, "__getitem__", lambda self, grid: lambda *_, **__: None)
    monkeypatch.setattr(_native, "cuda_call", lambda *_: None)


WAITS = ("candidate_items", "sample_negatives")  # for sizes that a kernel would have computed


# But for operations that wait for sizes, which a kernel would have computed; in bfloat16 where torch on a CPU does not
# convert what cuBLAS would take.
ON_DEVICE = [name for name in FORMULAS if name not in ("candidate_items", "sample_negatives")]
ON_DEVICE = [
    (name, dtype)
    for name in ON_DEVICE
    for dtype in (torch.float32, torch.bfloat16)
    if (name, dtype) != ("multinomial_nll", torch.bfloat16)
]


@pytest.mark.parametrize("operation, dtype", ON_DEVICE)
def test_device_kernels_hold_what_is_measured(operation, dtype, nothing_runs):
    made = make(operation, dtype, **LARGE[operation])
    held = peak_of_torch(lambda: run(made, eager=False, gradients=True))
    found = FORMULAS[operation](Call(dtype, cuda=True, processors=8), **LARGE[operation])[0].memory
    assert near(found, held, 0.12), found / held


@pytest.mark.parametrize(
    "operation, gradients, sizes",
    [
        ("distribution_kl", False, dict(batch=64, num_items=64, dim=32, teacher_dim=64)),
        ("distribution_kl", True, dict(batch=64, num_items=64, dim=32, teacher_dim=64)),
        ("info_nce", False, dict(batch=64, dim=32)),
        ("info_nce", True, dict(batch=64, dim=32)),
        ("cross_view_info_nce", True, dict(batch=64, dim=16)),
        ("teacher_distribution", False, dict(num_users=64, num_items=64, dim=32)),
    ],
)
def test_device_sweeps_multiply_what_is_counted(operation, gradients, sizes, simulated_device, monkeypatch):
    """At sizes that are whole tiles."""
    from triton.runtime.interpreter import InterpreterBuilder

    products, dot = [], InterpreterBuilder.create_dot

    def counted(self, a, b, *arguments):
        products.append(2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
        return dot(self, a, b, *arguments)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    made = make(operation, **sizes)
    products.clear()  # of the teacher's statistics
    run(made, eager=False, gradients=gradients)
    assert FORMULAS[operation](Call(cuda=True, gradients=gradients), **sizes)[0].flops == sum(products)


@pytest.mark.parametrize("operation", FORMULAS)
def test_narrow_tables_take_less_where_kernels_read_them_as_they_are(operation):
    wide, narrow, copied = (
        FORMULAS[operation](Call(dtype, gradients=False), **SIZES[operation])
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    )
    assert narrow[0].bytes_read <= wide[0].bytes_read and narrow[1].bytes_read <= wide[1].bytes_read
    assert copied[0].bytes_read >= narrow[0].bytes_read and copied[0].memory >= narrow[0].memory
    assert narrow[0].flops == wide[0].flops and narrow[1].flops == wide[1].flops


def test_explain_names_the_kernel_and_its_cost():
    found = losses.explain("distribution_kl", batch=2978, num_items=9332, dim=32, num_users=11_000)
    isa = _native.extension().isa()
    assert isinstance(found, Explanation) and found.kernel.why is None
    assert found.kernel.name == f"compiled kernel ({isa})" and found.kernel.file == "csrc/cpu/distribution_kl.cpp"
    assert found.ours.flops == found.eager.flops == 8 * 2978 * 9332 * 32
    assert found.ours.memory < found.eager.memory / 20 and found.ours.bytes_read < found.eager.bytes_read / 100
    first, second, *table = str(found).splitlines()
    assert first == (
        "distribution_kl: batch 2978, num_items 9332, dim 32, num_users 11000; float32 on cpu, forward and backward"
    )
    assert second == f"compiled kernel ({isa}); csrc/cpu/distribution_kl.cpp"
    assert table[0].split() == ["GFLOP", "MiB", "read", "MiB", "written", "MiB", "held"]
    assert [line.split()[:2] for line in table[1:]] == [["ours", "7.11"], ["eager", "7.11"]]
    assert len({len(line) for line in table}) == 1


def test_explain_of_what_no_kernel_takes():
    found = losses.explain("bpr", dtype=torch.float64, batch=10, dim=4, gradients=False)
    assert found.kernel.why == "no kernel takes float64" and found.kernel.file == "prorec_fast/reference/bpr.py"
    assert found.ours == found.eager and found.eager.bytes_read == 8 * (6 * 40 + 4 * 10)
    assert [line.split()[0] for line in str(found).splitlines()[3:]] == ["eager"]
    integers = losses.explain("sample_negatives", dtype="float64", batch=10, num_users=5, num_edges=50)
    assert integers.kernel.why is None  # it takes no table that could be too wide
    environments = dict(batch=10, num_users=5, num_items=5, dim=4, num_environments=3)
    assert losses.explain("environment_bpr", num_profiles=16, **environments).kernel.why is None
    found = losses.explain("environment_bpr", num_profiles=17, **environments)
    assert found.kernel.why == "no kernel takes num_profiles above 16" and found.ours == found.eager
    if not torch.cuda.is_available():
        assert "CUDA" in losses.explain("bpr", device="cuda", batch=10, dim=4).kernel.why


def test_explain_on_a_device(monkeypatch):
    monkeypatch.setattr(backends, "_device_problem", lambda language, device: None)
    monkeypatch.setattr("prorec_fast.explain._processors", lambda device: 8)
    for name in FORMULAS:
        found = losses.explain(name, device="cuda", **SIZES[name])
        assert found.kernel.why is None
        assert found.ours == FORMULAS[name](Call(cuda=True, gradients=found.gradients, processors=8), **SIZES[name])[0]
    found = losses.explain("topk", device="cuda", batch=10, num_items=5000, dim=4, k=2049)
    assert found.kernel.why == "no kernel takes k above 2048" and not found.gradients
    assert losses.explain("topk", device="cpu", batch=10, num_items=5000, dim=4, k=2049).kernel.why is None
    long_lists = dict(num_users=10, num_items=5000, num_ranks=3000, num_truth=40)
    assert losses.explain("ranking_metrics", device="cuda", **long_lists).kernel.why is None  # cut off at 10 and 20


def test_explain_of_similar_users_is_of_the_kernel_that_ranks_them(monkeypatch):
    """In float32, of whatever dtype profiles are."""
    sizes = dict(num_users=3000, dim=64)
    wide, narrow = (losses.explain("similar_users", dtype=name, **sizes) for name in ("float64", "bfloat16"))
    assert wide.kernel == narrow.kernel == losses.explain("topk", batch=1, num_items=1, dim=1, k=1).kernel
    assert wide.kernel.why is None and not wide.gradients
    assert wide.ours.flops == narrow.ours.flops == wide.eager.flops == 2 * 3000**2 * 64
    assert wide.ours.memory == narrow.ours.memory < wide.eager.memory / 10
    assert wide.ours.bytes_written == 4 * 3000 * 64 + 12 * 10 * 3000  # cosines' rows, and the best with their cosines
    assert wide.ours.bytes_read - narrow.ours.bytes_read == 3 * 6 * 3000 * 64
    assert losses.explain("similar_users", dtype="float32", **sizes, k=10).ours.memory == wide.ours.memory
    monkeypatch.setattr(backends, "_device_problem", lambda language, device: None)
    monkeypatch.setattr("prorec_fast.explain._processors", lambda device: 8)
    assert losses.explain("similar_users", device="cuda", dtype="float64", **sizes).kernel.file == "csrc/cuda/topk.cu"
    assert losses.explain("similar_users", device="cuda", **sizes, k=2048).kernel.why is None
    found = losses.explain("similar_users", device="cuda", **sizes, k=2049)
    assert found.kernel.why == "no kernel takes k above 2048" and found.kernel.file == "prorec_fast/reference/topk.py"
    # topk's definition has a part of the cosines at a time; no more users are selected than there are.
    found = losses.explain("similar_users", device="cuda", num_users=1_000_000, dim=64, k=2049)
    assert found.ours.flops == found.eager.flops and 4 * 64 * 10**6 < found.ours.memory < found.eager.memory / 100
    ours, eager = str(found).splitlines()[-2:]
    assert ours.startswith("ours") and eager.startswith("eager")
    mixed = str(losses.explain("mix_environments", num_rows=5, dim=4, num_profiles=2, num_environments=3))
    assert [line.split()[0] for line in mixed.splitlines()[-2:]] == ["ours", "eager"]  # which cost the same
    assert losses.explain("similar_users", device="cuda", num_users=2000, dim=64, k=2049).kernel.why is None


def test_every_operation_has_a_formula_and_its_kernels_a_file(monkeypatch):
    assert set(FORMULAS) == {*backends.CUDA_LANGUAGE, "similar_users"} == set(SIZES)
    monkeypatch.setattr(backends, "_device_problem", lambda language, device: None)
    if not (SOURCES / "prorec_fast").is_dir():
        pytest.skip("not among the sources")
    for name in backends.CUDA_LANGUAGE:
        for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cpu", torch.float64)):
            assert (SOURCES / backends.kernel_of(name, torch.device(device), dtype).file).is_file(), (name, device)


@pytest.mark.parametrize(
    "operation, options, message",
    [
        ("softmax", {}, "operation: want one of bpr, candidate_items, .*, topk, got 'softmax'"),
        ("bpr", {"batch": 3}, "bpr: want the sizes batch, dim; missing dim"),
        ("bpr", {"batch": 3, "dim": 4, "k": 5}, "bpr: want the sizes batch, dim; it has no k"),
        (
            "distribution_kl",
            {"batch": 3, "items": 4},
            "distribution_kl: want the sizes batch, num_items, dim and, as may be, teacher_dim, num_users; "
            "missing num_items, dim; it has no items",
        ),
        ("bpr", {"batch": 3, "dim": 0}, "dim: want an integer of at least 1, got 0"),
        ("bpr", {"batch": 3.5, "dim": 1}, "batch: want an integer of at least 1, got 3.5"),
        ("bpr", {"batch": 3, "dim": 1, "dtype": torch.int32}, "dtype: want one of float16, .*, got torch.int32"),
        ("bpr", {"batch": 3, "dim": 1, "dtype": "int32"}, "dtype: want one of float16, .*, float64, got 'int32'"),
        ("bpr", {"batch": 3, "dim": 1, "device": "tpu9"}, "device: want a device or its name, got 'tpu9'"),
        ("similar_users", {"num_users": 3}, ".*: want the sizes num_users, dim and, as may be, k; missing dim"),
    ],
)
def test_explain_rejects(operation, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        losses.explain(operation, **options)


def test_explain_in_the_readme():
    """What the README shows is what is printed, but for the instruction set."""
    text = (SOURCES / "README.md").read_text()
    call = re.search(r">>> print\(losses\.explain\((.*)\)\)\n((?:.+\n)+)```", text)
    printed = str(eval(f"losses.explain({call[1]})"))
    assert re.sub(r"\(\w+\)", "(isa)", printed) == re.sub(r"kernel \(\w+\)", "kernel (isa)", call[2].strip())
