"""A tiny model over the nine sources, with every optional part switched on."""

import dataclasses

import pytest
import torch

from aef.config import TINY
from aef.data.statistics import Statistics
from aef.model import AEF
from aef.sources import BUILT_IN, INPUTS

STATISTICS = Statistics.identity(BUILT_IN, BUILT_IN)


def build_model(*, seed: int = 0, inputs=INPUTS, targets=tuple(BUILT_IN), awake: bool = False, **changes) -> AEF:
    """A `tiny` model; `changes` are fields of ModelConfig. `awake`: zero-initialised layers are random instead."""
    torch.manual_seed(seed)
    config = dataclasses.replace(TINY.model, **{"period_bias": True, "text_dim": 8, **changes})
    model = AEF(config, BUILT_IN, STATISTICS, inputs=inputs, targets=targets)
    if awake:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
    return model


@pytest.fixture
def make_model():
    return build_model
