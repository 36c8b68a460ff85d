"""What makes the host wait for a CUDA device, found without one."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NeverWaits(TorchDispatchMode):
    """Fails on operators that make the host wait for a CUDA device, or that a CUDA graph cannot hold."""

    WAITING = (
        "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "_unique",
        "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc", "lift_fresh",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.active = 0, False

    def __enter__(self):
        self.active = True
        return super().__enter__()

    def __exit__(self, *error):
        self.active = False
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        self.calls += 1
        assert name not in self.WAITING, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{name} by a mask waits for the device"
        if name == "repeat_interleave":
            assert kwargs.get("output_size") is not None, "repeat_interleave without output_size waits for the device"
        return func(*args, **kwargs)
