"""Groups of segments that a CPU handles in one batched call: short ones are padded to a common length."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class SegmentGroup:
    """Non-empty segments handled as one batch, longest first: segment i is the frames [starts[i], starts[i] +
    lengths[i])."""

    starts: list[int]
    lengths: list[int]

    @property
    def length(self) -> int:
        """Frames to which the group is padded."""
        return self.lengths[0]

    def gather(self, frames: Tensor) -> Tensor:
        """`frames` (F, …) → (segments, length, …); padding is zero."""
        if len(self.starts) == 1:
            return frames[self.starts[0] : self.starts[0] + self.length][None]
        gathered = frames.new_zeros(len(self.starts), self.length, *frames.shape[1:])
        for one, start, length in zip(gathered, self.starts, self.lengths):
            one[:length] = frames[start : start + length]
        return gathered

    def scatter(self, frames: Tensor, values: Tensor) -> None:
        """Write `values` (segments, length, …) to their places in `frames` (F, …); padding is dropped."""
        for one, start, length in zip(values, self.starts, self.lengths):
            frames[start : start + length] = one[:length]

    def mask_keys(self, scores: Tensor) -> Tensor:
        """Set the scores (segments, …, length) of padded keys to −∞, in place."""
        for one, length in zip(scores, self.lengths):
            if length < self.length:
                one[..., length:] = -torch.inf
        return scores


def group_segments(lengths: list[int], merge_squares: int) -> list[SegmentGroup]:
    """Cover all non-empty segments. A shorter segment joins a group while padding it to the group's length T wastes at
    most `merge_squares` pairs of frames (T² − L²)."""
    starts = [0, *accumulate(lengths)]
    longest_first = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    groups: list[SegmentGroup] = []
    for segment in longest_first:
        length = lengths[segment]
        if not groups or groups[-1].length ** 2 - length**2 > merge_squares:
            groups.append(SegmentGroup([], []))
        groups[-1].starts.append(starts[segment])
        groups[-1].lengths.append(length)
    return groups
