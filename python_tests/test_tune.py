"""benchmarks/tune.py: it finds the better tile, and every tile is one that it can reach."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("benchmarks")


def test_tune_finds_a_better_tile(simulated_device, monkeypatch, capsys):
    import tune
    from sizes import TINY
    from timing import WallClock

    from prorec_fast.triton_kernels import tuning

    monkeypatch.setattr(tuning, "TILES", {})
    first = tuning.Tile(64, 32, 4, 2)
    monkeypatch.setitem(tuning.DEFAULT, "distribution_kl_user", {4: {32: first, 64: first}})
    tried, run = [], [torch.ones(3)]

    def warm(replay, clock, rounds):
        tile = tuning.TILES["distribution_kl_user", 90][4][32]
        tried.append(tile)
        replay()
        if tile.num_stages == 4:
            raise RuntimeError("out of resource: shared memory")
        return {"median_ms": 10.0 - tile.num_stages + tile.num_warps}

    monkeypatch.setattr(tune, "warm", warm)
    monkeypatch.setitem(tune.WORKLOADS, "distribution_kl", lambda at: lambda: run)
    tune.tune(["distribution_kl_user"], [32], replace(TINY, dim=32), WallClock(), 60)
    best = tuning.TILES["distribution_kl_user", 90][4][32]
    assert best == first._replace(num_stages=3, num_warps=2)
    assert tried[0] == first and len(set(tried)) == len(tried)
    assert "out of resource" in capsys.readouterr().err
    rows = eval("{" + tune.table(["distribution_kl_user"], 90) + "}", {"Tile": tuning.Tile})
    assert rows == tuning.TILES


@pytest.mark.parametrize("prefix", ["softmax_sweep", "distribution_kl", "info_nce"])
def test_tune_uses_the_tiles_of_the_kernels(simulated_device, monkeypatch, prefix):
    """A tile that cannot be compiled is noticed: the workload of every operation runs its kernels."""
    import tune
    from sizes import TINY

    from prorec_fast.triton_kernels import tuning

    class Unusable(dict):
        def __getitem__(self, band):
            raise LookupError("this tile")

    for name in [name for name in tuning.DEFAULT if name.startswith(prefix)]:
        for size, precision in ((4, "float32"), (2, "bfloat16")):
            if size not in tuning.DEFAULT[name]:
                continue
            work = tune.WORKLOADS[prefix](replace(TINY, precision=precision))
            with monkeypatch.context() as patch:
                tiles = {**tuning.DEFAULT[name], size: Unusable(tuning.DEFAULT[name][size])}
                patch.setattr(tuning, "TILES", {(name, 90): tiles})
                with pytest.raises(LookupError, match="this tile"):
                    work()
                    pytest.fail(f"{name} is not part of its workload in {precision}")


def test_every_tuned_operation_has_a_workload(triton):
    import tune

    from prorec_fast.triton_kernels import tuning

    tables = [*tuning.DEFAULT.items(), *((name, by_size) for (name, _), by_size in tuning.TILES.items())]
    for name, by_size in tables:
        assert sum(name.startswith(prefix) for prefix in tune.WORKLOADS) == 1
        for tile in (tile for tiles in by_size.values() for tile in tiles.values()):
            assert all(value in tune.GRID[field] for field, value in tile._asdict().items()), name
