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
from aef.objective.contrastive import TextGradients, Texts, same_texts
from aef.objective.uniformity import Partners, partners
from aef.objective.world import World


@dataclass(frozen=True)
class Coupling:
    """One rank's view of what its samples meet, in the global batch or in one pass of an accumulated step.

    world: the ranks whose samples meet; samples: over how many of theirs means are taken; partners: None where there is
    one place only.
    text_rows: as `text_rows` gives them; texts: what they meet, None where the global batch has fewer than two different
    ones.
    """

    world: World
    samples: float
    partners: Partners | None
    text_rows: Tensor
    texts: Texts | TextGradients | None

    @classmethod
    def of(cls, batch: Batch, world: World | None = None, *, ring: int = 0) -> Coupling:
        """Settle it for this rank's samples of the global batch. Collective.

        Args:
            world: None: the running process group.
            ring: samples in a row of the global order that are partners of each other; 0: all of them.
        """
        world = world or World.current()
        identities = _identities(batch)
        device = batch.teacher_row.device
        known = world.share((batch.global_index, batch.places, identities), device)
        samples = [len(places) for _, places, _ in known]
        index, places = ([one for rank in known for one in rank[which]] for which in range(2))
        found = Partners.of(index, places, world, samples, ring)
        return cls(
            world=world,
            samples=sum(samples),
            partners=None if found is None else found.to(device),
            text_rows=text_rows(batch),
            texts=_texts([texts for _, _, texts in known], world, device),
        )


@dataclass(frozen=True)
class Passes:
    """The passes of an accumulated step: a coupling for each, and the texts of all of them, which meet whatever pass
    holds them: None where there are fewer than two different ones, otherwise the couplings wait for their gradients.

    text_samples: samples with a text on the rank that has most of them.
    """

    couplings: list[Coupling]
    texts: Texts | None
    text_samples: int

    @classmethod
    def of(cls, batches: Sequence[Batch], world: World | None = None, *, ring: int = 0) -> Passes | None:
        """Settle it, if each sample's partner is in its own pass. Collective.

        Each coupling is of a world of its own, and its means are shares of this rank's mean; ranks take the mean of theirs.

        Returns None, on every rank, where partners are in two passes.
        """
        world = world or World.current()
        device = batches[0].teacher_row.device
        mine = (
            [index for batch in batches for index in batch.global_index],
            [place for batch in batches for place in batch.places],
            [identity for batch in batches for identity in _identities(batch)],
            [batch.samples for batch in batches],
            [sum(len(batch.samples_with_text()) for batch in batches)],
        )
        known = world.share(mine, device)
        index, places = ([one for rank in known for one in rank[which]] for which in range(2))
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
                Coupling(
                    world=World(),
                    samples=len(index) / world.size,
                    partners=None if own is None else Partners.within(own).to(device),
                    text_rows=text_rows(batch),
                    texts=None,
                )
            )
            first += batch.samples
        return cls(couplings, _texts([lists[2] for lists in known], world, device), max(lists[4][0] for lists in known))


def _identities(batch: Batch) -> list[int]:
    return [identity for identity in batch.text.identity if identity is not None]


def text_rows(batch: Batch) -> Tensor:
    """(K,) int64 rows of ``Batch.text`` without the dummy."""
    rows = [row for row, identity in enumerate(batch.text.identity) if identity is not None]
    return torch.tensor(rows, dtype=torch.int64).to(batch.teacher_row.device, non_blocking=True)


def _texts(identities: Sequence[Sequence[int]], world: World, device: torch.device) -> Texts | None:
    """Of the identities on each rank."""
    counts = [len(of_rank) for of_rank in identities]
    everyone = [identity for of_rank in identities for identity in of_rank]
    same = same_texts(everyone, sum(counts[: world.rank]), counts[world.rank])
    return None if same is None else Texts(world, counts, same.to(device, non_blocking=True))
