"""One value per target frame, by each source's own rule of Table S2."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from aef.objective.grid import cells_of, expand_cells, window
from aef.objective.reconstruction import (
    cell_px,
    cross_entropy,
    masked_mean,
    radius_px,
    reconstruction_error,
    regridded_l1,
    shift_invariant_l1,
)
from aef.sources import BUILT_IN, SourceError

TABLE_S2 = {
    "sentinel2": (20, None, "l1", 1.0),
    "sentinel1": (20, None, "l1", 1.0),
    "landsat": (None, 30, "l1", 1.0),
    "palsar2": (None, 30, "l1", 1.0),
    "era5_land": (None, None, "l1", 1.0),
    "gedi": (None, 20, "l1", 1.0),
    "grace": (None, 1280, "l1", 0.5),
    "glo30": (None, 30, "l1", 1.0),
    "nlcd": (None, 30, "cross_entropy", 0.5),
}


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_weight(*shape, seed=1):
    weight = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.where(weight > 0.3, weight, 0)


def test_the_registry_holds_table_s2():
    found = {name: (s.shift_m, s.regrid_m, s.loss, s.weight) for name, s in BUILT_IN.items()}
    assert found == TABLE_S2
    assert sum(source.weight for source in BUILT_IN.values()) == 8.0


def test_distances_become_whole_pixels():
    assert [radius_px(BUILT_IN["sentinel2"], side) for side in (128, 16, 8, 4)] == [2, 2, 1, 0]
    assert [cell_px(BUILT_IN[name]) for name in ("landsat", "gedi", "grace", "era5_land")] == [3, 2, 128, 0]
    with pytest.raises(SourceError, match="'sentinel2': shift_m must be a positive multiple of 10 m, found 15"):
        radius_px(dataclasses.replace(BUILT_IN["sentinel2"], shift_m=15), 128)


def test_l1_is_the_weighted_mean_over_pixels_and_bands():
    prediction, target, weight = random(3, 5, 5, 2), random(3, 5, 5, 2, seed=2), some_weight(3, 5, 5, 1)
    value, present = reconstruction_error(BUILT_IN["era5_land"], prediction, target, weight)
    for n in range(3):
        total = count = 0.0
        for y in range(5):
            for x in range(5):
                for c in range(2):
                    total += float(weight[n, y, x, 0] * (prediction - target)[n, y, x, c].abs())
                    count += float(weight[n, y, x, 0])
        assert value[n].item() == pytest.approx(total / count)
    assert present.all()


def test_an_unobserved_pixel_changes_nothing():
    prediction, target, weight = (
        random(1, 6, 6, 2),
        random(1, 6, 6, 2, seed=2),
        torch.ones(1, 6, 6, 2, dtype=torch.float64),
    )
    weight[0, 2, 3, 1] = 0
    other = prediction.clone()
    other[0, 2, 3, 1] = 1e6
    for rule in ("era5_land", "sentinel2", "landsat"):
        before, after = (reconstruction_error(BUILT_IN[rule], p, target, weight)[0] for p in (prediction, other))
        # A shift may bring the odd pixel over an observed one, so there only the minimum must not get worse than no shift.
        assert torch.allclose(before, after) or (
            rule == "sentinel2" and after <= masked_mean((prediction - target).abs(), weight)[0]
        )


def naive_shift_minimum(prediction, target, weight, radius):
    side, best = prediction.shape[0], math.inf
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            total = count = 0.0
            for y in range(side):
                for x in range(side):
                    if 0 <= y + dy < side and 0 <= x + dx < side:
                        error = (prediction[y + dy, x + dx] - target[y, x]).abs()
                        total += float((error * weight[y, x]).sum())
                        count += float(weight[y, x].expand_as(error).sum())
            best = min(best, total / count) if count else best
    return best


def test_the_shift_minimum_equals_a_search_over_all_25_shifts_each_over_its_own_overlap():
    prediction, target, weight = random(3, 7, 7, 2), random(3, 7, 7, 2, seed=5), some_weight(3, 7, 7, 2)
    value, _ = shift_invariant_l1(prediction, target, weight, 2)
    for n in range(3):
        assert value[n].item() == pytest.approx(naive_shift_minimum(prediction[n], target[n], weight[n], 2))


def test_a_frame_displaced_by_20_m_costs_nothing_and_each_frame_has_its_own_shift():
    target = random(2, 12, 12, 3)
    steps = torch.tensor([[2, -1], [-2, 0]])
    moved = window(target, -steps[:, 0], -steps[:, 1], 12)
    ones = torch.ones(2, 12, 12, 1, dtype=torch.float64)
    assert shift_invariant_l1(moved, target, ones, 2)[0].tolist() == [0, 0]
    assert (masked_mean((moved - target).abs(), ones)[0] > 0.5).all()
    assert (shift_invariant_l1(moved, target, ones, 1)[0] > 0.5).all()


def test_a_perfect_prediction_is_not_shifted_where_a_shift_is_as_good():
    flat = torch.zeros(1, 8, 8, 1, dtype=torch.float64, requires_grad=True)
    shift_invariant_l1(
        flat, torch.ones(1, 8, 8, 1, dtype=torch.float64), torch.ones(1, 8, 8, 1, dtype=torch.float64), 2
    )[0].sum().backward()
    assert (flat.grad == -1 / 64).all()


@pytest.mark.parametrize("side", [6, 8, 16])
def test_regridding_averages_by_weight_with_partial_cells_at_the_rim(side):
    prediction, target, weight = (
        random(2, side, side, 2),
        random(2, side, side, 2, seed=3),
        some_weight(2, side, side, 2),
    )
    value, _ = regridded_l1(prediction, target, weight, 3)
    for n in range(2):
        total = count = 0.0
        for y in range(0, side, 3):
            for x in range(0, side, 3):
                for c in range(2):
                    p, t, w = (a[n, y : y + 3, x : x + 3, c] for a in (prediction, target, weight))
                    if w.sum() > 0:
                        total += float(w.sum() * ((p * w).sum() / w.sum() - (t * w).sum() / w.sum()).abs())
                        count += float(w.sum())
        assert value[n].item() == pytest.approx(total / count)


@pytest.mark.parametrize("side", [7, 16])
def test_a_footprint_is_asked_of_all_pixels_of_its_20_m_cell(side):
    """The prediction's mean is over the whole cell inside the crop, the target's over the footprints; also with an offset."""
    prediction, target = random(2, side, side, 3), random(2, side, side, 3, seed=3)
    weight = (some_weight(2, side, side, 1) > 0.8).double()
    offset = torch.tensor([[0, 0], [1, 1]])
    value, _ = reconstruction_error(BUILT_IN["gedi"], prediction, target, weight, offset)
    for n in range(2):
        total = count = 0.0
        for y in range(-int(offset[n, 0]), side, 2):
            for x in range(-int(offset[n, 1]), side, 2):
                rows, cols = slice(max(y, 0), y + 2), slice(max(x, 0), x + 2)
                p, t, w = (a[n, rows, cols] for a in (prediction, target, weight))
                for c in range(3):
                    if w.sum() > 0:
                        mean = (t[..., c] * w[..., 0]).sum() / w.sum()
                        total += float(w.sum() * (p[..., c].mean() - mean).abs())
                        count += float(w.sum())
        assert value[n].item() == pytest.approx(total / count)


def test_a_footprint_moves_the_prediction_of_its_whole_cell_and_no_other():
    prediction = random(1, 8, 8, 1).requires_grad_()
    weight = torch.zeros(1, 8, 8, 1)
    weight[0, 3, 4] = 1
    reconstruction_error(BUILT_IN["gedi"], prediction, random(1, 8, 8, 1, seed=3), weight)[0].sum().backward()
    assert prediction.grad[0, 2:4, 4:6].abs().flatten().tolist() == [0.25] * 4
    assert torch.count_nonzero(prediction.grad) == 4


def test_a_cell_of_1280_m_compares_one_value_per_chip():
    prediction, target = random(2, 16, 16, 1), random(2, 16, 16, 1, seed=3)
    ones = torch.ones_like(target)
    value, _ = reconstruction_error(BUILT_IN["grace"], prediction, target, ones)
    assert torch.allclose(value, (prediction.mean((1, 2, 3)) - target.mean((1, 2, 3))).abs())


def test_regridding_forgives_detail_finer_than_a_cell():
    target = random(1, 12, 12, 1)
    blurred = cells_of(target, 3).mean(3).repeat_interleave(3, 1).repeat_interleave(3, 2)
    ones = torch.ones_like(target)
    assert reconstruction_error(BUILT_IN["landsat"], blurred, target, ones)[0].item() < 1e-12
    assert masked_mean((blurred - target).abs(), ones)[0].item() > 0.3


def test_offset_cells_start_outside_the_crop():
    values = torch.arange(16.0).view(1, 4, 4, 1).expand(2, -1, -1, -1)
    moved = cells_of(values, 3, torch.tensor([[0, 0], [1, 2]]))
    assert moved.shape == (2, 2, 2, 9, 1)
    assert torch.equal(moved[0], cells_of(values[:1], 3)[0])
    assert moved[1, 0, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 4]  # one column, two rows: pixels 0 and 4
    assert moved.sum((1, 2, 3)).flatten().tolist() == [120, 120]


def test_cross_entropy_without_cells_is_the_ordinary_one():
    logits, classes = random(2, 5, 5, 4), torch.randint(0, 4, (2, 5, 5), generator=torch.Generator().manual_seed(0))
    weight = some_weight(2, 5, 5, 1)
    value, _ = cross_entropy(logits, F.one_hot(classes, 4).double(), weight, 1)
    plain = F.cross_entropy(logits.movedim(-1, 1), classes, reduction="none")
    expected = (plain * weight[..., 0]).sum((1, 2)) / weight.sum((1, 2, 3))
    assert torch.allclose(value, expected)


def test_regridded_cross_entropy_compares_mean_probabilities_with_class_shares():
    logits, weight = random(1, 8, 8, 3), some_weight(1, 8, 8, 1)
    target = F.one_hot(torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0)), 3).double()
    value, _ = cross_entropy(logits, target, weight, 3)
    probability, total = logits.softmax(-1)[0], 0.0
    for y in range(0, 8, 3):
        for x in range(0, 8, 3):
            p, t, w = (a[y : y + 3, x : x + 3] for a in (probability, target[0], weight[0]))
            if w.sum() > 0:
                p, t = (p * w).sum((0, 1)) / w.sum(), (t * w).sum((0, 1)) / w.sum()
                total += float(w.sum() * -(t * p.log()).sum())
    assert value.item() == pytest.approx(total / float(weight.sum()))


def test_cross_entropy_stays_finite_for_confident_wrong_logits():
    logits = torch.zeros(1, 4, 4, 3)
    logits[..., 0] = 500
    logits.requires_grad_()
    target = F.one_hot(torch.full((1, 4, 4), 1), 3).float()
    value, _ = cross_entropy(logits, target, torch.ones(1, 4, 4, 1), 3)
    value.sum().backward()
    assert value.item() == pytest.approx(500) and logits.grad.isfinite().all() and logits.grad[..., 1].max() < 0


def test_coarse_cells_are_expanded_to_the_crop():
    cells = torch.arange(9.0).view(1, 3, 3, 1)
    full = expand_cells(cells, 6)[0, ..., 0]
    assert full[0].tolist() == [0, 0, 1, 1, 2, 2] and full[:, 5].tolist() == [2, 2, 5, 5, 8, 8]
    assert expand_cells(cells, 4)[0, :, 0, 0].tolist() == [0, 0, 3, 6]
    assert torch.equal(expand_cells(torch.ones(2, 1, 1, 1), 16), torch.ones(2, 16, 16, 1))


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_empty_mask_gives_zero_and_no_nan_gradient(name):
    source = BUILT_IN[name]
    prediction = torch.randn(2, 8, 8, source.decoded_channels, requires_grad=True)
    target, weight = torch.randn(2, 8, 8, source.decoded_channels), torch.zeros(2, 8, 8, 1)
    weight[1] = 1
    value, present = reconstruction_error(source, prediction, target.softmax(-1), weight)
    value.sum().backward()
    assert value[0].item() == 0 and present.tolist() == [False, True]
    assert prediction.grad.isfinite().all() and not prediction.grad[0].any() and prediction.grad[1].any()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_rule_passes_finite_differences(name):
    source = dataclasses.replace(BUILT_IN[name])
    channels = min(source.decoded_channels, 3)
    prediction = random(2, 5, 5, channels).requires_grad_()
    target, weight = random(2, 5, 5, channels, seed=7).softmax(-1), some_weight(2, 5, 5, 1)
    offset = torch.tensor([[1, 0], [0, 1]]) if source.regrid_m and source.regrid_m < 100 else None
    rule = lambda p: reconstruction_error(source, p, target, weight, offset)[0]  # noqa: E731
    assert torch.autograd.gradcheck(rule, prediction)
