"""The ranks that share a global batch, and the few tensors that must travel between them.

Losses are per-sample values averaged over the global batch, so two things cross ranks: the partner field of each sample
(uniformity) and the text vectors (contrastive). Both travel differentiably; every rank calls every collective, with
rows or without, so that none waits for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Rank and number of ranks of the default process group. One rank needs no process group at all."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The running process group; one rank where none was initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, lists: Sequence[Sequence[int]], device: torch.device) -> list[list[list[int]]]:
        """Some lists of int64 numbers of every rank, in rank order; as many lists on all of them, of any lengths.

        Args:
            device: one that the process group serves. Nothing is pickled.
        """
        if self.size == 1:
            return [[list(numbers) for numbers in lists]]
        lengths = self._everyones(torch.tensor([len(numbers) for numbers in lists], device=device)).tolist()
        mine = torch.tensor([number for numbers in lists for number in numbers], dtype=torch.int64, device=device)
        padded = mine.new_zeros(max(map(sum, lengths)))
        padded[: len(mine)] = mine
        return [
            [numbers.tolist() for numbers in row[: sum(of_rank)].split(of_rank)]
            for row, of_rank in zip(self._everyones(padded), lengths)
        ]

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows (n_r, ...) of every rank in rank order, differentiable; ``counts`` are the n_r.

        The gradient that reaches a row is the sum over the ranks that used it.
        """
        return rows if self.size == 1 else _Gather.apply(rows, self, tuple(counts))

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Send the next ``send[q]`` rows to rank q, get ``receive[q]`` rows from it, in rank order; differentiable."""
        return rows if self.size == 1 else _Exchange.apply(rows, self, tuple(send), tuple(receive))

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks; not differentiable."""
        total = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def _everyones(self, row: Tensor) -> Tensor:
        """(n,) of equal length on all ranks → (ranks, n)."""
        everyone = row.new_empty(self.size * len(row))
        dist.all_gather_into_tensor(everyone, row)
        return everyone.view(self.size, -1)


class _Gather(torch.autograd.Function):
    """All-gather of ragged rows, padded to the longest; backward sums the gradients of all ranks."""

    @staticmethod
    def forward(ctx, rows: Tensor, world: World, counts: tuple[int, ...]) -> Tensor:
        ctx.world, ctx.counts = world, counts
        longest = max(counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = rows.new_empty(world.size * longest, *rows.shape[1:])
        dist.all_gather_into_tensor(everyone, padded)
        return torch.cat([everyone[rank * longest :][:count] for rank, count in enumerate(counts)])

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        start = sum(ctx.counts[: ctx.world.rank])
        return ctx.world.sum(gradient.contiguous())[start : start + ctx.counts[ctx.world.rank]], None, None


class _Exchange(torch.autograd.Function):
    """All-to-all of ragged rows; backward sends each gradient back where its row came from."""

    @staticmethod
    def forward(ctx, rows: Tensor, world: World, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
        ctx.world, ctx.send, ctx.receive = world, send, receive
        return _all_to_all(rows, world, send, receive)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        return _all_to_all(gradient, ctx.world, ctx.receive, ctx.send), None, None, None


def _all_to_all(rows: Tensor, world: World, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
    incoming = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(incoming, rows.contiguous(), list(receive), list(send))
    return incoming
