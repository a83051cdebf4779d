"""Chips that a run passed over, known to every rank: named once, counted, and not more than a run may do without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from aef.data.batch import Batch
from aef.model.aef import Output

from .deepspeed_engine import Engine
from .distributed import Ranks


class BadChips:
    """Names of the chips that the run has passed over so far.

    Args:
        chips: training chips of the run.
        most: share of them that may be bad (``data.max_bad``); one always may.
        known: those of the checkpoint from which the run goes on.
    """

    def __init__(self, chips: int, most: float, known: Iterable[str] = ()) -> None:
        self.chips, self.most = chips, most
        self.names = set(known)

    def add(self, own: Sequence[tuple[str, str]], ranks: Ranks) -> dict[str, str]:
        """Take in what each rank has found; returns the new ones with what is wrong with each, on every rank. Collective."""
        new: dict[str, str] = {}
        for of_rank in ranks.gather(list(own)):
            for name, reason in of_rank:
                if name not in self.names:
                    new.setdefault(name, reason)
        self.names |= new.keys()
        return new

    @property
    def too_many(self) -> str | None:
        """Why the run must not go on, or None."""
        if len(self.names) <= max(1, self.most * self.chips):
            return None
        return (
            f"{len(self.names)} of {self.chips} training chips are bad, more than data.max_bad={self.most:g} of them: events.jsonl "
            "names each; make them again, or raise data.max_bad"
        )


def suspects(engine: Engine, batches: Sequence[Batch]) -> list[str]:
    """Samples of this rank whose fields, reconstructions or targets are not finite, in one more forward pass.

    Collective. Of a step that was skipped the weights are as they were, so what it met is met again.
    """
    return [name for batch in batches for name in _not_finite(engine, batch)]


@torch.no_grad()
def _not_finite(engine: Engine, batch: Batch) -> list[str]:
    batch = engine.moved(batch)
    output: Output = engine(batch)
    bad = ~output.mean.flatten(1).isfinite().all(1)[batch.teacher_row]
    for name, reconstruction in output.reconstructions.items():
        block = batch.targets[name]
        values = block.values.flatten(1).isfinite().all(1) | ~block.valid.flatten(1).any(1)
        item = ~(reconstruction.flatten(1).isfinite().all(1) & values) & (block.item_weight > 0)
        bad[block.sample[item]] = True
    return [batch.sample_ids[i] for i in bad.nonzero()[:, 0].tolist()]
