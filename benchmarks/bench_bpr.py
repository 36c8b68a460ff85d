from __future__ import annotations

import pytest
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, assert_agree, compiled, loss_and_gradients

from prorec_fast import losses
from prorec_fast.reference.bpr import bpr as reference


def providers(at: Setting = AMAZON_BOOK, backward: bool = True):
    """A batch of triplets, already gathered."""
    rows = [at.table(at.batch, seed) for seed in (1, 2, 3)]
    compiled_reference = compiled(reference)
    found = {
        EAGER: lambda: reference(*rows),
        OURS: lambda: losses.bpr(*rows),
        COMPILED: lambda: compiled_reference(*rows),
    }
    return {name: loss_and_gradients(loss, rows, backward) for name, loss in found.items()}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("provider", [EAGER, COMPILED, OURS])
def test_bpr(benchmark, provider, backward):
    found = providers(backward=backward)
    assert_agree({name: found[name] for name in (EAGER, provider)})
    benchmark(found[provider])
