from __future__ import annotations

import pytest
import torch

from prorec_fast.reference.philox import philox, seed_key, seed_tensor

# Known answers of philox4x32-10 published with Random123: key, counter, words.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("key, counter, words", KNOWN)
def test_philox_matches_known_answers(key, counter, words):
    got = philox(tuple(torch.tensor(k) for k in key), tuple(torch.tensor([c, c]) for c in counter))
    assert [w.tolist() for w in got] == [[w, w] for w in words]


def test_philox_properties():
    key = seed_key(torch.tensor(0x123456789ABCDEF))
    assert [int(k) for k in key] == [0x89ABCDEF, 0x01234567]
    rows, columns = torch.arange(50)[:, None], torch.arange(30)
    words = philox(key, (rows, columns, 0, 1))
    assert all(w.shape == (50, 30) for w in words)
    assert torch.stack(words).unique().numel() == 4 * 50 * 30  # 6000 of 2^32: a repeat has probability 0.004
    mean = torch.stack(words).double().mean() / 2**32
    assert abs(mean - 0.5) < 0.02


def test_seed_tensor_draws_from_the_default_generator():
    torch.manual_seed(3)
    drawn = [int(seed_tensor(None, torch.device("cpu"))) for _ in range(3)]
    torch.manual_seed(3)
    assert drawn == [int(seed_tensor(None, torch.device("cpu"))) for _ in range(3)] and len(set(drawn)) == 3
    assert int(seed_tensor(2**63 - 1, torch.device("cpu"))) == 2**63 - 1


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7"])
def test_seed_tensor_rejects(seed):
    with pytest.raises(ValueError, match="seed: want None or an int"):
        seed_tensor(seed, torch.device("cpu"))
