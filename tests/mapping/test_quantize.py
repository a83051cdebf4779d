"""The published int8 code: formula, limits, no data, and the official vectors themselves."""

import csv
from pathlib import Path

import numpy as np
import pytest

from aef.mapping import dequantize, quantize

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "aef_official_points"


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, 64))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_one_and_minus_one_are_127_and_the_no_data_code_is_never_made():
    assert quantize(np.array([1.0, -1.0, 0.0])).tolist() == [127, -127, 0]
    everything = quantize(np.linspace(-1, 1, 10_001)[None])
    assert everything.min() == -127 and everything.max() == 127


def test_halves_round_to_even():
    halves = (np.array([0.5, 1.5, 2.5]) / 127.5) ** 2
    assert quantize(halves).tolist() == [0, 2, 2]


def test_random_unit_vectors_survive_within_the_published_error():
    x = unit_vectors(20_000)
    back = dequantize(quantize(x, axis=1), axis=1, dtype=np.float64)
    cosine = (x * back).sum(1) / np.linalg.norm(back, axis=1)
    assert cosine.min() > 0.9998
    assert np.abs(back - x).max() < 0.006
    assert np.abs(np.linalg.norm(back, axis=1) - 1).max() < 0.01


def test_every_code_survives_dequantise_and_quantise():
    codes = np.arange(-127, 128, dtype=np.int8)
    assert np.array_equal(quantize(dequantize(codes[None])), codes[None])


def test_a_missing_vector_is_no_data_in_every_band_and_comes_back_as_nan():
    field = np.moveaxis(unit_vectors(6).reshape(2, 3, 64), -1, 0)
    field[:, 1, 2] = np.nan
    codes = quantize(field)
    assert (codes[:, 1, 2] == -128).all() and (codes == -128).sum() == 64
    assert np.isnan(dequantize(codes)[:, 1, 2]).all()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: quantize(np.ones((64, 2), np.int16)), "floating-point"),
        (lambda: quantize(np.full((64, 2), 3.0)), "normalise"),
        (lambda: quantize(np.where(np.arange(64)[:, None] == 3, np.nan, np.full((64, 2), 0.1))), "all bands or none"),
        (lambda: dequantize(np.ones((64, 2))), "int8"),
        (
            lambda: dequantize(np.where(np.arange(64)[:, None] == 3, -128, np.ones((64, 2))).astype(np.int8)),
            "all bands",
        ),
    ],
)
def test_bad_input_gets_one_clear_line(call, reason):
    with pytest.raises(ValueError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the sample data is not beside the checkout")
def test_the_official_vectors_pass_through_unchanged():
    rows = []
    for path in sorted(OFFICIAL.glob("*.csv")):
        with path.open() as stream:
            rows += [[float(row[f"A{band:02d}"]) for band in range(64)] for row in csv.DictReader(stream)]
    vectors = np.array(rows)
    assert vectors.shape == (1440, 64)
    back = dequantize(quantize(vectors, axis=1), axis=1, dtype=np.float64)
    assert np.abs(back - vectors).max() < 1e-7
