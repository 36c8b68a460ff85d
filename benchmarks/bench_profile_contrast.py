from __future__ import annotations

from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, compiled, loss_and_gradients

from prorec_fast import losses
from prorec_fast.reference.profile_contrast import profile_contrast as reference


def providers(at: Setting = AMAZON_BOOK, backward: bool = True, normalize: bool = True, profiles: int = 4):
    """A batch's profiles, already gathered."""
    table = at.profiles(profiles)
    compiled_reference = compiled(reference)
    found = {
        EAGER: lambda: reference(table, normalize=normalize),
        OURS: lambda: losses.profile_contrast(table, normalize=normalize),
        COMPILED: lambda: compiled_reference(table, normalize=normalize),
    }
    return {name: loss_and_gradients(loss, [table], backward) for name, loss in found.items()}
