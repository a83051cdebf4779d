"""What couples the samples of a global batch, settled by the host before the forward pass.

Which sample is whose partner (uniformity) and which texts are negatives (contrastive term) depend on identities only,
not on any output. Settled first, while nothing is queued on the device, they cost next to nothing; asked for between
forward and backward, every answer would make the host wait until the whole forward pass is done.

Passes of an accumulated step forget each other's outputs. What they need of each other, embeddings of teachers, is taken
ahead of all of them, and each pass is left with the gradients of the terms that it meets others in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aef.data.batch import Batch
from aef.objective.contrastive import Texts, same_texts
from aef.objective.uniformity import Partners, partners
from aef.objective.world import World


@dataclass(frozen=True)
class Coupling:
    """One rank's view of what its samples meet: in the global batch, in one pass of an accumulated step, or ahead of all.

    world: the ranks whose samples meet; samples: over how many of theirs means are taken; partners: None where the global
    batch has one place only. text_rows: as `text_rows` gives them; texts: what they meet, None where the global batch has
    fewer than two different ones, and where they have met already. kept: what is left of terms taken ahead.
    """

    world: World
    samples: float
    partners: Partners | None
    text_rows: Tensor
    texts: Texts | None
    kept: Kept | None = None

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
        index, places = ([one for rank in known for one in rank[which]] for which in range(2))
        partner = partners(index, places, ring)
        found = None if partner is None else Partners.of(partner, world, [len(places) for _, places, _ in known])
        return cls(
            world=world,
            samples=len(index),
            partners=None if found is None else found.to(device),
            text_rows=text_rows(batch),
            texts=_texts([texts for _, _, texts in known], world, device),
        )


@dataclass(frozen=True)
class Kept:
    """Gradients that terms taken ahead have with respect to what a pass will make again: ``fields`` of the teachers of its
    samples ``rows``, ``text`` and ``place`` of its texts, and this pass's part of that of ``logit_scale``."""

    rows: Tensor
    fields: Tensor
    text: Tensor
    place: Tensor
    logit_scale: Tensor

    def term(self, teacher: Tensor, text: Tensor, place: Tensor, logit_scale: Tensor) -> Tensor:
        """A scalar of value 0 with these gradients."""
        made = (teacher.index_select(0, self.rows), text, place, logit_scale)
        kept = (self.fields, self.text, self.place, self.logit_scale)
        linear = torch.stack([(again * gradient).sum() for again, gradient in zip(made, kept, strict=True)]).sum()
        return linear - linear.detach()


@dataclass(frozen=True)
class Passes:
    """The passes of an accumulated step on one rank.

    couplings: of each pass, of a world of its own; means are shares of this rank's mean, ranks take the mean of theirs.
    ahead: of the samples ``chosen`` in each pass, whose teachers are embedded first; None where no pass of any rank needs
    anything of another. most: of the rank with the most of them.
    """

    couplings: list[Coupling]
    ahead: Coupling | None
    chosen: list[list[int]]
    most: int

    @classmethod
    def of(
        cls,
        batches: Sequence[Batch],
        world: World | None = None,
        *,
        device: torch.device | str = "cpu",
        ring: int = 0,
        whole: bool = False,
    ) -> Passes:
        """Settle it. Collective.

        Args:
            batches: on the host.
            device: where the passes will run.
            ring: as of `Coupling.of`.
            whole: all partners meet ahead, not only those that are in two passes (R2, a mean over all samples).
        """
        world = world or World.current()
        device = torch.device(device)
        first = [sum(batch.samples for batch in batches[:k]) for k in range(len(batches))]
        mine = (
            [index for batch in batches for index in batch.global_index],
            [place for batch in batches for place in batch.places],
            [identity for batch in batches for identity in _identities(batch)],
            [batch.samples for batch in batches],
            [start + i for start, batch in zip(first, batches, strict=True) for i in batch.samples_with_text()],
        )
        known = world.share(mine, device)
        index, places = ([one for rank in known for one in rank[which]] for which in range(2))
        counts = [len(lists[0]) for lists in known]
        homes = [(rank, k) for rank, lists in enumerate(known) for k, size in enumerate(lists[3]) for _ in range(size)]
        partner = partners(index, places, ring)
        texts = _texts([lists[2] for lists in known], world, device)

        starts = [sum(counts[:rank]) for rank in range(world.size)]
        asking = {i: j for i, j in enumerate(partner or ()) if whole or homes[i] != homes[j]}
        wanted = {*asking, *asking.values()}
        if texts is not None:
            wanted |= {start + i for start, lists in zip(starts, known, strict=True) for i in lists[4]}
        at = {position: row for row, position in enumerate(sorted(wanted))}
        of_rank = [sum(homes[position][0] == rank for position in wanted) for rank in range(world.size)]
        none, ahead = torch.zeros(0, dtype=torch.int64, device=device), None
        if wanted:
            met = None
            if asking:
                met = Partners.of([at[asking[i]] if i in asking else None for i in at], world, of_rank).to(device)
            ahead = Coupling(world, len(index), met, none, texts)

        couplings, chosen = [], []
        for batch, start in zip(batches, (starts[world.rank] + one for one in first), strict=True):
            rows = range(start, start + batch.samples)
            inner = None
            if partner is not None:
                local = [None if i in asking else partner[i] - start for i in rows]
                inner = Partners.of(local, World(), [batch.samples]).to(device)
            own = none if texts is None else text_rows(batch).to(device, non_blocking=True)
            couplings.append(Coupling(World(), len(index) / world.size, inner, own, None))
            chosen.append([i - start for i in rows if i in wanted])
        return cls(couplings, ahead, chosen, max(of_rank))


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
