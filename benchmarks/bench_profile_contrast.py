from __future__ import annotations

import pytest
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, assert_agree, compiled, loss_and_gradients

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


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("provider", [EAGER, COMPILED, OURS])
def test_profile_contrast(benchmark, provider, backward):
    found = providers(backward=backward)
    assert_agree({name: found[name] for name in (EAGER, provider)})
    benchmark(found[provider])
