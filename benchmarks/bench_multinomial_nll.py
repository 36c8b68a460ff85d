from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, compiled, loss_and_gradients
from torch.utils.checkpoint import checkpoint

from prorec_fast import losses
from prorec_fast.reference.multinomial_nll import multinomial_nll as reference
from prorec_fast.reference.topk import row_entries

CHECKPOINTED = "eager in chunks, checkpointed"
_ROWS = 192


def providers(at: Setting = AMAZON_BOOK, backward: bool = True):
    """A decoder's last layer of width `at.dim`, and the training items of a batch of users, which are found beforehand
    where neither the reference nor ours looks them up. No library computes it: torch's F.linear_cross_entropy in chunks
    takes one target a row."""
    hidden = at.table(at.batch, 1)
    weight, bias = at.table(at.num_items, 2).detach() / 32, at.table(1, 3, at.num_items).detach()[0]
    inputs = [hidden, weight.requires_grad_(), bias.requires_grad_()]
    graph, users = at.graph(), at.distinct(at.num_users, at.batch, 4)
    position, column = row_entries(*graph.csr(), users)

    def gathered():
        log_softmax = F.linear(*inputs).log_softmax(1)
        return -log_softmax[position, column].sum() / at.batch

    found = {
        EAGER: lambda: reference(*inputs, (*graph.csr(), None), rows=users),
        OURS: lambda: losses.multinomial_nll(*inputs, graph, rows=users),
        COMPILED: compiled(gathered),
        CHECKPOINTED: _checkpointed(inputs, position, column),
    }
    return {name: loss_and_gradients(loss, inputs, backward) for name, loss in found.items()}


def _checkpointed(inputs, position, column):
    """Logits for some rows at a time, computed again in the backward pass."""
    hidden, weight, bias = inputs
    batch = hidden.size(0)
    starts = torch.arange(0, batch + _ROWS, _ROWS, device=position.device).clamp_max(batch)
    ends = torch.searchsorted(position, starts).tolist()
    chunks = [
        (slice(i * _ROWS, (i + 1) * _ROWS), position[begin:end] - i * _ROWS, column[begin:end])
        for i, (begin, end) in enumerate(pairwise(ends))
    ]

    def part(rows, weight, bias, position, column):
        log_softmax = F.linear(rows, weight, bias).log_softmax(1)
        return -log_softmax[position, column].sum()

    def loss():
        parts = [checkpoint(part, hidden[rows], weight, bias, *at, use_reentrant=False) for rows, *at in chunks]
        return torch.stack(parts).sum() / batch

    return loss
