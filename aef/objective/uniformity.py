"""Batch uniformity (paper section 4.3): a field u is paired with the field u' of another place, rotated by one.

The paper prints a sum of 64 |u_i u'_i| but describes pairs of batch elements. ``pairs`` (R1, the default) is the mean
over batch and pixels of |⟨u, u'⟩|: about 0.0997 for uniform random vectors in 64 dimensions, 1 on collapse.
``channels`` (R2) is Σ over the 64 channels of |mean over batch and pixels of u_c u'_c|. Pixels are never flattened into
the batch before it is rotated: that would pair neighbouring pixels.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aef.objective.world import World

RANDOM_FLOOR = 0.0997
"""Of ``pairs``: mean |cosine| of random directions in 64 dimensions."""


def rings(global_index: Sequence[int], place: Sequence[Hashable], length: int = 0) -> list[list[int]]:
    """Positions of the samples in global order, cut into rings of ``length`` samples (0: all in one), each rotated by
    itself.

    A ring of one place, where nobody would have a partner, takes in the ring behind it; the last one joins the ring
    before it.
    """
    order = sorted(range(len(place)), key=lambda i: global_index[i])
    length = length or len(order)
    found: list[list[int]] = [[]]
    for first in range(0, len(order), length):
        if len({place[i] for i in found[-1]}) > 1:
            found.append([])
        found[-1] += order[first : first + length]
    if len(found) > 1 and len({place[i] for i in found[-1]}) < 2:
        last = found.pop()
        found[-1] += last
    return found


def partners(global_index: Sequence[int], place: Sequence[Hashable], length: int = 0) -> list[int] | None:
    """For each sample the position of its partner, cyclically in its ring (`rings`), which is a row of places.

    The i-th of the samples that a place has in a row (crops of a chip) takes the i-th of the next place, so that every
    field is a partner once where places have as many; where the next has fewer, its samples are taken in turn.

    Returns None where all samples are of one place. Positions refer to the two sequences.
    """
    if len(set(place)) < 2:
        return None
    found: dict[int, int] = {}
    for ring in rings(global_index, place, length):
        found.update(_rotated(ring, place))
    return [found[i] for i in range(len(place))]


def _rotated(order: list[int], place: Sequence[Hashable]) -> dict[int, int]:
    """Sample → partner within one ring of at least two places."""
    # A place may be cut by the end of the order: begin with the first of a row.
    first = next(step for step in range(len(order)) if place[order[step]] != place[order[step - 1]])
    rows = [list(row) for _, row in itertools.groupby(order[first:] + order[:first], key=lambda i: place[i])]
    found: dict[int, int] = {}
    for row, following in zip(rows, rows[1:] + rows[:1]):
        found.update(zip(row, itertools.cycle(following)))
    return found


@dataclass(frozen=True)
class Partners:
    """Where the samples of this rank that ask for their partner find it, and which fields travel for it, each once.

    own (A,) int64 of the samples that ask; None: all, in order. rows (sent,) int64 of this rank's fields in the order in
    which they are sent, send[q] of them to rank q; receive[q] rows come from rank q; index (A,) int64, each partner among
    what came.
    """

    own: Tensor | None
    rows: Tensor
    send: list[int]
    receive: list[int]
    index: Tensor

    @classmethod
    def of(cls, partner: Sequence[int | None], world: World, counts: Sequence[int]) -> Partners:
        """Of all ranks' samples in rank order, ``counts`` per rank: the position of each sample's partner, None where it
        does not ask."""
        first = [sum(counts[:rank]) for rank in range(world.size)]
        owner = [rank for rank, count in enumerate(counts) for _ in range(count)]

        def wanted(asking: int, holding: int) -> list[int]:
            """Local rows of rank ``holding`` that rank ``asking`` needs, each once."""
            rows = {j for j in partner[first[asking] : first[asking] + counts[asking]] if j is not None}
            return sorted(row - first[holding] for row in rows if owner[row] == holding)

        incoming = [wanted(world.rank, rank) for rank in range(world.size)]
        outgoing = [wanted(rank, world.rank) for rank in range(world.size)]
        came = (first[rank] + row for rank, rows in enumerate(incoming) for row in rows)
        arrived = {position: at for at, position in enumerate(came)}
        mine = partner[first[world.rank] : first[world.rank] + counts[world.rank]]
        own = [i for i, j in enumerate(mine) if j is not None]
        return cls(
            own=None if len(own) == len(mine) else torch.tensor(own, dtype=torch.int64),
            rows=torch.tensor([row for rows in outgoing for row in rows], dtype=torch.int64),
            send=[len(rows) for rows in outgoing],
            receive=[len(rows) for rows in incoming],
            index=torch.tensor([arrived[j] for j in mine if j is not None], dtype=torch.int64),
        )

    def to(self, device: torch.device) -> Partners:
        """On a device, without waiting for it."""
        own = None if self.own is None else self.own.to(device, non_blocking=True)
        rows, index = (one.to(device, non_blocking=True) for one in (self.rows, self.index))
        return dataclasses.replace(self, own=own, rows=rows, index=index)

    def fields(self, mean: Tensor, world: World) -> tuple[Tensor, Tensor]:
        """The fields of the samples that ask, and of their partners, from whichever rank holds them: (B, H, W, D) →
        twice (A, H, W, D), differentiable.

        The gradients of fields that travelled return and are added where they came from.
        """
        # Indexed, as the backward of index_select adds in no fixed order on a GPU, and several samples may share a partner.
        received = world.exchange(mean[self.rows], self.send, self.receive)
        return mean if self.own is None else mean.index_select(0, self.own), received[self.index]


def uniformity_pairs(mean: Tensor, partner: Tensor) -> Tensor:
    """R1: mean over the pixels of |⟨u, u'⟩|: (B, H, W, D), twice → (B,)."""
    return (mean * partner).sum(-1).abs().flatten(1).mean(1)


def uniformity_channels(mean: Tensor, partner: Tensor, world: World, samples: float) -> Tensor:
    """R2: this rank's part of Σ_c |mean_n,p u_c u'_c| (a scalar; the sum over the ranks is the value).

    The absolute value is of the global mean, whose sign is all that a rank needs to know of the others.
    """
    share = (mean * partner).mean((1, 2)).sum(0) / samples  # (D,)
    return (world.sum(share).sign() * share).sum()
