"""No speed on red: whether the baseline and ours train the same thing, and measure it alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from baseline.evaluation import Evaluation
from sizes import OURS, Provider, assert_agree
from torch import Tensor, nn
from torch.utils.data import default_collate
from trainings import TRAININGS

from prorec_fast.data import Dataset
from prorec_fast.frameworks import RELEASED, Objective
from prorec_fast.train import evaluate

BASELINE = "baseline"
TOLERANCE = 1e-3  # where a hidden unit's input is a rounding away from 0, its slope is one or the other
EQUAL_RANKS = 1e-4  # where two scores are a rounding apart, either item may come first
HEAD = {"weight_in": "0.weight", "bias_in": "0.bias", "weight_out": "2.weight", "bias_out": "2.bias"}


def assert_same_training(name: str, data: Dataset, device: str) -> None:
    """One batch's loss and gradients, and what the same weights score on the test split, agree.

    Raises:
        AssertionError: they do not.
    """
    theirs, ours = same_weights(name, data, device)
    assert_agree(first_steps(theirs, ours, data), TOLERANCE)
    found, expected = Evaluation(data, "test", torch.device(device))(theirs), evaluate(ours, data)
    for metric, value in found.items():
        apart = abs(value - expected[metric])
        assert apart <= EQUAL_RANKS * expected[metric], f"{name}: {metric} is {value}, ours is {expected[metric]}"


def same_weights(name: str, data: Dataset, device: str) -> tuple[nn.Module, Objective]:
    """The baseline and ours with equal weights, every loss switched on, and nothing dropped out: each would leave out
    other entries."""
    training = TRAININGS[name]
    model, framework = training.model(data), training.framework(data)
    if name == "mult_vae":
        model = type(model)(data, dropout=0.0, anneal_steps=2)  # so that the divergence counts in the first step
    if training.warmup_epochs(data):
        framework = replace(framework, warmup_epochs=0)
    theirs = training.baseline(data, model, framework).to(device)
    ours = framework.bind(model.to(device), data)
    weights = _by_the_names_of_theirs(ours, lambda parameter: parameter)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            parameter.copy_(weights[key])
    return theirs, ours


def _by_the_names_of_theirs(ours: Objective, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    found = {key: value(parameter) for key, parameter in ours.model.named_parameters()}
    if "input.weight" in found:
        found["input.weight"] = found["input.weight"].T
    return found | {"mlp." + HEAD[key.removeprefix("head.")]: value(p) for key, p in ours.named_parameters()}


def first_steps(
    theirs: nn.Module, ours: Objective, data: Dataset, batch_size: int | None = None, seed: int = 0
) -> dict[str, Provider]:
    """{name: the loss of a batch and all its gradients}, for the same batch and the same random numbers; to be called
    once each."""
    batch_size = batch_size or RELEASED.batch_size_for(ours.model.trains_on)
    torch.manual_seed(seed)
    batches, on_users = theirs.batches(data), ours.model.trains_on == "users"
    batches.sample()
    places = torch.randperm(len(batches))[:batch_size]
    batch = [column.to(ours.model.device) for column in default_collate([batches[place] for place in places.tolist()])]

    def step(module: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
        module.train()
        torch.manual_seed(seed)  # of latent vectors and environments
        value = loss()
        value.backward()
        return value.detach()

    def run_theirs() -> list[Tensor]:
        value = step(theirs, lambda: theirs.loss(*batch))
        return [value, *(parameter.grad for parameter in theirs.parameters())]

    def run_ours() -> list[Tensor]:
        value = step(ours, lambda: sum(ours.terms(*batch[:1] if on_users else batch).values()))
        named = _by_the_names_of_theirs(ours, lambda parameter: parameter.grad)
        return [value, *(named[key] for key, _ in theirs.named_parameters())]

    return {BASELINE: run_theirs, OURS: run_ours}
