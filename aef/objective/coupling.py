"""What couples the samples of a global batch, settled by the host before the forward pass.

Which sample is whose partner (uniformity) and which texts are negatives (contrastive term) depend on identities only,
not on any output. Settled first, while nothing is queued on the device, they cost next to nothing; asked for between
forward and backward, every answer would make the host wait until the whole forward pass is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aef.data.batch import Batch
from aef.objective.contrastive import same_texts
from aef.objective.uniformity import Partners, partners
from aef.objective.world import World


@dataclass(frozen=True)
class Coupling:
    """One rank's view of what its samples meet, in the global batch or in one pass of an accumulated step.

    world: the ranks whose samples meet; samples: over how many of theirs means are taken; partners: None where there is
    one place only.
    texts: of each rank; text_rows (K,) int64, this rank's rows of ``Batch.text`` without the dummy; same_text (K, texts
    of all ranks) bool, pairs that are no negatives: None where there are fewer than two different texts.
    """

    world: World
    samples: float
    partners: Partners | None
    texts: list[int]
    text_rows: Tensor
    same_text: Tensor | None

    @classmethod
    def of(cls, batch: Batch, world: World | None = None, *, ring: int = 0) -> Coupling:
        """Settle it for this rank's samples of the global batch. Collective.

        Args:
            world: None: the running process group.
            ring: samples in a row of the global order that are partners of each other; 0: all of them.
        """
        world = world or World.current()
        rows = [row for row, identity in enumerate(batch.text.identity) if identity is not None]
        identities = [identity for identity in batch.text.identity if identity is not None]
        device = batch.teacher_row.device
        known = world.share((batch.global_index, batch.places, identities), device)
        samples, texts = [len(places) for _, places, _ in known], [len(texts) for _, _, texts in known]
        index, places, everyone = ([one for rank in known for one in rank[which]] for which in range(3))
        same = same_texts(everyone, sum(texts[: world.rank]), len(rows))
        found = Partners.of(index, places, world, samples, ring)
        return cls(
            world=world,
            samples=sum(samples),
            partners=None if found is None else found.to(device),
            texts=texts,
            text_rows=torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True),
            same_text=None if same is None else same.to(device, non_blocking=True),
        )

    @classmethod
    def of_passes(cls, batches: Sequence[Batch], world: World | None = None, *, ring: int = 0) -> list[Coupling] | None:
        """Couplings of the passes of a step, if the samples of each meet nobody else: no partner, no text. Collective.

        Each is of a world of its own, and its means are shares of this rank's mean; ranks take the mean of theirs.

        Returns None, on every rank, where samples of two passes are coupled.
        """
        world = world or World.current()
        device = batches[0].teacher_row.device
        mine = (
            [index for batch in batches for index in batch.global_index],
            [place for batch in batches for place in batch.places],
            [identity for batch in batches for identity in batch.text.identity if identity is not None],
            [batch.samples for batch in batches],
        )
        known = world.share(mine, device)
        index, places, texts = ([one for rank in known for one in rank[which]] for which in range(3))
        if len(set(texts)) > 1:
            return None
        homes = [
            (rank, at) for rank, lists in enumerate(known) for at, size in enumerate(lists[3]) for _ in range(size)
        ]
        partner = partners(index, places, ring)
        if partner is not None and any(homes[i] != homes[j] for i, j in enumerate(partner)):
            return None
        couplings, first = [], homes.index((world.rank, 0))
        for batch in batches:
            own = None if partner is None else [j - first for j in partner[first : first + batch.samples]]
            couplings.append(
                cls(
                    world=World(),
                    samples=len(index) / world.size,
                    partners=None if own is None else Partners.within(own).to(device),
                    texts=[0],
                    text_rows=torch.zeros(0, dtype=torch.int64, device=device),
                    same_text=None,
                )
            )
            first += batch.samples
        return couplings
