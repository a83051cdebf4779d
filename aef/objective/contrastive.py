"""Alignment of text and embedding (paper section 4.5): symmetric InfoNCE over all rows with text, of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aef.objective.world import World


def disc_mean(mean: Tensor, period_row: Tensor, pixel: Tensor, radius_px: Tensor) -> Tensor:
    """Unit mean of the embeddings at a text's pixel, or over the disc of its positional uncertainty.

    Args:
        mean: (Q, H, W, D) unit vectors.
        period_row: (K,) which summary.
        pixel: (K, 2) row and column.
        radius_px: (K,) pixels whose centres lie this near count, the pixel itself always.

    Returns:
        (K, D) unit vectors.
    """
    height, width = mean.shape[1:3]
    rows = torch.arange(height, device=mean.device) - pixel[:, :1]  # (K, H)
    cols = torch.arange(width, device=mean.device) - pixel[:, 1:]
    square = rows[:, :, None] ** 2 + cols[:, None, :] ** 2  # (K, H, W)
    disc = (square <= radius_px[:, None, None] ** 2) | (square == 0)
    # Indexed, as the backward of index_select adds in no fixed order on a GPU, and several texts share a summary.
    total = torch.where(disc[..., None], mean[period_row], 0).sum((1, 2))
    return F.normalize(total, dim=-1, eps=1e-6)


def same_texts(identity: Sequence[int], first: int, count: int) -> Tensor | None:
    """Which texts of all ranks are the same as each of this rank's, rows ``first`` to ``first + count``, themselves
    excepted: (count, all) bool. None (on every rank) where there are fewer than two different texts."""
    if len(set(identity)) < 2:
        return None
    everyone = torch.tensor(identity, dtype=torch.int64)
    same = everyone[first : first + count, None] == everyone[None, :]
    same[torch.arange(count), torch.arange(first, first + count)] = False
    return same


def info_nce(text: Tensor, place: Tensor, same: Tensor, scale: Tensor, world: World, counts: Sequence[int]) -> Tensor:
    """Symmetric InfoNCE of this rank's K rows against the rows of all ranks.

    ½ (−log softmax_j(s t_k · m_j)_k − log softmax_j(s m_k · t_j)_k); rows j ≠ k of the same identity (the same text)
    are left out of row k's denominators.

    Args:
        text, place: (K, D) unit vectors of the text and of its place; K may be 0 on this rank.
        same: (K, texts of all ranks) bool, as `same_texts` gives it.
        scale: (1,) inverse temperature.
        counts: rows per rank.

    Returns:
        (K,) values.
    """
    vectors = world.gather(torch.cat((text, place), 1), counts)
    all_text, all_place = vectors.chunk(2, dim=1)
    row = torch.arange(len(text), device=text.device) + sum(counts[: world.rank])

    def cross_entropy(from_: Tensor, to: Tensor) -> Tensor:
        return F.cross_entropy((scale * (from_ @ to.T)).masked_fill(same, -torch.inf), row, reduction="none")

    return (cross_entropy(text, all_place) + cross_entropy(place, all_text)) / 2


# --- the term --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """The texts of a global batch: how many each rank holds, and ``same`` (K, texts of all ranks) bool, this rank's pairs
    that are no negatives."""

    world: World
    counts: Sequence[int]
    same: Tensor

    def term(self, text: Tensor, place: Tensor, logit_scale: Tensor) -> Tensor:
        """This rank's share, whose mean over the ranks is the mean over all texts; ``text``, ``place`` (K, D)."""
        values = info_nce(text, place, self.same, logit_scale.exp(), self.world, self.counts)
        return values.sum() * self.world.size / sum(self.counts)
