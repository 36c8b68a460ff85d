from __future__ import annotations

from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, compiled, loss_and_gradients

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
