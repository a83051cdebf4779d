"""Samples of one chip, drawn as training draws them."""

from __future__ import annotations

import dataclasses

from aef.config import DataConfig
from aef.data.sampling import Sampler
from aef.sources import BUILT_IN

CONFIG = DataConfig(chip_px=16, frame_budget=1.0)


def sampler(**settings) -> Sampler:
    extra = {key: settings.pop(key) for key in ("inputs", "targets", "withheld", "text") if key in settings}
    return Sampler(dataclasses.replace(CONFIG, **settings), BUILT_IN, **extra)


def draw(chip, epoch=0, **settings):
    return sampler(**settings).draw(chip, seed=0, epoch=epoch, global_index=0)


def draws(chip, count, **settings):
    one = sampler(**settings)
    return [one.draw(chip, seed=0, epoch=epoch, global_index=epoch) for epoch in range(count)]
