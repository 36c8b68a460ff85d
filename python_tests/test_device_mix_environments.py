"""mix_environments on the device path. Tiny sizes: without a device, Triton's interpreter runs the kernel."""

from __future__ import annotations

import pytest
import torch
from helpers import check_against_reference

from prorec_fast import losses
from prorec_fast.reference.mix_environments import mix_environments as reference


def inputs(device, shape, environments: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape) * 100 + environments)
    profiles = torch.randn(shape, generator=generator).to(device, dtype)
    return [profiles, torch.rand(environments, shape[0], generator=generator).to(device, dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mix_environments_on_device_matches_reference(device, dtype):
    for shape, environments in (((1, 1), 1), ((4, 7), 3), ((3, 33, 5), 2), ((4, 129, 16), 4), ((5, 2, 3, 8), 40)):
        check_against_reference(losses.mix_environments, reference, inputs(device, shape, environments, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mix_environments_on_device_strided(device, dtype):
    profiles, weights = inputs(device, (20, 3, 96), 3, dtype)
    weights = weights[:, :3]
    for view in (
        profiles.transpose(0, 1),
        profiles.transpose(0, 1)[:, ::3, :40],
        profiles.transpose(0, 1)[..., ::2],
        profiles.permute(1, 2, 0),
    ):
        check_against_reference(losses.mix_environments, reference, [view, weights])


def test_mix_environments_on_device_properties(device):
    profiles, weights = inputs(device, (4, 65, 8), 3)
    assert losses.mix_environments(profiles[:, :0], weights).shape == (3, 0, 8)
    assert torch.equal(losses.mix_environments(profiles, torch.eye(4, device=device)), profiles)
    profiles[2, 7, 3] = float("nan")
    found = losses.mix_environments(profiles, weights).isnan().nonzero()
    assert found.tolist() == [[e, 7, 3] for e in range(3)]
    stored = profiles[:, :7].bfloat16()
    wide = torch.tensordot(weights.double(), stored.double(), 1)
    assert ((losses.mix_environments(stored, weights).double() - wide).abs() <= 2**-8 * wide.abs() + 1e-5).all()
