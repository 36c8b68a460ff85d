from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prorec_fast import _native
from prorec_fast._checks import float_matrix, same_device_and_dtype
from prorec_fast.ops.operation import operation, widest
from prorec_fast.reference.philox import seed_tensor
from prorec_fast.reference.propagate import layer_weights
from prorec_fast.reference.propagate import propagate as propagate_reference

if TYPE_CHECKING:
    from prorec_fast.graph import BipartiteGraph

# (indptr, indices, values) of the user rows, then of the item rows, and both's segments: BipartiteGraph.adjacency()
Adjacency = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


@operation("propagate", widest)
def propagate(
    graph: BipartiteGraph,
    user: Tensor,
    item: Tensor,
    num_layers: int = 3,
    *,
    combine: str | Sequence[float] = "mean",
    noise: float = 0.0,
    keep_prob: float = 1.0,
    self_loops: bool = False,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    _check(graph, user, item, num_layers, combine, noise, keep_prob)
    drawn = seed_tensor(seed, user.device) if noise > 0 or keep_prob < 1 else None
    if not _native.runs_on_kernel("cuda", user, item) or num_layers == 0:
        return propagate_reference(
            graph,
            user,
            item,
            num_layers,
            combine=combine,
            noise=noise,
            keep_prob=keep_prob,
            self_loops=self_loops,
            seed=drawn,
        )
    concat = combine == "concat"
    coefficients = (1.0,) * (num_layers + 1) if concat else layer_weights(combine, num_layers)
    options = (coefficients, False, concat, float(noise), float(keep_prob), self_loops, drawn)
    if torch.compiler.is_compiling():
        return torch.ops.prorec_fast.propagate(user, item, *graph.adjacency(), *options)
    return _PropagateFunction.apply(user, item, graph.adjacency(), options)


def _check(graph, user, item, num_layers, combine, noise, keep_prob) -> None:
    if not hasattr(graph, "adjacency"):
        raise TypeError(f"graph: want a BipartiteGraph, got {type(graph).__name__}")
    float_matrix("user", user, rows=graph.num_users)
    float_matrix("item", item, rows=graph.num_items, cols=user.size(1))
    same_device_and_dtype(("user", "item"), (user, item))
    if user.device != graph.device:
        raise ValueError(f"graph: want it on the device of user ({user.device}), got {graph!r}")
    if not isinstance(num_layers, int) or isinstance(num_layers, bool) or num_layers < 0:
        raise ValueError(f"num_layers: want an int of 0 or more, got {num_layers!r}")
    if isinstance(combine, str):
        if combine not in ("mean", "sum", "last", "concat"):
            raise ValueError(f"combine: want mean, sum, last, concat or a sequence of weights, got {combine!r}")
    elif not isinstance(combine, Sequence) or len(combine) != num_layers + 1:
        raise ValueError(f"combine: want num_layers + 1 = {num_layers + 1} weights, got {combine!r}")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise: want a finite number of 0 or more, got {noise!r}")
    if not 0 < keep_prob <= 1:
        raise ValueError(f"keep_prob: want a number above 0 and up to 1, got {keep_prob!r}")


class _PropagateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, user: Tensor, item: Tensor, adjacency: Adjacency, options: tuple) -> tuple[Tensor, Tensor]:
        ctx.adjacency, ctx.options = adjacency, options
        ctx.set_materialize_grads(False)
        return propagate_kernel(user, item, adjacency, *options)

    @staticmethod
    def backward(ctx, grad_user: Tensor | None, grad_item: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_user is None and grad_item is None:
            return None, None, None, None
        needs, options = ctx.needs_input_grad[:2], transposed(ctx.options)
        if torch.is_grad_enabled():  # with create_graph=True; what is linear in its inputs is so in their gradients
            found = _PropagateFunction.apply(*_both_sides(grad_user, grad_item, ctx.adjacency), ctx.adjacency, options)
        else:
            found = propagate_kernel(grad_user, grad_item, ctx.adjacency, *options, needs)
        return *found, None, None


def _both_sides(user: Tensor | None, item: Tensor | None, adjacency: Adjacency) -> tuple[Tensor, Tensor]:
    """The sides of which one may be None, for zeros."""
    given = item if user is None else user
    indptrs = adjacency[0], adjacency[3]
    return tuple(
        given.new_zeros(indptr.numel() - 1, given.size(1)) if side is None else side
        for side, indptr in zip((user, item), indptrs, strict=True)
    )


def transposed(options: tuple) -> tuple:
    """The options of the gradient. The operator is symmetric, so it is the same sum of its powers over the same edges;
    the gradients of layers returned side by side are inputs side by side, and noise passes gradients straight through.
    """
    coefficients, layers_in, layers_out, _, keep_prob, self_loops, seed = options
    return coefficients, layers_out, layers_in, 0.0, keep_prob, self_loops, seed


def propagate_kernel(
    user: Tensor | None, item: Tensor | None, adjacency: Adjacency, *options
) -> tuple[Tensor | None, Tensor | None]:
    """`propagate_cpu` where the graph is."""
    kernel = propagate_cuda if _native.on_cuda(adjacency[0]) else propagate_cpu
    return kernel(user, item, adjacency, *options)


def propagate_cpu(
    user: Tensor | None,
    item: Tensor | None,
    adjacency: Adjacency,
    coefficients: Sequence[float],
    layers_in: bool,
    layers_out: bool,
    noise: float,
    keep_prob: float,
    self_loops: bool,
    seed: Tensor | None,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """sum_l coefficients[l] A^l x_l for each side that `needs` it, where x_l is the whole input or, with `layers_in`,
    its l-th block of columns; with `layers_out`, the A^l x themselves side by side. A side that is None is zeros."""
    given = user if user is not None else item
    num_blocks = len(coefficients)
    dim = given.size(1) // num_blocks if layers_in else given.size(1)
    inputs = [None if x is None else _native.storable(x) for x in (user, item)]
    rows = [adjacency[0].numel() - 1, adjacency[3].numel() - 1]
    key = 0 if seed is None else int(seed)
    csrs = _native.csr(*adjacency[:3], rows[1]), _native.csr(*adjacency[3:6], rows[0])

    def layers(x, coefficients, out) -> None:
        _native.extension().propagate(
            *csrs,
            *map(_matrix, x),
            dim,
            dim if layers_in else 0,
            coefficients,
            self_loops,
            key,
            keep_prob,
            *map(_matrix, out),
            _native.threads(),
        )

    if layers_out:
        outputs = [_native.empty(n, num_blocks * dim) for n in rows]
        slices = [[out[:, l * dim : (l + 1) * dim] for out in outputs] for l in range(num_blocks)]
        for out, x in zip(slices[0], inputs, strict=True):
            out.copy_(x)
        for l in range(1, num_blocks):
            layers(slices[l - 1], (0.0, 1.0), slices[l])
            _add_noise(slices[l], (None, None), 0.0, noise, key, l)
    elif noise > 0:
        outputs = [coefficients[0] * x.float() for x in inputs]
        x, spare = inputs, [[_native.empty(n, dim) for n in rows] for _ in range(2)]
        for l in range(1, num_blocks):
            layers(x, (0.0, 1.0), spare[l % 2])
            x = spare[l % 2]
            _add_noise(x, outputs, coefficients[l], noise, key, l)
    else:
        outputs = [_native.empty(n, dim) if need else None for n, need in zip(rows, needs, strict=True)]
        layers(inputs, coefficients, outputs)
    return tuple(None if out is None else out.to(given.dtype) for out in outputs)


def _add_noise(x, totals, weight: float, noise: float, key: int, layer: int) -> None:
    """Adds layer `layer`'s noise to both sides of `x`, then weight times the sides to `totals`."""
    if noise > 0:
        for side in range(2):
            _native.extension().propagate_noise(
                _matrix(x[side]), _matrix(totals[side]), weight, noise, key, 2 * layer + side, _native.threads()
            )


def propagate_cuda(
    user: Tensor | None,
    item: Tensor | None,
    adjacency: Adjacency,
    coefficients: Sequence[float],
    layers_in: bool,
    layers_out: bool,
    noise: float,
    keep_prob: float,
    self_loops: bool,
    seed: Tensor | None,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """As `propagate_cpu`."""
    given = user if user is not None else item
    num_blocks = len(coefficients)
    dim = given.size(1) // num_blocks if layers_in else given.size(1)
    inputs = [None if x is None else _native.storable(x) for x in (user, item)]
    rows = [adjacency[0].numel() - 1, adjacency[3].numel() - 1]
    summed = noise > 0 and not layers_out  # where the layers are added up one by one
    width, dtype = num_blocks * dim if layers_out else dim, torch.float32 if summed else given.dtype
    outputs = [given.new_empty(n, width, dtype=dtype) if need else None for n, need in zip(rows, needs, strict=True)]

    segments = [(_native.address(s), 0 if s is None else s.size(0)) for s in adjacency[6:]]
    num_segments = sum(count for _, count in segments)
    table_dtype = torch.float32 if given.dtype == torch.float16 else given.dtype
    row_bytes = -(-dim * table_dtype.itemsize // 32) * 32
    tables = given.new_empty(2 * sum(rows), row_bytes // table_dtype.itemsize, dtype=table_dtype)
    scales = given.new_empty(sum(rows), dtype=torch.float32)
    partial = given.new_empty(num_segments, tables.size(1), dtype=torch.float32)
    arrived = given.new_empty(num_segments, -(-row_bytes // 512), dtype=torch.int32)
    _native.cuda_call(
        given,
        "propagate",
        _native.csr(*adjacency[:3], rows[1]),
        _native.csr(*adjacency[3:6], rows[0]),
        *segments,
        *map(_matrix, inputs),
        dim,
        dim if layers_in else 0,
        dim if layers_out else 0,
        coefficients,
        self_loops,
        _native.address(seed),
        noise,
        keep_prob,
        *map(_matrix, outputs),
        _native.matrix(tables),
        scales.data_ptr(),
        partial.data_ptr(),
        arrived.data_ptr(),
    )
    return tuple(None if out is None else out.to(given.dtype) for out in outputs)


def _matrix(t: Tensor | None) -> tuple[int, int, int, int, int] | None:
    return None if t is None else _native.matrix(t)
