"""The weighted sum of Eq. 3 over packed batches."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aef.config import ConfigError, DataConfig, ObjectiveConfig
from aef.data.statistics import Statistics
from aef.objective.contrastive import disc_mean
from aef.objective.objective import Objective
from aef.objective.reconstruction import reconstruction_error
from aef.objective.world import World
from aef.sources import BUILT_IN, SourceError

TARGETS = ("sentinel2", "landsat", "nlcd", "era5_land")
ALONE = World()


def objective(targets=TARGETS, regrid_offset=False, **settings):
    statistics = Statistics.identity(BUILT_IN, targets)
    return Objective(
        ObjectiveConfig(**settings), BUILT_IN, statistics, targets, data=DataConfig(regrid_offset=regrid_offset)
    )


def output_for(batch, seed=0, dim=8):
    """Random predictions of the right shapes, leaves with gradient under ``leaves``."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    side = batch.side_px
    mean, text = leaf(len(batch.periods), side, side, dim), leaf(len(batch.text.sample), dim)
    reconstructions = {
        name: leaf(len(block.sample), side, side, BUILT_IN[name].decoded_channels)
        for name, block in batch.targets.items()
    }
    scale = torch.tensor([2.64], requires_grad=True)
    return SimpleNamespace(
        mean=F.normalize(mean, dim=-1),
        text=F.normalize(text, dim=-1),
        reconstructions=reconstructions,
        logit_scale=scale,
        leaves=[mean, text, scale, *reconstructions.values()],
    )


@pytest.fixture
def batch(make_samples, pack):
    return pack(make_samples(3, targets=TARGETS, text_dim=4), targets=TARGETS, text_dim=4)


def test_the_default_weights_are_those_of_the_paper():
    c = ObjectiveConfig()
    weights = (c.reconstruction_weight, c.uniformity_weight, c.consistency_weight, c.text_weight)
    assert weights == (1.0, 0.05, 0.02, 0.001)
    assert c.uniformity == "pairs"


def test_the_total_is_the_weighted_sum_of_its_terms(batch):
    losses = objective()(output_for(batch), batch, world=ALONE)
    r = losses.record()
    expected = r["reconstruction"] + 0.05 * r["uniformity"] + 0.02 * r["consistency"] + 0.001 * r["text"]
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    assert r["loss"] == pytest.approx(expected, rel=1e-5)
    assert set(r["per_source"]) == set(TARGETS)


def test_reconstruction_divides_by_the_sources_present_in_each_row(make_samples, pack):
    samples = make_samples(2, targets=TARGETS)
    del samples[0].targets["nlcd"], samples[0].targets["landsat"]
    batch = pack(samples, targets=TARGETS)
    output = output_for(batch)
    found = objective()(output, batch, world=ALONE).record()
    f = found["per_source"]
    # f of sources in one row only is that row's; the two others are averaged over both rows.
    row_sums = 2 * f["sentinel2"] + 2 * f["era5_land"]
    fixed = objective(normalize_by_present=False)(output, batch, world=ALONE).record()["reconstruction"]
    assert fixed == pytest.approx((row_sums + f["landsat"] + 0.5 * f["nlcd"]) / 4 / 2, rel=1e-5)
    alone = pack(samples[:1], targets=TARGETS)
    first = objective()(output_for(alone), alone, world=ALONE).record()
    mean_of_two = (first["per_source"]["sentinel2"] + first["per_source"]["era5_land"]) / 2
    assert first["reconstruction"] == pytest.approx(mean_of_two, rel=1e-5)
    assert first["per_source"]["nlcd"] is None


def test_a_source_weighs_what_the_settings_say_in_place_of_its_entry(make_samples, pack):
    """Version 2.1 of the paper gives NLCD 0.25."""
    batch = pack(make_samples(1, targets=TARGETS), targets=TARGETS)
    output = output_for(batch)
    found = objective(source_weights=("nlcd=0.25", "gedi=2"))(output, batch, world=ALONE).record()
    f = found["per_source"]
    expected = (f["sentinel2"] + f["landsat"] + f["era5_land"] + 0.25 * f["nlcd"]) / 4
    assert found["reconstruction"] == pytest.approx(expected, rel=1e-5)


def test_several_targets_of_a_source_are_averaged_within_the_sample(make_samples, pack):
    batch = pack(make_samples(1, targets=("sentinel2",), targets_per_source=3), targets=("sentinel2",))
    output = output_for(batch)
    block = batch.targets["sentinel2"]
    term = objective(("sentinel2",))
    z = term.standardizers["sentinel2"](block.values, block.valid)
    weight = block.weight / 255 * block.valid
    values, _ = reconstruction_error(BUILT_IN["sentinel2"], output.reconstructions["sentinel2"], z, weight)
    assert term(output, batch, world=ALONE).reconstruction.item() == pytest.approx(values.mean().item(), rel=1e-5)


def test_a_band_that_is_not_scored_adds_nothing_to_its_sources_error(make_samples, pack):
    batch = pack(make_samples(2, targets=("landsat",)), targets=("landsat",))
    output = output_for(batch)
    losses = objective(("landsat",), unscored_bands=("landsat.B10", "sentinel1.angle"))(output, batch, world=ALONE)
    losses.total.backward()
    gradient = output.reconstructions["landsat"].grad
    thermal = [band.name for band in BUILT_IN["landsat"].bands].index("B10")
    assert not gradient[..., thermal].any()
    assert gradient[..., :thermal].abs().sum() > 0
    block = batch.targets["landsat"]
    block.valid = block.valid.expand(block.values.shape).clone()
    block.valid[..., thermal] = False
    masked = objective(("landsat",))(output, batch, world=ALONE)
    assert losses.reconstruction.item() == pytest.approx(masked.reconstruction.item(), rel=1e-6)


def test_a_source_keeps_a_band_to_be_scored():
    with pytest.raises(ConfigError, match=r"leaves no band of glo30 to be scored; take it out of model.targets"):
        objective(("glo30",), unscored_bands=tuple(f"glo30.{band.name}" for band in BUILT_IN["glo30"].bands))


def test_a_target_that_had_to_stay_in_the_input_counts_for_nothing(make_samples, pack):
    samples = make_samples(2, targets=TARGETS)
    before = objective()(output_for(pack(samples, targets=TARGETS)), pack(samples, targets=TARGETS), world=ALONE)
    samples[0].targets["landsat"][0].item_weight = 0.0
    batch = pack(samples, targets=TARGETS)
    output = output_for(batch)
    losses = objective()(output, batch, world=ALONE)
    losses.total.backward()
    assert losses.per_source["landsat"] != before.per_source["landsat"]
    assert not output.reconstructions["landsat"].grad[0].any() and output.reconstructions["landsat"].grad[1].any()


def test_a_source_that_had_to_stay_in_the_input_is_not_counted_as_present(make_samples, pack):
    """|M| of a row: counted, it would shrink the loss of all others."""
    (sample,) = make_samples(1, targets=TARGETS)
    sample.targets["landsat"][0].item_weight = 0.0
    batch = pack([sample], targets=TARGETS)
    found = objective()(output_for(batch), batch, world=ALONE).record()
    assert found["per_source"].pop("landsat") is None
    weighted = [BUILT_IN[name].weight * error for name, error in found["per_source"].items()]
    assert found["reconstruction"] == pytest.approx(sum(weighted) / 3, rel=1e-5)


def test_clouds_weigh_nothing_and_unknown_classes_are_no_observation(make_samples, pack):
    samples = make_samples(1, targets=TARGETS)
    for name in ("landsat", "nlcd"):
        target = samples[0].targets[name][0]
        target.valid[:] = True
        target.weight[:] = 255
    samples[0].targets["landsat"][0].weight[3, 3] = 0
    samples[0].targets["nlcd"][0].values[5, 5] = 255
    batch = pack(samples, targets=TARGETS)
    output = output_for(batch)
    objective()(output, batch, world=ALONE).total.backward()
    grad = output.reconstructions["nlcd"].grad[0].abs().sum(-1)
    assert (grad > 0).sum() == 255 and grad[5, 5] == 0
    grad = output.reconstructions["landsat"].grad[0].abs().sum(-1)
    assert (grad > 0).sum() == 255 and grad[3, 3] == 0


def test_a_batch_without_targets_texts_or_pairs_is_zero_and_every_leaf_has_a_finite_gradient(make_samples, pack):
    samples = make_samples(1, targets=TARGETS)
    samples[0].targets = {}
    samples[0].consistency_weight = 0.0
    batch = pack(samples, targets=TARGETS, text_dim=4)
    output = output_for(batch)
    losses = objective()(output, batch, world=ALONE)
    losses.total.backward()
    assert losses.total.item() == 0
    record = losses.record()
    assert record["uniformity"] is None and record["text"] is None
    assert record["per_source"] == dict.fromkeys(TARGETS)
    for leaf in output.leaves:
        assert leaf.grad is not None and not leaf.grad.any() and leaf.grad.isfinite().all()


def test_an_unobserved_value_that_is_not_a_number_does_no_harm(make_samples, pack):
    samples = make_samples(2, targets=TARGETS)
    for sample in samples:
        target = sample.targets["sentinel2"][0]
        target.valid[2, 2] = False
        target.values[2, 2] = np.nan
    batch = pack(samples, targets=TARGETS)
    output = output_for(batch)
    losses = objective()(output, batch, world=ALONE)
    losses.total.backward()
    assert losses.total.isfinite() and all(leaf.grad.isfinite().all() for leaf in output.leaves)


def test_every_row_without_text_changes_nothing(make_samples, pack):
    samples = make_samples(3, targets=TARGETS, text_dim=4)
    with_text = pack(samples, targets=TARGETS, text_dim=4)
    output = output_for(with_text)
    two = [*samples[:2], dataclasses.replace(samples[2], texts=())]
    batch = pack(two, targets=TARGETS, text_dim=4)
    rows = [with_text.periods.tolist().index(p) for p in batch.periods.tolist()]
    fewer = SimpleNamespace(**{**vars(output), "mean": output.mean[rows], "text": output.text[:2]})
    full, part = objective()(output, with_text, world=ALONE), objective()(fewer, batch, world=ALONE)
    assert part.reconstruction == full.reconstruction and part.text is not None and part.text != full.text


def test_uniformity_and_consistency_read_the_summaries_of_the_consistency_period(batch):
    output = output_for(batch)
    c = objective(reconstruction_weight=0.0, text_weight=0.0)
    c(output, batch, world=ALONE).total.backward()
    touched = output.leaves[0].grad.abs().sum((1, 2, 3)) > 0
    assert set(touched.nonzero()[:, 0].tolist()) == {*batch.teacher_row.tolist(), *batch.student_row.tolist()}


def test_uniformity_spreads_the_teachers_and_consistency_moves_both_views(batch):
    teachers, students = (set(rows.tolist()) for rows in (batch.teacher_row, batch.student_row))
    assert not teachers & students
    for weights, moved in (((0.05, 0.0), teachers), ((0.0, 0.02), teachers | students)):
        output = output_for(batch)
        uniformity, consistency = weights
        settings = {"uniformity_weight": uniformity, "consistency_weight": consistency}
        objective(reconstruction_weight=0.0, text_weight=0.0, **settings)(output, batch, world=ALONE).total.backward()
        touched = output.leaves[0].grad.abs().sum((1, 2, 3)) > 0
        assert set(touched.nonzero()[:, 0].tolist()) == moved


def test_uniformity_pulls_both_fields_of_a_pair(batch):
    output = output_for(batch)
    only = objective(reconstruction_weight=0.0, consistency_weight=0.0, text_weight=0.0)
    only(output, batch, world=ALONE).total.backward()
    leaf = output.leaves[0].detach().requires_grad_()
    fields = F.normalize(leaf, dim=-1)[batch.teacher_row]
    (0.05 * (fields * fields[[1, 2, 0]]).sum(-1).abs().mean()).backward()
    torch.testing.assert_close(output.leaves[0].grad, leaf.grad)


def test_only_samples_that_meet_those_of_another_pass_go_ahead(make_samples, pack):
    samples = make_samples(8, targets=TARGETS, text_dim=4)
    for sample in samples[:6]:
        sample.texts = ()

    def chosen(*parts, **settings):
        batches = [pack([samples[i] for i in rows], targets=TARGETS, text_dim=4) for rows in parts]
        passes = objective(**settings).couple_passes(batches, ALONE)
        assert passes.most == sum(map(len, passes.chosen)) and (passes.ahead is None) == (passes.most == 0)
        return [[rows[i] for i in found] for rows, found in zip(parts, passes.chosen, strict=True)]

    # A row's last sample meets the first of the next row; the last two samples have the only texts.
    assert chosen((0, 1, 2, 3), (4, 5, 6, 7)) == [[0, 3], [4, 6, 7]]
    assert chosen((0, 1, 2, 3), (4, 5)) == [[0, 3], [4, 5]]
    assert chosen((0, 1, 2, 3), (4, 5, 6, 7), partner_chips=4) == [[], [6, 7]]
    assert chosen((0, 1), (2, 3), partner_chips=2) == [[], []]
    assert chosen((0, 2), (1, 3), partner_chips=2) == [[0, 2], [1, 3]]
    assert chosen((0, 1), (2, 3), partner_chips=2, uniformity="channels") == [[0, 1], [2, 3]]
    # One text meets none.
    assert chosen((0, 1, 2, 3), (4, 5, 6), partner_chips=4) == [[], []]


def test_the_text_term_is_the_mean_over_texts_at_a_temperature_learnt_as_a_logarithm(make_samples, pack):
    samples = make_samples(3, targets=TARGETS, text_dim=4)
    samples[1].texts = ()
    batch = pack(samples, targets=TARGETS, text_dim=4)
    output, block = output_for(batch), batch.text
    place = disc_mean(output.mean, block.period_row, block.pixel, block.radius_px)
    logits, own = output.logit_scale.exp() * output.text @ place.T, torch.arange(2)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert objective()(output, batch, world=ALONE).text.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_weight_of_a_sample_whose_student_is_empty_is_zero(make_samples, pack):
    samples = make_samples(2, targets=TARGETS)
    samples[1].consistency_weight = 0.0
    batch = pack(samples, targets=TARGETS)
    output = output_for(batch)
    losses = objective()(output, batch, world=ALONE)
    first = (1 - (output.mean[batch.teacher_row[0]] * output.mean[batch.student_row[0]]).sum(-1)).mean() / 2
    assert losses.consistency.item() == pytest.approx(first.item() / 2, rel=1e-5)


def test_the_v21_grid_offset_is_keyed_by_seed_epoch_and_sample_not_by_companions(make_samples, pack):
    samples = make_samples(4, targets=TARGETS)
    moving, fixed = objective(regrid_offset=True), objective()
    batch = pack(samples, targets=TARGETS, key=(3, 1))
    source, block = BUILT_IN["landsat"], batch.targets["landsat"]
    offset = moving._offset(source, block, batch)
    assert offset.min() >= 0 and offset.max() <= 2 and len({tuple(o) for o in offset.tolist()}) > 1
    alone = pack(samples[2:3], targets=TARGETS, key=(3, 1))
    assert torch.equal(moving._offset(source, alone.targets["landsat"], alone)[0], offset[2])
    later = pack(samples, targets=TARGETS, key=(3, 2))
    assert not torch.equal(moving._offset(source, later.targets["landsat"], later), offset)
    output = output_for(batch)
    a, b = moving(output, batch, world=ALONE).per_source, fixed(output, batch, world=ALONE).per_source
    assert a["landsat"] != b["landsat"] and a["sentinel2"] == b["sentinel2"]


def test_the_other_reading_of_uniformity_is_a_switch(batch):
    output = output_for(batch)
    pairs, channels = (objective(uniformity=r)(output, batch, world=ALONE).uniformity for r in ("pairs", "channels"))
    assert pairs != channels


def test_errors_name_the_source(batch):
    with pytest.raises(SourceError, match="unknown source 'nowhere'"):
        objective(("nowhere",))
    with pytest.raises(ValueError, match="at least one decoded source"):
        objective(())
    output = output_for(batch)
    output.reconstructions["nlcd"] = output.reconstructions["nlcd"][..., :3]
    with pytest.raises(
        ValueError, match=r"source nlcd: expected reconstructions \(3, 16, 16, 16\), found \(3, 16, 16, 3\)"
    ):
        objective()(output, batch, world=ALONE)
