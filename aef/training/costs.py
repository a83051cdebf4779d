"""What a sample costs to train on, known before any chip is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aef.config import Config
from aef.data.dataset import ChipDataset
from aef.timecode import DAY_MS


class ExpectedFrames(Sequence[float]):
    """Frames that a sample of each training chip is expected to encode: each input source up to its budget, within one
    support; 0 of a chip that cannot be read. The folder's index tells, so that nothing is read, kept or sent."""

    def __init__(self, chips: ChipDataset, config: Config) -> None:
        self.chips, self.config = chips, config

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, number: Any) -> Any:
        data, registry, total = self.config.data, self.chips.folder.registry, 0.0
        found = self.chips.folder.frames(self.chips.index[number], self.chips.sampler.inputs)
        for name, (frames, seconds) in found.items():
            years = max(1.0, 1000 * seconds / (data.support_days * DAY_MS))
            total += min(frames / years, data.frame_budget * registry[name].frame_budget)
        return total
