"""The MLP that brings frozen profile vectors to a model's width, on the rows that a batch needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu_, linear

from prorec_fast import _native
from prorec_fast.ops.common import refuse_second_derivative

_SLOPE = 0.01  # of the leaky ReLU below zero
# Rows whose input and hidden layer are worked on at a time. They then stay in cache between one product and the next,
# and cost no page faults: at this size the whole costs what its matrix products do.
_CHUNK = 2048
_DEVICE_CHUNK = 1 << 15  # on a device, where a product wants many rows and each costs a launch


class ProfileTables:
    """K frozen tables [rows, t] of profile vectors, and the memory that a batch's pass through the head needs.

    The memory is kept from step to step: it is the largest of a step, and fresh memory is slow on a CPU.
    """

    def __init__(self, tables: Sequence[Tensor], device: torch.device) -> None:
        self.tables = [table.to(device) for table in tables]
        self.num_rows, self.width = self.tables[0].shape
        self._chunk = _DEVICE_CHUNK if _native.on_cuda(self.tables[0]) else _CHUNK
        self._input = self.tables[0].new_empty(self._chunk, self.width)
        self._hidden = self._grad = self._input[:0, :0]
        self._outgrown: list[Tensor] = []  # what a captured step may still use
        self.passes = 0  # forward passes so far: the hidden layer is that of the last one

    def hidden(self, rows: int, width: int) -> Tensor:
        """[rows, width] to keep until the backward pass."""
        if self._hidden.size(0) < rows or self._hidden.size(1) != width:
            if _native.on_cuda(self._hidden):
                self._outgrown += [self._hidden, self._grad]
            self._hidden = self._input.new_empty(rows, width)
            self._grad = self._input.new_empty(self._chunk, width)
        return self._hidden[:rows]

    def chunks(self, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(where, rows): the profiles of the nodes `index` [R], all of the first table, then of the second, ..., as
        chunks [C, t] of the K R rows. A chunk lasts until the next."""
        for k, table in enumerate(self.tables):
            for start in range(0, index.size(0), self._chunk):
                part = index[start : start + self._chunk]
                rows = torch.index_select(table, 0, part, out=self._input[: part.size(0)])
                first = k * index.size(0) + start
                yield slice(first, first + part.size(0)), rows

    def grad_hidden(self, rows: int) -> Tensor:
        """[rows, width of the hidden layer] to work in."""
        return self._grad[:rows]


class ProfileHead(nn.Module):
    """t -> (t + width) / 2 -> width with a leaky ReLU between (ProEx, arXiv 2512.00679, 2.3.2).

    Args:
        profile_width: t.
        width: of what comes out.
        seed: of the Xavier-uniform weights; the biases start at 0. The generator is its own.
    """

    def __init__(self, profile_width: int, width: int, *, seed: int, device: torch.device) -> None:
        super().__init__()
        hidden = (profile_width + width) // 2
        generator = torch.Generator("cpu").manual_seed(seed)

        def layer(rows: int, cols: int) -> tuple[nn.Parameter, nn.Parameter]:
            weight = torch.empty(rows, cols, dtype=torch.float32, device="cpu")
            nn.init.xavier_uniform_(weight, generator=generator)
            return nn.Parameter(weight.to(device)), nn.Parameter(weight.new_zeros(rows, device=device))

        self.weight_in, self.bias_in = layer(hidden, profile_width)
        self.weight_out, self.bias_out = layer(width, hidden)

    def forward(self, profiles: ProfileTables, index: Tensor) -> Tensor:
        """[K, R, width] from the profiles of the nodes `index` [R]. Before its backward pass, no other forward pass may
        use the same `profiles`."""
        out = _HeadFunction.apply(profiles, index, self.weight_in, self.bias_in, self.weight_out, self.bias_out)
        return out.view(len(profiles.tables), index.size(0), self.bias_out.size(0))

    @torch.no_grad()
    def mean(self, profiles: ProfileTables) -> Tensor:
        """[rows, width]: every node's mean over its profiles. The last layer is linear, so it comes after the mean."""
        out = self.weight_out.new_empty(profiles.num_rows, self.weight_out.size(0))
        with torch.autocast(out.device.type, enabled=False):  # as in `forward`, where products are written to memory
            for start in range(0, profiles.num_rows, _CHUNK):
                rows = [table[start : start + _CHUNK] for table in profiles.tables]
                hidden = sum(leaky_relu_(linear(x, self.weight_in, self.bias_in), _SLOPE) for x in rows) / len(rows)
                torch.addmm(self.bias_out, hidden, self.weight_out.T, out=out[start : start + _CHUNK])
        return out


class _HeadFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, profiles: ProfileTables, index: Tensor, weight_in, bias_in, weight_out, bias_out) -> Tensor:
        rows = len(profiles.tables) * index.size(0)
        hidden, out = profiles.hidden(rows, bias_in.size(0)), weight_out.new_empty(rows, bias_out.size(0))
        for at, x in profiles.chunks(index):
            leaky_relu_(torch.addmm(bias_in, x, weight_in.T, out=hidden[at]), _SLOPE)
            torch.addmm(bias_out, hidden[at], weight_out.T, out=out[at])
        profiles.passes += 1
        ctx.profiles, ctx.passes, ctx.hidden = profiles, profiles.passes, hidden
        ctx.save_for_backward(index, weight_in, bias_in, weight_out)
        return out

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        if ctx.passes != ctx.profiles.passes:
            raise RuntimeError(
                "ProfileHead: another forward pass over the same profiles came before this backward pass"
            )
        index, *parameters = ctx.saved_tensors
        with torch.no_grad():
            grads = _HeadFunction.gradients(ctx, index, *parameters, grad_out)
        of = *parameters, grad_out
        return None, None, *refuse_second_derivative("ProfileHead", grads, of, "is not implemented")

    @staticmethod
    def gradients(ctx, index: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, grad_out: Tensor):
        grad_weight_in, grad_weight_out = torch.zeros_like(weight_in), torch.zeros_like(weight_out)
        grad_bias_in = torch.zeros_like(bias_in)
        for at, x in ctx.profiles.chunks(index):
            grad, hidden = ctx.profiles.grad_hidden(x.size(0)), ctx.hidden[at]
            torch.mm(grad_out[at], weight_out, out=grad)
            torch.ops.aten.leaky_relu_backward.grad_input(grad, hidden, _SLOPE, True, grad_input=grad)
            grad_weight_out.addmm_(grad_out[at].T, hidden)
            grad_weight_in.addmm_(grad.T, x)
            grad_bias_in += grad.sum(0)
        return grad_weight_in, grad_bias_in, grad_weight_out, grad_out.sum(0)
