"""Probes: splits by unit, shots, and scores on problems of known answer."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from aef.evaluation.probes import (
    LAMBDAS,
    Labelled,
    ProbeError,
    Scores,
    _Ridge,
    better,
    bootstrap,
    choose_penalty,
    draw_shots,
    effective_rank,
    predict,
    probe,
    split_units,
)


def fields(classes=3, units_per_class=6, pixels=20, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), units_per_class * pixels)
    units = np.repeat(np.arange(classes * units_per_class), pixels)
    good = np.eye(classes)[labels] + 0.05 * rng.normal(size=(len(labels), classes))
    unit_noise = rng.normal(size=(classes * units_per_class, 4))[units] + 0.01 * rng.normal(size=(len(labels), 4))
    return Labelled(labels, units), good, unit_noise


def test_a_unit_never_lies_on_both_sides_of_a_split():
    labelled, _, _ = fields()
    for seed in range(20):
        train = split_units(labelled, np.random.default_rng(seed))
        assert not set(labelled.units[train]) & set(labelled.units[~train])
        for code in labelled.classes:
            assert {True, False} == set(train[labelled.labels == code])


def test_every_class_is_on_both_sides_of_a_split_where_units_hold_several():
    """A class that cannot be tested would drop out of the balanced accuracy of its trial."""
    units, labels = np.repeat(np.arange(5), 3), np.array([2, 0, 0, 0, 1, 2, 1, 0, 1, 1, 2, 2, 2, 0, 2])
    for trial in range(20):
        train = split_units(Labelled(labels, units), np.random.default_rng(trial))
        assert set(labels[train]) == set(labels[~train]) == {0, 1, 2}
        assert not set(units[train]) & set(units[~train])


def test_shots_are_spread_over_units_before_one_repeats():
    labelled, _, _ = fields()
    chosen = draw_shots(labelled, np.ones(len(labelled.labels), bool), 6, np.random.default_rng(0))
    assert len(chosen) == 18 and len(np.unique(labelled.units[chosen])) == 18


def test_informative_features_win_and_features_of_the_unit_alone_stay_at_chance():
    labelled, good, unit_noise = fields(units_per_class=12)
    results = probe({"good": good, "unit": unit_noise}, labelled, shots=10, trials=10)
    for kind in results["good"]:
        assert results["good"][kind].balanced_accuracy > 0.98
        assert results["unit"][kind].balanced_accuracy < 0.55
    low, high = bootstrap(results["good"]["ridge"], results["unit"]["ridge"])
    assert 0.3 < low < high
    assert better(results["good"])[0] in ("ridge", "kNN-3")


def test_a_constant_answer_is_worth_the_chance_of_its_class_however_frequent_that_is():
    """Nine tenths of the pixels are of one class: answered always, it is right for one class of two."""
    labelled = Labelled(np.repeat([0, 1], [360, 40]), np.repeat(np.arange(8), [90] * 4 + [10] * 4))
    scores = probe({"nothing": np.zeros((400, 1))}, labelled, shots=5, trials=3, kinds=("ridge",))["nothing"]["ridge"]
    assert scores.trials == [0.5, 0.5, 0.5]


def test_the_interval_holds_19_of_20_resamplings_of_units():
    """Accuracy ½ in 200 units a class: the mean over two classes has a standard deviation of √(¼ / 200 / 2) = 0.025."""
    keys = [(unit, code) for code in (0, 1) for unit in range(200)]
    scores = Scores([0.5], {key: key[0] % 2 for key in keys}, dict.fromkeys(keys, 1))
    low, high = bootstrap(scores)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.003) and high - low == pytest.approx(2 * 1.96 * 0.025, rel=0.06)


def test_the_linear_probe_is_least_squares_with_intercept_and_least_norm():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(6, 10)), np.array([0, 0, 0, 1, 1, 1])
    assert np.array_equal(predict("linear", x, labels, x), labels)  # under-determined: it interpolates
    shifted = predict("linear", x + 100, labels, x + 100)
    assert np.array_equal(shifted, labels)


def test_ridge_does_not_depend_on_the_scale_of_all_features():
    labelled, good, _ = fields()
    test = good + 0.3
    assert np.array_equal(
        predict("ridge", good, labelled.labels, test), predict("ridge", good * 1e-3, labelled.labels, test * 1e-3)
    )


@pytest.mark.parametrize("features", [12, 90], ids=["fewer features than pixels", "more features than pixels"])
def test_ridge_equals_the_library_for_any_penalty(features):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, features)), rng.normal(size=(40, 3))
    x[:, 1] = x[:, 0]  # a singular Gram matrix
    fit = _Ridge(x, y)
    for penalty in LAMBDAS:
        library = Ridge(alpha=penalty * fit.scale, solver="svd").fit(x, y)
        assert np.allclose(fit(fit.rotate(x + 1), penalty), library.predict(x + 1), rtol=0, atol=1e-9)


def test_ridge_on_features_that_never_vary_says_the_mean():
    x, y = np.ones((6, 3)), np.arange(12.0).reshape(6, 2)
    fit = _Ridge(x, y)
    assert np.allclose(fit(fit.rotate(x), LAMBDAS[0]), y.mean(axis=0))


def test_the_penalty_is_chosen_on_units_and_not_on_their_pixels():
    """Features that identify units are useless for other units: only a large penalty is honest."""
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(12), 30)
    labels = units % 2
    targets = np.where(labels[:, None] == [0, 1], 1.0, -1.0)
    features = rng.normal(size=(12, 40))[units] + 0.05 * rng.normal(size=(360, 40))
    assert choose_penalty(features, targets, units) > 100 * choose_penalty(features, targets, np.arange(360))


def test_the_split_gives_most_units_to_training():
    labelled, _, _ = fields(units_per_class=10)
    train = split_units(labelled, np.random.default_rng(0))
    assert [len(np.unique(labelled.units[train & (labelled.labels == code)])) for code in range(3)] == [7, 7, 7]


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ProbeError, match="two classes"):
        Labelled(np.zeros(3, int), np.arange(3))
    lonely = Labelled(np.array([0, 0, 1]), np.array([0, 1, 2]))
    with pytest.raises(ProbeError, match="class 1 lies in 1 unit"):
        split_units(lonely, np.random.default_rng(0))
    labelled, good, _ = fields()
    with pytest.raises(ProbeError, match="rows"):
        probe({"short": good[:-1]}, labelled, shots=1)
    with pytest.raises(ProbeError, match="unknown probe"):
        predict("forest", good, labelled.labels, good)


def test_the_same_seed_gives_the_same_scores():
    labelled, good, _ = fields()
    one = probe({"a": good}, labelled, shots=2, trials=3, seed=5)["a"]["kNN-1"]
    assert one == probe({"a": good}, labelled, shots=2, trials=3, seed=5)["a"]["kNN-1"]


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    assert effective_rank(rng.normal(size=(20_000, 8))) == pytest.approx(8, abs=0.02)
    assert effective_rank(rng.normal(size=(1, 8))) == 1  # a place of one pixel
    assert effective_rank(np.outer(rng.normal(size=100), np.ones(8))) == pytest.approx(1, abs=1e-6)
