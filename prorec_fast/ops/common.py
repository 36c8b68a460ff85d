"""What the losses share: a loss per row, reduced with its gradients from the same pass, or row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast.ops.distinct import Distinct
from prorec_fast.reference.reduce import keep, leading, reduce

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class RowLoss:  # torch.compile before 2.7 calls no named tuple
    """An operation whose kernel gives one loss a row.

    launch(*arguments, coefficient=None) returns (rows [B], gradients), all float32: losses and, with a coefficient [B],
    the gradients of coefficient . rows by the leading `num_inputs` arguments. They are rounded to the arguments' dtype
    only after the incoming gradient has scaled them, as loss scaling needs. A `light` operation runs again in the
    backward pass, where that costs less than scaling the gradients that one pass had made. Rows lie along dimension
    `row_dim` of the inputs.

    An operation may take, among its arguments, how many of its rows count: launch gives 0 for the others.
    """

    name: str
    launch: Callable[..., tuple[Tensor, list[Tensor]]]
    num_inputs: int
    light: bool = False
    row_dim: int = 0

    def __call__(self, *arguments, reduction: str, weight: Tensor | None = None, count: Tensor | None = None) -> Tensor:
        """The mean, the sum or each of weight * rows. The mean of no rows is 0; with `count`, which is one of the
        arguments too, it is that of the first `count` rows."""
        batch = self.batch(*arguments)
        kept = leading(count, batch)
        if weight is not None:
            weight = keep(kept, weight)
        if reduction == "none" or (weight is not None and weight.requires_grad):
            rows = self.rows(*arguments)
            weighted = rows if weight is None else weight.to(rows.dtype) * rows
            return reduce(weighted, reduction, count)
        if weight is not None:
            coefficient = weight.float()
        elif kept is not None:
            coefficient = kept.float()
        else:
            coefficient = arguments[0].new_ones(batch, dtype=torch.float32)
        if reduction == "mean":
            coefficient = coefficient / (max(batch, 1) if count is None else count.clamp_min(1))
        if torch.compiler.is_compiling():
            return getattr(torch.ops.prorec_fast, self.name)(*arguments, coefficient)[0]
        if not torch.is_grad_enabled():
            return self.total(*arguments, coefficient=coefficient, gradients=False)[0]
        return _TotalFunction.apply(self, coefficient, *arguments)

    def rows(self, *arguments) -> Tensor:
        if torch.compiler.is_compiling():
            return getattr(torch.ops.prorec_fast, self.name + "_rows")(*arguments)
        return _RowsFunction.apply(self, *arguments)

    def batch(self, *arguments) -> int:
        """The number of rows: of the index vector after the inputs where there is one, else of the first input."""
        index = arguments[self.num_inputs] if len(arguments) > self.num_inputs else None
        if isinstance(index, Distinct):
            index = index.inverse
        if isinstance(index, Tensor) and index.dtype == torch.int64:
            return index.size(0)
        return arguments[0].size(self.row_dim)

    def total(self, *arguments, coefficient: Tensor, gradients: bool = True) -> tuple[Tensor, list[Tensor]]:
        """coefficient . rows (0-d, summed in float64) and its gradients."""
        coefficient = coefficient.float().contiguous()
        rows, grads = self.launch(*arguments, coefficient=coefficient if gradients else None)
        return _weighted_sum(rows.double(), coefficient.double()).to(arguments[0].dtype), grads


def by_device(cpu: Callable, module: str) -> Callable:
    """A launch: of `cpu`, named <operation>_cpu, or for CUDA tensors of <operation>_cuda in triton_kernels.<module>,
    which is imported only then."""
    name = cpu.__name__.removesuffix("_cpu") + "_cuda"

    def launch(first: Tensor, *arguments, **options):
        if not _native.on_cuda(first):
            return cpu(first, *arguments, **options)
        return getattr(import_module(f"prorec_fast.triton_kernels.{module}"), name)(first, *arguments, **options)

    return launch


def _weighted_sum(rows: Tensor, coefficient: Tensor) -> Tensor:
    """coefficient . rows. cuBLAS's dot is refused where torch is to be deterministic."""
    return (rows * coefficient).sum() if _native.on_cuda(rows) else torch.dot(rows, coefficient)


def save_arguments(ctx, arguments: Sequence) -> None:
    """Keeps tensors and other values alike for `saved_arguments` in the backward pass."""
    ctx.is_tensor = [isinstance(a, Tensor) for a in arguments]
    ctx.options = [None if tensor else a for a, tensor in zip(arguments, ctx.is_tensor, strict=True)]
    ctx.save_for_backward(*(a for a in arguments if isinstance(a, Tensor)))


def saved_arguments(ctx) -> list:
    saved = iter(ctx.saved_tensors)
    return [next(saved) if tensor else a for a, tensor in zip(ctx.options, ctx.is_tensor, strict=True)]


def _scaled(saved: Sequence[Tensor], grad_out: Tensor) -> list[Tensor]:
    """`saved` times grad_out, in its place where no other backward pass may read it: for a decoder's weight that is a
    table less. torch tells since 2.6, and its own compiler asks. A batch of grad_out (`is_grads_batched`), which has no
    memory of its own, makes a batch of products."""
    graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
    copies = graph_is_kept or not torch._C._has_storage(grad_out)
    return [g * grad_out if copies else g.mul_(grad_out) for g in saved]


class _TotalFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op: RowLoss, coefficient: Tensor, *arguments):
        ctx.op, ctx.needs, ctx.dtype = op, ctx.needs_input_grad[2:], arguments[0].dtype
        total, grads = op.total(*arguments, coefficient=coefficient, gradients=any(ctx.needs) and not op.light)
        inputs = arguments[: op.num_inputs]  # which only a second derivative looks at, to be refused
        save_arguments(ctx, (*arguments, coefficient) if op.light else (*inputs, *grads))
        return total

    @staticmethod
    def backward(ctx, grad_out):
        with torch.no_grad():
            saved = saved_arguments(ctx)
            if ctx.op.light:
                grads = ctx.op.launch(*saved[:-1], coefficient=saved[-1] * grad_out.float())[1]
            else:
                grads = _scaled(saved[ctx.op.num_inputs :], grad_out)
        return None, None, *_finished(ctx, grads, saved, grad_out)


class _RowsFunction(torch.autograd.Function):
    """Each row's loss; the backward pass runs the kernel again with grad_out as the coefficient."""

    @staticmethod
    def forward(ctx, op: RowLoss, *arguments):
        ctx.op, ctx.needs, ctx.dtype = op, ctx.needs_input_grad[1:], arguments[0].dtype
        save_arguments(ctx, arguments)
        return op.launch(*arguments)[0].to(arguments[0].dtype)

    @staticmethod
    def backward(ctx, grad_out):
        arguments = saved_arguments(ctx)
        _, grads = ctx.op.launch(*arguments, coefficient=grad_out.detach().float().contiguous())
        return None, *_finished(ctx, grads, arguments, grad_out)


def _finished(ctx, grads: list[Tensor], arguments: list, grad_out: Tensor) -> list[Tensor | None]:
    """float32 gradients of the inputs as autograd wants them for all arguments."""
    needed = zip(grads, ctx.needs, strict=False)
    found = [g.to(ctx.dtype) if need else None for g, need in needed]
    found = refuse_second_derivative(ctx.op.name, found, (*arguments[: ctx.op.num_inputs], grad_out))
    return found + [None] * (len(ctx.needs) - len(found))


class _RefuseSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, message: str, grad: Tensor, *of: Tensor | None) -> Tensor:
        ctx.message = message
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(ctx.message)


def refuse_second_derivative(
    name: str,
    grads: Iterable[Tensor | None],
    of: Iterable[Tensor | None],
    why: str = "needs float64 inputs, which run the reference",
) -> list[Tensor | None]:
    """`grads`, such that differentiating them by any of the tensors that they are functions `of` raises instead of
    giving a silent zero."""
    if not torch.is_grad_enabled():  # grad mode is on in a backward pass with create_graph=True only
        return list(grads)
    message = f"{name}: its second derivative {why}"
    return [None if g is None else _RefuseSecondDerivative.apply(message, g.detach(), *of) for g in grads]
