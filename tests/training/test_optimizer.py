"""What one update does: how far a gradient may reach, and which parameters decay."""

import dataclasses

import pytest
import torch
from torch import nn

from aef.config import PRESETS
from aef.model.layers import ChannelNorm, Linear
from aef.training.deepspeed_config import resolve
from aef.training.deepspeed_engine import Engine
from aef.training.distributed import start


class Weighing(nn.Module):
    """Σ ⟨w, x⟩: the gradient of w is x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x):
        return (self.weight * x).sum()


@pytest.fixture
def make_engine():
    """`make_engine(model, choice="single", **train)` → an `Engine`, closed at the end."""
    engines = []

    def make(model, choice="single", **train):
        config = dataclasses.replace(PRESETS["tiny"], train=dataclasses.replace(PRESETS["tiny"].train, **train))
        engine = Engine(model, config, resolve(choice, config, ranks=1, on_gpu=False, parameters=100), start(60.0))
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("choice", ["single", "zero1"])
@pytest.mark.parametrize(("clip_norm", "reach"), [(0.5, 0.5), (0.0, 10.0), (20.0, 10.0)])
def test_a_gradient_reaches_as_far_as_its_clipped_norm(make_engine, choice, clip_norm, reach):
    """With an epsilon far above any gradient Adam's first update is −lr g / ε, which shows what g it was given."""
    engine = make_engine(Weighing(), choice, clip_norm=clip_norm, eps=1e4)
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    gradient *= 10 / gradient.norm()
    engine.backward(engine(gradient), last=True)
    assert engine.step(lr=1e4) == pytest.approx(10, rel=1e-3)  # what is reported is the norm before clipping
    moved = engine.weights()["weight"]
    assert torch.allclose(moved, -gradient * reach / 10, rtol=5e-3)


@pytest.mark.parametrize("choice", ["single", "zero1"])
def test_updates_are_adams_by_its_formula(make_engine, choice):
    """Kingma and Ba 2015, algorithm 1, without decay, at a rate that changes from step to step as the schedule's does."""
    engine = make_engine(Weighing(), choice, betas=(0.9, 0.999), eps=1e-8, clip_norm=0.0)
    gradients = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))
    weight, first, second = (torch.zeros(3, 4, dtype=torch.float64) for _ in range(3))
    for step, (gradient, lr) in enumerate(zip(gradients, (0.1, 0.2, 0.05, 0.3)), 1):
        engine.backward(engine(gradient), last=True)
        engine.step(lr=lr)
        g = gradient.double()
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        weight = weight - lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        assert torch.allclose(engine.weights()["weight"].double(), weight, rtol=1e-5, atol=1e-7)


def test_matrices_decay_and_norms_and_biases_do_not(make_engine):
    model = nn.Sequential(Linear(4, 4), ChannelNorm(4))
    nn.init.ones_(model[0].bias)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine = make_engine(model, weight_decay=0.1)
    engine.backward(0 * engine(torch.ones(1, 4)).sum(), last=True)
    engine.step(lr=0.5)
    after = engine.weights()
    assert torch.allclose(after["0.weight"], before["0.weight"] * (1 - 0.5 * 0.1))
    assert all(torch.equal(after[name], before[name]) for name in ("0.bias", "1.weight", "1.bias"))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_tensor_of_odd_size_misaligns_no_other_in_the_flat_buffer(make_engine, weight_decay):
    model = nn.Sequential(Linear(16, 5), Linear(5, 16), Linear(16, 3), Linear(3, 16))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine = make_engine(model, "zero1", weight_decay=weight_decay)
    even = [parameter for parameter in model.parameters() if parameter.numel() % 8 == 0]
    assert len(even) == 6 and all(parameter.data_ptr() % 16 == 0 for parameter in even)
    assert all(torch.equal(value, before[name]) for name, value in engine.weights().items())
