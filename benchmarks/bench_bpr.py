from __future__ import annotations

import pytest
import torch
from sizes import BATCH, COMPILED, EAGER, OURS, assert_agree, loss_and_gradients, table

from prorec_fast import losses
from prorec_fast.reference.bpr import bpr as reference


def providers(backward: bool = True, dim: int = 32, compiled: bool = True):
    """A batch of triplets, already gathered."""
    rows = [table(BATCH, dim, seed) for seed in (1, 2, 3)]
    found = {EAGER: lambda: reference(*rows), OURS: lambda: losses.bpr(*rows)}
    if compiled:
        compiled_reference = torch.compile(reference)
        found[COMPILED] = lambda: compiled_reference(*rows)
    return {name: loss_and_gradients(loss, rows, backward) for name, loss in found.items()}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("provider", [EAGER, COMPILED, OURS])
def test_bpr(benchmark, provider, backward):
    found = providers(backward, compiled=provider == COMPILED)
    assert_agree(found)
    benchmark(found[provider])
