"""Whole training steps of `tiny` through the paths that a GPU takes where no kernel of ours runs: the pinned losses."""

import pytest
import torch

from aef import kernels
from aef.kernels.exchange import op as exchange
from aef.kernels.exchange.eager import up_norm_by_passes
from aef.kernels.precision_conv import op as precision_conv
from aef.kernels.precision_conv.library import conv3x3_by_passes
from aef.kernels.space_attention import library as space_library
from aef.kernels.temporal_pooling.library import pool_padded
from aef.kernels.time_attention import library as time_library
from aef.kernels.time_attention.reference import time_attention_reference
from tests.kernels.two_steps import LOSSES, TwoSteps


@pytest.fixture
def counted(monkeypatch):
    """`counted(place, name, function)`: `place.name` becomes `function`; the list that it returns grows with its calls."""

    def replace(place, name, function):
        calls = []

        def count(*arguments):
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(place, name, count)
        return calls

    return replace


def test_padded_attention_and_library_convolutions_give_the_pinned_losses(counted, monkeypatch):
    steps = TwoSteps(monkeypatch)
    replaced = [
        counted(kernels, "time_attention", time_library.attend_padded),
        counted(kernels, "temporal_pooling", pool_padded),
        counted(kernels, "space_attention", space_library.attend_sdpa),
        counted(precision_conv, "conv3x3_by_library", conv3x3_by_passes),
        counted(exchange, "_up_norm_by_library", up_norm_by_passes),
    ]
    assert steps()[0] == pytest.approx(LOSSES, rel=2e-4)
    assert all(replaced)


def test_variable_length_attention_gives_the_pinned_losses(counted, monkeypatch):
    def attend(query, key, value, cu_query, cu_key, longest_query, longest_key):
        qkv = torch.stack([query, key, value], dim=1)[:, None]  # every token a frame of one pixel
        return time_attention_reference(qkv, torch.zeros_like(qkv[:, 0]), cu_query, longest_query)[:, 0]

    steps = TwoSteps(monkeypatch)
    for place in (time_library, space_library):
        monkeypatch.setattr(place, "varlen_library", lambda channels: ("stand-in", attend))
    replaced = [
        counted(kernels, "time_attention", time_library.attend_varlen),
        counted(kernels, "space_attention", space_library.attend_varlen),
    ]
    assert steps()[0] == pytest.approx(LOSSES, rel=2e-4)
    assert all(replaced)
