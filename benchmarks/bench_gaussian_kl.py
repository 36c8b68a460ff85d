from __future__ import annotations

from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, compiled, loss_and_gradients

from prorec_fast import losses
from prorec_fast.reference.gaussian_kl import gaussian_kl as reference

BETA = 0.2


def providers(at: Setting = AMAZON_BOOK, backward: bool = True):
    """A batch of an autoencoder's Gaussians and the profiles'."""
    tables = [at.table(at.batch, seed) for seed in range(4)]
    compiled_reference = compiled(reference)
    found = {
        EAGER: lambda: reference(*tables, beta=BETA),
        OURS: lambda: losses.gaussian_kl(*tables, beta=BETA),
        COMPILED: lambda: compiled_reference(*tables, beta=BETA),
    }
    return {name: loss_and_gradients(loss, tables, backward) for name, loss in found.items()}
