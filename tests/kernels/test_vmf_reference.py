"""The von Mises–Fisher sampler against theory, and its random words against the published Philox vectors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from aef.kernels import sample_vmf
from aef.kernels.vmf.philox import philox4x32
from aef.kernels.vmf.reference import sample_vmf_reference, versine_table

KEY = (7, 3)


def directions(count, dimension=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, dimension, generator=generator, dtype=dtype), dim=1)


def mean_resultant(kappa, dimension):
    """A_D(κ) = I_{D/2}(κ) / I_{D/2−1}(κ) by the continued fraction of Amos, from far below."""
    ratio = 0.0
    for step in range(20_000, -1, -1):
        ratio = 1 / ((dimension + 2 * step) / kappa + ratio)
    return ratio


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers for philox4x32-10
        ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    found = philox4x32(key, *(torch.tensor([word]) for word in counter))
    assert " ".join(f"{int(word):08x}" for word in found) == words


@pytest.mark.parametrize(("kappa", "dimension"), [(8000.0, 64), (50.0, 64), (1.0, 64), (5.0, 3), (1e6, 64)])
def test_cosine_has_the_mean_and_variance_of_theory(kappa, dimension):
    count = 40_000
    mean = directions(1, dimension).expand(count, -1)
    cosine = (sample_vmf(mean, kappa, KEY, torch.arange(count)) * mean).sum(dim=1)
    expected = mean_resultant(kappa, dimension)
    variance = 1 - expected**2 - (dimension - 1) / kappa * expected
    assert abs(cosine.mean() - expected) < 4.5 * (variance / count) ** 0.5
    assert abs(cosine.var() / variance - 1) < 0.06


def test_cosine_follows_the_exact_distribution_in_three_dimensions():
    count, kappa = 40_000, 5.0
    mean = directions(1, 3).expand(count, -1)
    cosine = (sample_vmf(mean, kappa, KEY, torch.arange(count)) * mean).sum(dim=1).sort().values
    exact = (torch.exp(kappa * (cosine - 1)) - np.exp(-2 * kappa)) / (1 - np.exp(-2 * kappa))
    empirical = (torch.arange(count) + 0.5) / count
    assert (exact - empirical).abs().max() < 1.95 / count**0.5  # Kolmogorov–Smirnov, p ≈ 0.001


def test_tangent_directions_are_uniform():
    count = 40_000
    mean = directions(1).expand(count, -1)
    sample = sample_vmf(mean, 8000.0, KEY, torch.arange(count))
    tangent = F.normalize(sample - (sample * mean).sum(dim=1, keepdim=True) * mean, dim=1)
    projector = torch.eye(64).double() - mean[0, :, None] * mean[0]
    assert (tangent.T @ tangent / count - projector / 63).abs().max() < 6 * (2 / 63**2 / count) ** 0.5
    assert tangent.mean(dim=0).norm() < 1.5 / count**0.5


def test_samples_are_unit_vectors_and_repeat_with_key_and_counter():
    mean, counter = directions(64, dtype=torch.float32), torch.arange(64) + 2**40
    sample = sample_vmf(mean, 8000.0, KEY, counter)
    torch.testing.assert_close(sample.norm(dim=1), torch.ones(64))
    backwards = sample_vmf(mean.flip(0), 8000.0, KEY, counter.flip(0)).flip(0)
    assert torch.equal(sample, backwards)
    for key, other in (((8, 3), counter), ((7, 4), counter), (KEY, counter - 2**40)):
        assert (sample_vmf(mean, 8000.0, key, other) != sample).any(dim=1).all()


def test_gradient_to_the_mean_agrees_with_finite_differences():
    mean = directions(3, 8).requires_grad_()
    counter = torch.tensor([0, 5, 2**33])
    assert torch.autograd.gradcheck(lambda one: sample_vmf(one, 20.0, KEY, counter), (mean,))


def test_table_is_monotone_and_within_the_sphere():
    for kappa in (0.5, 8000.0):
        table = versine_table(kappa, 64)
        assert (table.diff() < 0).all()
        assert table.min() >= 0
        assert table.max() <= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": torch.zeros(4)}, "mean: expected 2 dimensions"),
        ({"counter": torch.zeros(4)}, "counter: expected torch.int64"),
        ({"counter": torch.zeros(3, dtype=torch.int64)}, "counter: expected N = 4"),
        ({"kappa": 0.0}, "kappa: expected a positive"),
        ({"key": (1, -1)}, "key: expected"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(change, words):
    arguments = {"mean": directions(4), "kappa": 8000.0, "key": KEY, "counter": torch.arange(4)}
    with pytest.raises(ValueError, match=words):
        sample_vmf(**arguments | change)


class _Copies(TorchDispatchMode):
    """Counts copies from the host to another device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        moved = function is torch.ops.aten._to_copy.default and arguments[0].device.type == "cpu"
        self.count += moved and (keywords or {}).get("device") != torch.device("cpu")
        return function(*arguments, **(keywords or {}))


def test_the_table_is_copied_to_a_device_once_as_a_gpu_waits_for_a_copy():
    mean, counter = torch.ones(3, 64, device="meta"), torch.arange(3, device="meta")
    with _Copies() as copies:
        for _ in range(3):
            sample_vmf_reference(mean, 123.0, (0, 0), counter)
    assert copies.count == 1


def test_the_reference_compiles_as_one_graph():
    made = torch.compile(sample_vmf_reference, fullgraph=True, dynamic=False, backend="eager")
    arguments = (F.normalize(torch.ones(3, 64), dim=1), 8000.0, (0, 0), torch.arange(3))
    assert torch.equal(made(*arguments), sample_vmf_reference(*arguments))
