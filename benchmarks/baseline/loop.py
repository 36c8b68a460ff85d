"""Habits: the loss is read after every step, to be logged; Adam is torch's as it comes; the best weights are kept as a
deep copy, and training stops after so many validations without a better recall@20."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from prorec_fast.data import Dataset

from .evaluation import Evaluation

MONITOR = "recall@20"


def train(
    model: nn.Module,
    data: Dataset,
    *,
    epochs: Iterable[int],
    batch_size: int,
    lr: float,
    eval_every: int,
    patience: int,
    device: str,
    on_epoch: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Trains for `epochs`, numbered from 0, and leaves the model with its best weights.

    Returns:
        "best_epoch", counted from 1, and "stopped", "patience" or "epochs".
    """
    target = torch.device(device)
    model.to(target)
    batches = model.batches(data)
    loader = DataLoader(batches, batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    validate, numbers = Evaluation(data, "valid", target), list(epochs)
    best, best_epoch, best_state, since_best = -1.0, 0, {}, 0
    for done, epoch in enumerate(numbers, start=1):
        start = time.perf_counter()
        model.train()
        model.start_epoch(epoch)
        batches.sample()
        total = 0.0
        for batch in loader:
            loss = model.loss(*(column.to(target) for column in batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        record = {"epoch": epoch + 1, "seconds": time.perf_counter() - start, "loss": total / len(loader)}
        if done % eval_every == 0 or done == len(numbers):
            start = time.perf_counter()
            record["valid"] = validate(model)
            record["valid_seconds"] = time.perf_counter() - start
            since_best += 1
            if record["valid"][MONITOR] > best:
                best, best_epoch, since_best = record["valid"][MONITOR], epoch + 1, 0
                best_state = copy.deepcopy(model.state_dict())
        on_epoch(record)
        if since_best >= patience:
            break
    model.load_state_dict(best_state)
    return {"best_epoch": best_epoch, "stopped": "patience" if since_best >= patience else "epochs"}
