"""What training code uses of PyTorch, each as a check of one operation: it fails, or tells in a word how the two go
together where that is not "yes".
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path

import pytest
import torch
from support_calls import CALLS, Call
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

SIZES = 12, 7  # of batches


def outputs(call: Call, size: int = SIZES[0], run=None) -> tuple[Tensor, ...]:
    """What the call gives for a batch, with the same random numbers every time; `run` stands for it where given."""
    torch.manual_seed(4)
    found = (call if run is None else run)(*call.batch(size))
    return found if isinstance(found, tuple) else (found,)


def total(found: tuple[Tensor, ...]) -> Tensor:
    """Random multiples of all floating entries, added up in float32 or more, as a loss is."""
    generator = torch.Generator().manual_seed(6)
    floating = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in found if t.is_floating_point()]
    return sum((t * torch.rand(t.shape, generator=generator).to(t)).sum() for t in floating)


def gradients(call: Call, size: int = SIZES[0]) -> list[Tensor]:
    return list(torch.autograd.grad(total(outputs(call, size)), list(call.parameters())))


def assert_same(got, want, **tolerance) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), check_dtype=not tolerance, **tolerance)


def autocast(call: Call) -> None:
    """16-bit tables beside float32 ones, and alone, read as what they are; nothing is rounded on the way, and losses
    come in float32."""
    plain = outputs(call)
    for dtype in (torch.bfloat16, torch.float16):
        for narrow in ((), tuple(call.shapes)[:1], tuple(call.shapes)):
            call.narrow = narrow
            for whole_step in (False, True):  # a backward pass inside the region, too
                call.zero_grad()
                with torch.autocast(call.device.type, dtype):
                    tables = {name: call.table(name) for name in call.shapes}
                    found = outputs(call)
                    if whole_step and call.differentiable:
                        total(found).backward()
                if not whole_step and call.differentiable:
                    total(found).backward()
                assert all((tables[name].dtype == dtype) == (name in narrow) for name in tables)
                _assert_exact(call, found, plain, tables)


def _assert_exact(call: Call, found: tuple[Tensor, ...], plain: tuple[Tensor, ...], tables: dict[str, Tensor]) -> None:
    """Results and gradients are those of the tables, as they were rounded, in float64."""
    exact = copy.deepcopy(call).double()
    exact.narrow = ()
    for name, table in tables.items():
        exact.tables[name].data.copy_(table)
    truth = outputs(exact)
    for got, want, before in zip(found, truth, plain, strict=True):
        assert got.dtype == call.dtype_under_autocast(before, tables), got.dtype
        rounding = torch.finfo(got.dtype).eps if got.is_floating_point() else 0
        torch.testing.assert_close(got.detach().to(want), want.detach(), rtol=100 * rounding, atol=100 * rounding)
    if not call.differentiable:
        return
    wanted = torch.autograd.grad(total(truth), list(exact.parameters()))
    for (name, table), want in zip(call.tables.items(), wanted, strict=True):
        rounding = max(torch.finfo(t.dtype).eps for t in (tables[name], *found))
        error = (table.grad.double() - want).abs().max() / want.abs().max()
        assert error < (10 if rounding > 1e-4 else 100) * rounding, f"gradient of {name}: {error}"


def grad_scaler(call: Call) -> None:
    """Gradients of a loss so small that float16 would lose them arrive, and a step is taken."""
    call.narrow = tuple(call.shapes)
    small = 1e-7
    with torch.autocast(call.device.type, torch.float16):
        wanted = [small * grad for grad in gradients(call)]
    scaler = torch.amp.GradScaler(call.device.type, init_scale=2.0**16)
    optimizer = torch.optim.SGD(call.parameters(), lr=1.0)
    with torch.autocast(call.device.type, torch.float16):
        loss = small * total(outputs(call))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    before = [table.detach().clone() for table in call.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**16  # nothing overflowed
    for table, old, want in zip(call.parameters(), before, wanted, strict=True):
        assert (table.grad - want).abs().max() < 0.01 * want.abs().max()
        assert torch.equal(table, old - table.grad)


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)  # which torch 2.6 wants for candidate_items
def compiled(call: Call) -> None:
    """In one graph without breaks, forward and backward, for batches of any size."""
    torch._dynamo.reset()
    function = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for size, stance in zip(SIZES, ("default", "fail_on_recompile"), strict=True):
        want = outputs(call, size)
        with torch.compiler.set_stance(stance):
            found = outputs(call, size, function)
        assert_same(found, want)
        assert [t.requires_grad for t in found] == [t.requires_grad for t in want]
        if call.differentiable:
            tables = list(call.parameters())
            assert_same(*(torch.autograd.grad(total(t), tables) for t in (found, want)), rtol=1e-5, atol=1e-6)


def accumulation(call: Call) -> None:
    for size in SIZES:
        total(outputs(call, size)).backward()
    apart = [gradients(call, size) for size in SIZES]
    assert_same([table.grad for table in call.parameters()], [a + b for a, b in zip(*apart, strict=True)])
    call.zero_grad()
    loss = total(outputs(call))
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same([table.grad for table in call.parameters()], [2 * grad for grad in gradients(call)])


def checkpointed(call: Call) -> None:
    wanted = gradients(call)
    for reentrant in (True, False):
        call.zero_grad()
        anything = torch.zeros((), requires_grad=True)  # the reentrant kind wants an input with a gradient

        def run(*batch: Tensor, anything=anything, reentrant=reentrant):
            return checkpoint(lambda _, *batch: call(*batch), anything, *batch, use_reentrant=reentrant)

        found = outputs(call, run=run)
        torch.manual_seed(5)  # what is random in the second forward pass is so as in the first
        total(found).backward()
        assert_same([table.grad for table in call.parameters()], wanted)


def functional(call: Call) -> None:
    tables = {name: (2 * t.detach()).requires_grad_() for name, t in call.named_parameters()}
    found = outputs(call, run=lambda *batch: functional_call(call, tables, batch))
    other = copy.deepcopy(call)
    with torch.no_grad():
        for table in other.parameters():
            table.mul_(2)
    assert_same(found, outputs(other))
    if call.differentiable:
        assert_same(torch.autograd.grad(total(found), list(tables.values())), gradients(other))


def copies(call: Call) -> None:
    """deepcopy, pickle and torch.save after a step; what is done to the original does not reach them."""
    want = outputs(call)
    if call.differentiable:
        total(want).backward()
    stored = io.BytesIO()
    torch.save(call, stored)
    stored.seek(0)
    found = copy.deepcopy(call), pickle.loads(pickle.dumps(call)), torch.load(stored, weights_only=False)
    with torch.no_grad():
        for table in call.parameters():
            table.zero_()
    for other in found:
        assert_same(outputs(other), want)


def inference_mode(call: Call) -> None:
    want = outputs(call)
    with torch.inference_mode():
        assert_same(outputs(call), want)
        made = type(call)(call.device)  # tables, teachers and graphs made there serve there
        assert_same(outputs(made), want)


def second_derivative(call: Call) -> str:
    """Right, or refused by name, whichever tensor it is taken by."""
    tables = list(call.parameters())

    if call.linear:
        results = []
        for one in (call, copy.deepcopy(call).double()):
            tables = list(one.parameters())
            grads = torch.autograd.grad(total(outputs(one)).square(), tables, create_graph=True)
            results.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), tables))
        assert_same(*results, rtol=1e-4, atol=1e-3)
        return "yes"
    torch._dynamo.reset()
    for function in (call, torch.compile(call, fullgraph=True, backend="eager")):
        grads = torch.autograd.grad(total(outputs(call, run=function)), tables, create_graph=True)
        for grad in grads:
            for table in tables:
                with pytest.raises(RuntimeError, match=f"{call.operation}: its second derivative"):
                    torch.autograd.grad(grad.sum() + table.sum(), table, retain_graph=True)
        scale = torch.ones((), requires_grad=True)
        (grad, *_) = torch.autograd.grad(scale * total(outputs(call, run=function)), tables, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{call.operation}: its second derivative"):
            grad.sum().backward()
    tables = list(call.double().parameters())
    grads = torch.autograd.grad(total(outputs(call)), tables, create_graph=True)
    torch.autograd.grad(sum(grad.square().sum() for grad in grads), tables)  # the definition has one
    return "refused"


def transforms(call: Call) -> str:
    """torch.func refused by name; in float64, where plain PyTorch runs, its gradients and batches are right."""
    tables = {name: t.detach() for name, t in call.named_parameters()}
    call.seed, batch = 3, call.batch(SIZES[0])

    def run(tables: dict[str, Tensor]) -> tuple[Tensor, ...]:
        found = functional_call(call, tables, batch)
        return found if isinstance(found, tuple) else (found,)

    for transform in (
        lambda: torch.func.grad(lambda t: total(run(t)))(tables),
        lambda: torch.func.jvp(lambda t: total(run(t)), (tables,), (tables,)),
        lambda: torch.func.vmap(run)({name: t.expand(2, *t.shape) for name, t in tables.items()}),
    ):
        with pytest.raises(RuntimeError, match=rf"^{call.operation.split('.')[-1]}: torch.func"):
            transform()
    with forward_ad.dual_level(), torch.no_grad():
        dual = {name: forward_ad.make_dual(t, t) for name, t in tables.items()}
        with pytest.raises(RuntimeError, match=rf"^{call.operation.split('.')[-1]}: torch.func"):
            run(dual)
    if not call.differentiable:
        return "refused"
    call.double()
    tables = {name: t.detach() for name, t in call.named_parameters()}
    assert_same(torch.func.grad(lambda t: total(run(t)))(tables).values(), gradients(call))
    twice = torch.func.vmap(run)({name: torch.stack([t, 2 * t]) for name, t in tables.items()})
    assert_same([t[0] for t in twice], outputs(call))
    return "float64"


def distributed(call: Call) -> None:
    """DistributedDataParallel in two processes: both have the mean of the gradients of their own batches."""
    apart = [gradients(call, size) for size in SIZES]
    for found in _in_two_processes():
        assert isinstance(found[call.operation], list), found[call.operation]
        assert_same(found[call.operation], [(a + b) / 2 for a, b in zip(*apart, strict=True)], rtol=1e-6, atol=1e-7)


@cache
def _in_two_processes() -> list[dict[str, list[Tensor] | str]]:
    """Of every operation with a gradient, what each of the processes has, or what went wrong there."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (folder,), nprocs=len(SIZES))
        return [torch.load(Path(folder) / str(rank)) for rank in range(len(SIZES))]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SIZES))
    found = {}
    for name in (name for name, call in CALLS.items() if call.differentiable):
        call = CALLS[name]()
        try:
            replica = DistributedDataParallel(call)  # which has to outlive the backward pass
            total(outputs(call, SIZES[rank], replica)).backward()
            found[name] = [table.grad for table in call.parameters()]
        except Exception:
            found[name] = traceback.format_exc()
    torch.save(found, Path(folder) / str(rank))
    while not Path(folder, str(1 - rank)).exists():  # until the other, too, is through with what both do together
        time.sleep(0.01)
    os._exit(0)  # the group's destructor waits, with the GIL held, for a thread of its own that may want it


# By the head of the column in README.
FEATURES = {
    "autocast": autocast,
    "GradScaler": grad_scaler,
    "compile": compiled,
    "DDP": distributed,
    "accumulate": accumulation,
    "checkpoint": checkpointed,
    "functional_call": functional,
    "copies": copies,
    "inference_mode": inference_mode,
    "CUDA graph": lambda call: "yes \u00b9" if call.captured else "no",  # see test_support_captured
    "2nd derivative": second_derivative,
    "torch.func": transforms,
}
OF_GRADIENTS = ("GradScaler", "DDP", "accumulate", "checkpoint", "2nd derivative")
OF_TABLES = ("functional_call", "torch.func")
