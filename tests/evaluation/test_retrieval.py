"""Ranks, chance, and a model that was told the answer."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aef.config import TINY
from aef.data.statistics import Statistics
from aef.data.synthetic import generate
from aef.evaluation.retrieval import RetrievalError, rank_texts, summarise, text_retrieval
from aef.mapping.trained_model import TrainedModel
from aef.run import Run, build_model
from aef.sources import BUILT_IN
from aef.timecode import parse_period

YEAR = parse_period("2019-01-01/2020-01-01")


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_perfect_alignment_ranks_every_text_first_and_an_opposite_one_last():
    vectors, own = unit(20, 8), np.arange(20)
    assert (rank_texts(vectors, vectors, own)[own, own] == 0).all()
    assert (rank_texts(-vectors, vectors, own)[own, own] == 19).all()


def test_random_vectors_are_at_chance():
    own = np.random.default_rng(2).integers(0, 40, 2000)
    found = summarise([(rank_texts(unit(40, 16), unit(2000, 16, seed=1), own), own)], 1)
    low, high = found.interval
    assert low < found.top1 < high and 1 / 45 < found.chance1 < 1 / 35
    assert abs(found.percentile - 0.5) < 0.05 and (found.points, found.texts) == (2000, 40)


def test_answering_with_the_frequent_text_is_no_better_than_chance():
    text, own = unit(4, 8), np.array([0] * 70 + [1, 2, 3] * 10)
    found = summarise([(rank_texts(text, np.repeat(text[:1], 100, 0), own), own)], 1)
    assert found.top1 == found.chance1 == pytest.approx(0.7)
    assert found.percentile == pytest.approx(found.chance_percentile)


def test_places_that_all_look_alike_know_no_text():
    text = np.repeat(unit(1, 8), 3, 0)
    ranks = rank_texts(text, np.repeat(text[:1], 6, 0), np.array([0, 1, 2] * 2))
    assert (np.take_along_axis(ranks, np.array([0, 1, 2] * 2)[:, None], 1) == 2).all()


def test_texts_of_other_dates_are_no_rivals():
    one, own = unit(4, 8), np.arange(2)
    groups = [(rank_texts(one[:2], one[:2], own), own), (rank_texts(one[2:], -one[2:], own), own)]
    found = summarise(groups, 4)
    assert (found.points, found.texts, found.top1, found.chance1) == (4, 4, 0.5, 0.5)
    with pytest.raises(RetrievalError, match="two different texts"):
        summarise([(rank_texts(one[:1], one[:1], np.zeros(1, int)), np.zeros(1, int))], 1)


def test_a_text_is_compared_with_the_pixel_on_which_it_lies():
    """Every pixel has a direction of its own, and every text that of its pixel."""
    side = 4
    own = np.eye(side * side, dtype=np.float32).reshape(-1, side, side)
    chip = generate(0, chip_px=16, sources=("sentinel2",))
    a, b, c, d, e, f = chip.transform
    point, places = chip.texts[0], [(0, 0), (0, 3), (2, 1), (3, 0)]
    chip.texts = [
        dataclasses.replace(
            point,
            text=f"{row} {col}",
            x=a * (col + 0.4) + b * row + c,
            y=d * col + e * (row + 0.7) + f,
            uncertainty_m=0.0,
        )
        for row, col in places
    ]
    vectors = {f"{row} {col}": own[:, row, col] for row, col in places}
    knowing = SimpleNamespace(
        network=SimpleNamespace(text_head=lambda vector, periods, dtype: (vector, None), compute_dtype=torch.float32),
        device=torch.device("cpu"),
        embed_array=lambda chip, periods: own[None],
    )
    assert text_retrieval(knowing, [chip], vectors.get).top1 == 1


def test_text_points_of_chips_are_embedded_at_their_place_and_dates():
    torch.manual_seed(0)
    names = ("sentinel2",)
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, text_dim=4))
    run = Run(None, config, BUILT_IN, Statistics.identity(BUILT_IN, names), names, names)
    parts = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "path"}
    model = TrainedModel(network=build_model(run).eval(), version="v", **parts)
    chips = [generate(place, chip_px=16, sources=names) for place in range(2)]
    for chip in chips:
        chip.texts = [
            dataclasses.replace(point, time_ms=YEAR.start_ms, time_end_ms=YEAR.end_ms) for point in chip.texts
        ]
    rng = np.random.default_rng(0)
    vectors = {point.text: rng.normal(size=4).astype(np.float32) for chip in chips for point in chip.texts}
    found = text_retrieval(model, chips, vectors.get)
    assert found.places == 2 and found.points == sum(len(chip.texts) for chip in chips)
    land = text_retrieval(model, chips, vectors.get, keep=lambda chip, point: point.uncertainty_m >= 80)
    assert land.points == 2
    far = parse_period("2031-01-01/2032-01-01")
    chips[0].texts[0] = dataclasses.replace(chips[0].texts[0], time_ms=far.start_ms, time_end_ms=far.end_ms)
    chips[1].texts = [
        dataclasses.replace(point, time_ms=far.start_ms, time_end_ms=far.end_ms) for point in chips[1].texts
    ]
    near = text_retrieval(model, chips, vectors.get)
    assert (near.points, near.places) == (len(chips[0].texts) - 1, 1)
    with pytest.raises(RetrievalError, match="no text with a vector"):
        text_retrieval(model, chips, lambda text: None)
