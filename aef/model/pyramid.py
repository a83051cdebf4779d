"""The learned Laplacian pyramid: how the three paths exchange their states after every block.

Levels of a crop of side L: L/2 (precision), L/4 (nobody's), L/8 (time), L/16 (space). Paper section 2: every operator
passes its state to every operator of the next block; the topology is not stated, and the following is ours.

A Laplacian pyramid splits a state x into its coarse part d = down(x) and its band x − up(d), and rebuilds x as
band + up(d). Here the coarse levels add their own states before x is rebuilt, level by level:

    going down     d₄ = down(p)            m₈ = t + down(d₄)         m₁₆ = s + down(m₈)
    bands          p − up(d₄)              d₄ − up(m₈ − t)           m₈ − up(m₁₆ − s)
    going up       t' = m₈ band + up(m₁₆)  q = d₄ band + up(t')      p' = p band + up(q)

`up` is linear, so a band's −up(d) and the rebuilding's +up(d) cancel: t' = m₈ + up(s), and with it q − d₄ =
up(t + up(s)), p' = p + up(q − d₄). What a level receives from below is only what the coarser levels added, never its own
echo, and the exchange costs one down and one up per level (the identity is a test).

The last layer before each merge starts at zero: at first, blocks are three independent networks.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from .layers import ChannelNorm, Down, Up


class States(NamedTuple):
    """What flows between blocks: precision (F, L/2, L/2, C_P), time (F, L/8, L/8, C_T), space (F, L/16, L/16, C_S).

    normal: the LayerNorm of `precision` that the next block reads, where the merge that made the state wrote it too.
    """

    precision: Tensor
    time: Tensor
    space: Tensor
    normal: Tensor | None = None


def level_widths(precision: int, time: int, space: int) -> tuple[int, int, int, int]:
    """Channels at L/2, L/4, L/8, L/16: the quarter level, which is nobody's, has twice the precision width."""
    return precision, 2 * precision, time, space


class Descent(nn.Module):
    """The first states of the time and space paths, from the projectors' output by a learned chain."""

    def __init__(self, widths: tuple[int, int, int, int], kernel: int) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.down4 = Down(half, quarter, kernel)
        self.down8 = Down(quarter, eighth, kernel)
        self.down16 = Down(eighth, sixteenth, kernel)

    def forward(self, precision: Tensor) -> States:
        time = self.down8(self.down4(precision))
        return States(precision, time, self.down16(time))


class Exchange(nn.Module):
    """Sum-merge of all states into all states: the end of a block."""

    def __init__(self, widths: tuple[int, int, int, int], kernel: int) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.down4 = Down(half, quarter, kernel)
        self.down8 = Down(quarter, eighth, kernel, zero=True)
        self.down16 = Down(eighth, sixteenth, kernel, zero=True)
        self.up8 = Up(sixteenth, eighth, kernel, zero=True)
        self.up4 = Up(eighth, quarter, kernel)
        self.up2 = Up(quarter, half, kernel, zero=True)

    def forward(self, states: States, reader: ChannelNorm | None = None) -> States:
        """`reader`: the next block's norm of the precision state, which the finest merge then writes as well."""
        precision, time, space, _ = states
        lowered = self.down8(self.down4(precision))
        added = self.up8(space, into=time)
        raised, normal = _half_of(precision, self.up4(added)), None
        if reader is None:
            precision = self.up2(raised, into=precision)
        else:
            precision, normal = reader(precision, partial(self.up2, raised))
        return States(
            precision=precision,
            time=added + lowered,
            space=space + self.down16(time + lowered),
            normal=normal,
        )


def _half_of(finer: Tensor, raised: Tensor) -> Tensor:
    """`raised` at half the sides of `finer`: it comes from an eighth, and has a row too many where the quarter is odd."""
    return raised[:, : finer.shape[1] // 2, : finer.shape[2] // 2]


class Ascent(nn.Module):
    """The last learned resampling: time and space are merged into the precision path, (F, L/2, L/2, C_P).

    The merge starts small: the coarse paths are smooth, and at full strength they hide the pixels until the network has
    learnt to tell the two apart (docs/results/learning.md). Not at zero, because a zero merge stands before it.
    """

    MERGE_GAIN = 0.1

    def __init__(self, widths: tuple[int, int, int, int], kernel: int) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.up8 = Up(sixteenth, eighth, kernel)
        self.up4 = Up(eighth, quarter, kernel)
        self.up2 = Up(quarter, half, kernel, gain=self.MERGE_GAIN)

    def forward(self, states: States) -> Tensor:
        added = self.up8(states.space, into=states.time)
        return self.up2(_half_of(states.precision, self.up4(added)), into=states.precision)
