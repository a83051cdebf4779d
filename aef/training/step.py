"""One optimiser step over a global batch: forward → objective → backward → update. What trains, profiles and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from aef.data.batch import Batch
from aef.objective.coupling import Coupling
from aef.objective.objective import Losses, Objective

from .accumulation import CachedOutputs
from .bad_chips import suspects
from .deepspeed_engine import Engine
from .phases import PREFIX

OBJECTIVE, OPTIMIZER = PREFIX + "objective", PREFIX + "optimizer"


@dataclass
class Step:
    """What a step gave: its losses over the global batch, its learning rate and the gradient's norm, or ``grad_norm``
    None and the suspect samples of this rank where loss or gradient was not finite and the step was skipped on all
    ranks."""

    losses: Losses
    lr: float
    grad_norm: float | None
    suspects: list[str]


def take_step(engine: Engine, objective: Objective, batches: Sequence[Batch], lr: float) -> Step:
    """Forward, objective, backward and update for one global batch, of which this rank holds ``batches``."""
    if len(batches) == 1:
        coupling = Coupling.of(batches[0])
        outputs = [engine(batches[0])]
        with record_function(OBJECTIVE):
            losses = objective(outputs[0], batches[0], coupling=coupling)
        engine.backward(_poisoned(losses), last=True)
    else:
        # Uniformity and text couple the whole batch: cache outputs, take losses once, replay with their gradients.
        cache = CachedOutputs(batches)
        coupling = Coupling.of(cache.batch)
        with torch.no_grad():
            outputs = [engine(batch) for batch in batches]
        with record_function(OBJECTIVE):
            losses = objective(cache.join(outputs), cache.batch, coupling=coupling)
        _poisoned(losses).backward()
        for k, batch in enumerate(batches):
            engine.backward(cache.replay(k, engine(batch)), last=k == len(batches) - 1)
    with record_function(OPTIMIZER):
        norm = engine.step(lr)
    return Step(losses, lr, norm, [] if norm is not None else suspects(outputs, batches))


def _poisoned(losses: Losses) -> Tensor:
    """The total; times NaN where the global loss is not finite, so that every gradient says so, on every rank.

    One test of the gradient's norm then skips both cases, without waiting for the device in between.
    """
    return losses.total * (1 + (losses.loss - losses.loss)).to(losses.total.dtype)
