"""One step of training, run eagerly or replayed as a CUDA graph; in neither does the host wait for the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from prorec_fast.frameworks import Objective

WARMUP_STEPS = 3  # before a capture: kernels are compiled and loaded, the optimiser and libraries make their state

_log = logging.getLogger(__name__)
_abandoned: list[torch.cuda.CUDAGraph] = []  # whose capture failed: torch's allocator may go on asking them


class CudaGraphs:
    """torch's CUDA graphs on one device. They may share one pool of memory: steps run one at a time, and nothing in the
    pool outlives its step."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], None]) -> None:
        """Does `work` on the stream that captures are made on."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def capture(self, work: Callable[[], None], sharing: torch.cuda.CUDAGraph | None) -> torch.cuda.CUDAGraph:
        """`work` recorded without being done, in the memory of the graph `sharing`."""
        graph, failure = torch.cuda.CUDAGraph(), None
        current = torch.cuda.current_stream(self._stream.device)
        pool = None if sharing is None else sharing.pool()
        with torch.cuda.device(self._stream.device):
            try:
                with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                    try:
                        work()
                    except Exception as error:
                        failure = error
                        raise
            except Exception as error:
                _abandoned.append(graph)
                # Of a capture that did not end in order, older versions of torch leave the generator capturing.
                generator = torch.cuda.default_generators[self._stream.device.index]
                generator.graphsafe_set_state(generator.clone_state())
                raise failure or error from None  # ending a capture that failed raises over what says why
            finally:
                torch.cuda.set_stream(current)  # such an ending leaves the capture's stream current
        return graph


def graphs_for(device: torch.device) -> CudaGraphs | None:
    """What captures steps on `device`, if anything does."""
    return CudaGraphs(device) if device.type == "cuda" else None


@dataclass
class _Batches:
    """What there is for batches of one length.

    Attributes:
        inputs: where every step reads its batch, the warm-up too: kernels are compiled for how addresses are aligned.
        warm_ups: eager steps so far.
        graph: the captured step.
    """

    inputs: Tensor
    warm_ups: int = 0
    graph: torch.cuda.CUDAGraph | None = None


class TrainingStep:
    """Losses of a batch, their gradients and the optimiser's step.

    With `graphs`, the first steps on batches of some length run eagerly; then the step is captured and from there on
    replayed. That is one graph per length: the last, shorter batch of an epoch has its own too, because one eager step
    costs the time of many replayed ones. When the objective's phase changes, all start again; where it has none,
    and after a capture that failed, every step is eager.
    """

    def __init__(
        self, objective: Objective, optimizer: torch.optim.Optimizer, graphs: CudaGraphs | None = None
    ) -> None:
        self._objective, self._optimizer, self._graphs = objective, optimizer, graphs
        self._phase: Hashable | None = None
        self._names: tuple[str, ...] = ()
        self._totals: Tensor | None = None  # float64, one of each term; captured steps add to it where it is
        self._steps = 0
        self._lengths: dict[int, _Batches] = {}

    def start_epoch(self, epoch: int) -> None:
        """Readies the objective for `epoch` and counts from nothing."""
        self._objective.start_epoch(epoch)
        phase, self._steps = self._objective.phase, 0
        if phase is None or phase != self._phase:
            self._phase, self._totals = phase, None
            self._lengths.clear()
        elif self._totals is not None:
            self._totals.zero_()

    def run(self, batch: Tensor) -> None:
        """Trains on `batch`: int64 [3, B], users over positives over negatives, or [1, B], users alone."""
        self._steps += 1
        if self._graphs is None or self._phase is None:
            self._step(batch)
            return
        length = batch.size(1)
        if length not in self._lengths:
            self._lengths[length] = _Batches(torch.empty_like(batch, memory_format=torch.contiguous_format))
        batches = self._lengths[length]
        batches.inputs.copy_(batch)
        if batches.warm_ups < WARMUP_STEPS:
            batches.warm_ups += 1
            self._graphs.warm_up(partial(self._step, batches.inputs))
        elif batches.graph is not None or self._capture(batches):
            batches.graph.replay()
        else:
            self._step(batch)

    def means(self) -> dict[str, float]:
        """Each term's mean over the epoch's steps. This reads from the device, so it waits for it."""
        return dict(zip(self._names, (self._totals / self._steps).tolist(), strict=True))

    def _step(self, batch: Tensor) -> None:
        terms = self._objective.terms(*batch)
        values = torch.stack(tuple(terms.values()))
        # None and not zeros: the gradients of a captured step then lie in its graph's pool, where replaying finds them.
        self._optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        self._optimizer.step()
        if self._totals is None:
            self._names, self._totals = tuple(terms), torch.zeros_like(values, dtype=torch.float64)
        self._totals += values.detach()

    def _capture(self, batches: _Batches) -> bool:
        """Captures the step; False where that fails, and from then on nothing is captured. A capture does nothing but
        record, so a failed one leaves weights, optimiser and totals as they were."""
        sharing = next((other.graph for other in self._lengths.values() if other.graph is not None), None)
        try:
            batches.graph = self._graphs.capture(partial(self._step, batches.inputs), sharing)
        except Exception as error:  # whatever a kernel, a library or the allocator refuses to do while capturing
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            _log.warning("training goes on without CUDA graphs; capturing a step failed: %s", reason)
            self._graphs = None
            self._lengths.clear()
            return False
        return True
