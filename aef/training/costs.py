"""What a sample costs to train on, known before any chip is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from aef.config import Config
from aef.data.chips import ChipError
from aef.data.dataset import ChipDataset
from aef.timecode import DAY_MS


class ExpectedFrames(Sequence[float]):
    """Frames that a sample of each training chip is expected to encode: each input source up to its budget, within one
    support; 0 of a chip that cannot be read. The folder's index tells, so that nothing is read, kept or sent."""

    def __init__(self, chips: ChipDataset, config: Config) -> None:
        self.chips, self.config = chips, config
        self._index = chips.folder.index  # now: all processes of this rank must share samples by the same figures

    def fingerprint(self) -> str:
        """What sharing samples among ranks depends on: which chips there are, in which order, with how many frames."""
        digest = hashlib.sha256(np.asarray(self.chips.index).astype(np.int64).tobytes())
        for column in (self._index.names.text, self._index.names.ends, self._index.frames, self._index.seconds):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def require_same(self, first: str) -> None:
        """Raises ChipError where rank 0 has found other chips: some samples would be drawn twice and others never."""
        if self.fingerprint() != first:
            raise ChipError(
                "this rank finds other chips than rank 0: the folder changed while the run opened, or its file system is not "
                "yet the same on all machines; try again",
                file=self.chips.folder.path,
            )

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, number: Any) -> Any:
        data, registry, total = self.config.data, self.chips.folder.registry, 0.0
        frames_of = self.chips.folder.frames(self.chips.index[number], self.chips.sampler.inputs)
        for name, (frames, seconds) in frames_of.items():
            years = max(1.0, 1000 * seconds / (data.support_days * DAY_MS))
            total += min(frames / years, data.frame_budget * registry[name].frame_budget)
        return total
