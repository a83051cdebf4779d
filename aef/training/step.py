"""One optimiser step over a global batch: forward → objective → backward → update. What trains, profiles and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from aef.data.batch import Batch
from aef.objective.objective import Losses, Objective
from aef.objective.world import World

from .ahead import take_ahead
from .bad_chips import suspects
from .deepspeed_engine import Engine
from .phases import phase


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
    """Forward, objective, backward and update for one global batch, of which this rank holds ``batches``.

    They stay on the host; each is on the device while its pass runs.
    """
    losses = (_at_once if len(batches) == 1 else _one_by_one)(engine, objective, batches)
    with phase("optimizer"):
        norm = engine.step(lr)
    return Step(losses, lr, norm, [] if norm is not None else suspects(engine, batches))


def _at_once(engine: Engine, objective: Objective, batches: Sequence[Batch]) -> Losses:
    batch = engine.moved(batches[0])
    coupling = objective.couple(batch)
    output = engine(batch)
    with phase("objective"):
        losses = objective(output, batch, coupling=coupling)
    engine.backward(_poisoned(losses.total, losses.loss), last=True)
    return losses


def _one_by_one(engine: Engine, objective: Objective, batches: Sequence[Batch]) -> Losses:
    """Passes that need nothing more of each other: gradients add up, and ranks meet at the last one only."""
    shares, couplings = take_ahead(engine, objective, batches, objective.couple_passes(batches, device=engine.device))
    ahead = sum(share.total for share in shares)
    for k, (batch, coupling) in enumerate(zip(batches, couplings, strict=True)):
        moved = engine.moved(batch)
        output = engine(moved)
        with phase("objective"):
            share = objective.share(output, moved, coupling)
        del output, moved
        engine.backward(_poisoned(share.total, share.total.detach() + ahead), last=k == len(batches) - 1)
        shares.append(replace(share, total=share.total.detach()))
    with phase("objective"):
        return objective.report(shares, World.current())


def _poisoned(total: Tensor, loss: Tensor) -> Tensor:
    """The total; times NaN where the loss is not finite, so that every gradient says so, once averaged on every rank.

    One test of the gradient's norm then skips both cases, without waiting for the device in between.
    """
    return total * (1 + (loss - loss)).to(total.dtype)
