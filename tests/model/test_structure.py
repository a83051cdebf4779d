"""What the paper states about the network, part by part."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from aef import kernels
from aef.config import PRESETS
from aef.data.statistics import Statistics
from aef.model import AEF
from aef.model.layers import ChannelNorm, Down, Up, new_weight, without_grid
from aef.model.pyramid import Ascent, Descent, Exchange, States, level_widths
from aef.model.stp import position_code
from aef.model.summary import PeriodBias, pair_rows, unit
from aef.sources import BUILT_IN, INPUTS, SourceError
from aef.timecode import DAY_MS, TIMECODE_WIDTH

WIDTHS = level_widths(16, 32, 48)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_parameters_can_be_flattened(make_model):
    """DeepSpeed refuses 0-dimensional parameters and any whose last stride is not 1; buffers would be cast to bf16."""
    model = make_model()
    for name, parameter in model.named_parameters():
        assert parameter.dim() >= 1 and parameter.is_contiguous(), name
    assert not dict(model.named_buffers())
    assert all(tensor.dim() >= 1 for tensor in model.state_dict().values())


def test_convolution_weights_are_stored_output_rows_columns_input(make_model):
    model = make_model()
    assert model.projectors.sources["sentinel2"].down.weight.shape == (16, 3, 3, 10)
    assert model.encoder.blocks[0].precision.last.weight.shape == (16, 3, 3, 16)
    assert model.encoder.blocks[0].exchange.down4.weight.shape == (32, 3, 3, 16)
    assert model.encoder.blocks[0].exchange.up2.weight.shape == (32, 3, 3, 16)  # inputs first: it is transposed


def test_the_checkpoint_does_not_depend_on_how_the_model_runs(make_model):
    names = list(make_model().state_dict())
    for changes in ({"checkpointing": "full"}, {"compute_dtype": "bfloat16"}, {"kappa": 100.0}):
        assert list(make_model(**changes).state_dict()) == names


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_for_any_choice_of_sources(preset):
    config = PRESETS[preset].model
    with torch.device("meta"):
        model = AEF(
            config, BUILT_IN, Statistics.identity(BUILT_IN, INPUTS), inputs=("sentinel1",), targets=("gedi", "nlcd")
        )
    assert len(model.encoder.blocks) == config.blocks
    assert set(model.decoders) == {"gedi", "nlcd"} and set(model.projectors.sources) == {"sentinel1"}


def test_an_unknown_source_is_refused_by_name(make_model):
    with pytest.raises(SourceError, match="unknown source 'sentinel9'"):
        make_model(targets=("sentinel9",))
    with pytest.raises(ValueError, match="inputs: expected at least one source"):
        make_model(inputs=())


# --- encoder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side_px", [4, 8, 16, 20, 48, 80])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_any_side_that_is_a_multiple_of_4_gives_one_field_per_period_and_one_map_per_frame(
    make_model, make_batch, side_px, kernel
):
    model = make_model(pyramid_kernel=kernel, targets=("sentinel2", "era5_land", "nlcd"))
    batch = make_batch(
        1,
        side_px=side_px,
        text_dim=8,
        frames={"sentinel2": 2, "landsat": 1},
        targets=("sentinel2", "era5_land", "nlcd"),
    )
    maps = []
    hook = model.encoder.register_forward_hook(lambda module, arguments, output: maps.append(output))
    output = model(batch)
    hook.remove()
    assert maps[0].shape == (batch.total_frames, side_px // 2, side_px // 2, 16)
    assert output.mean.shape == (len(batch.periods), side_px, side_px, 64)
    torch.testing.assert_close(output.mean.norm(dim=-1), torch.ones(output.mean.shape[:3]))
    shapes = {name: tuple(r.shape) for name, r in output.reconstructions.items()}
    assert shapes == {name: (1, side_px, side_px, c) for name, c in (("sentinel2", 5), ("era5_land", 12), ("nlcd", 16))}


def test_paths_run_at_their_resolutions(make_model, make_batch):
    model, shapes = make_model(), {}
    for path in ("precision", "time", "space"):
        getattr(model.encoder.blocks[0], path).register_forward_hook(
            lambda module, arguments, output, path=path: shapes.update({path: tuple(output.shape)})
        )
    batch = make_batch(1, side_px=64, text_dim=8)
    model.embed(batch)
    frames = batch.total_frames
    assert shapes == {"precision": (frames, 32, 32, 16), "time": (frames, 8, 8, 32), "space": (frames, 4, 4, 32)}


def test_all_three_operators_read_what_the_last_exchange_left(make_model):
    """At the same time, not one after the other: no operator of a block sees another's output of that block."""
    block = make_model(awake=True).encoder.blocks[0]
    seen = {}
    for path in ("precision", "time", "space"):
        getattr(block, path).register_forward_hook(
            lambda module, arguments, output, path=path: seen.update({path: arguments[0]})
        )
    states = States(torch.randn(3, 8, 8, 16), torch.randn(3, 2, 2, 32), torch.randn(3, 1, 1, 32))
    block(*states, torch.randn(3, TIMECODE_WIDTH), torch.tensor([0, 3], dtype=torch.int32), 8)
    assert all(seen[path] is getattr(states, path) for path in seen) and len(seen) == 3


@pytest.mark.parametrize(("changes", "written"), [({}, True), ({"checkpointing": "selective"}, False)])
def test_the_merge_before_a_block_writes_its_norm_where_backward_keeps_it(make_model, changes, written):
    """The next block's own norm, in all but the last block; where nothing is kept, the block that reads it makes it."""
    encoder = make_model(awake=True, blocks=3, **changes).encoder
    left = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, arguments, output: left.append(output))
    given = (torch.randn(3, 16, 16, 16), torch.randn(3, TIMECODE_WIDTH), torch.tensor([0, 3], dtype=torch.int32), 8)
    encoder(*given)
    assert [states.normal is not None for states in left] == [written, written, False]
    for states, reader in zip(left, encoder.blocks[1:]):
        if written:
            torch.testing.assert_close(states.normal, reader.precision.norm(states.precision))
    with torch.no_grad():
        encoder(*given)
    assert [states.normal is not None for states in left[3:]] == [False] * 3


def test_only_the_time_operator_mixes_frames(make_model):
    block = make_model(awake=True).encoder.blocks[0]
    states = [torch.randn(3, side, side, width, requires_grad=True) for side, width in ((16, 16), (4, 32), (2, 32))]
    code, offsets = torch.randn(3, TIMECODE_WIDTH), torch.tensor([0, 3], dtype=torch.int32)
    for path, mixes in (("precision", False), ("time", True), ("space", False)):
        operator, x = getattr(block, path), states[("precision", "time", "space").index(path)]
        output = operator(x, code, offsets, 8) if mixes else operator(x)
        (gradient,) = torch.autograd.grad(output[0].sum(), x)
        assert (gradient[1:].abs().max() > 0) == mixes, path


def test_the_time_operator_attends_at_each_pixel_apart_and_the_space_operator_over_the_frame(make_model):
    block = make_model(awake=True).encoder.blocks[0]
    time, space = (torch.randn(2, 2, 2, 32, requires_grad=True) for _ in range(2))
    output = block.time(time, torch.randn(2, TIMECODE_WIDTH), torch.tensor([0, 2], dtype=torch.int32), 8)
    (gradient,) = torch.autograd.grad(output[:, 0, 0].sum(), time)
    assert gradient[:, 0, 0].abs().max() > 0 and gradient[:, 1].abs().max() == 0
    (gradient,) = torch.autograd.grad(block.space(space)[0, 0, 0].sum(), space)
    assert gradient[0, 1, 1].abs().max() > 0


def test_frames_are_conditioned_on_their_own_timestamps(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(1, text_dim=8)
    expected = model.embed(batch)
    for frame in (0, 1):
        times = batch.frame_time_ms.clone()
        times[frame] += 40 * DAY_MS
        changed = model.embed(dataclasses.replace(batch, frame_time_ms=times))
        assert (changed - expected).abs().max() > 1e-4


def test_the_timecode_never_enters_the_residual_of_the_time_path(make_model):
    """With attention's output projection and the MLP silenced, nothing of the timecode is left in the state."""
    operator = make_model(awake=True).encoder.blocks[0].time
    for layer in (operator.out, operator.mlp.contract):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    x, offsets = torch.randn(3, 2, 2, 32), torch.tensor([0, 3], dtype=torch.int32)
    torch.testing.assert_close(operator(x, torch.randn(3, TIMECODE_WIDTH), offsets, 8), x)


def test_norms_are_over_channels_and_never_over_a_batch(make_model):
    kinds = {type(module).__name__ for module in make_model().modules()}
    assert "ChannelNorm" in kinds and not any("BatchNorm" in kind or "GroupNorm" in kind for kind in kinds)


def test_positions_are_those_of_the_offset_from_the_centre_whatever_the_side():
    small, large = position_code(2, 2, torch.zeros(1)), position_code(6, 4, torch.zeros(1))
    torch.testing.assert_close(small, large[2:4, 1:3])
    flat = large.flatten(0, 1)
    assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 0.1


# --- pyramid --------------------------------------------------------------------------------------------------------


def random_states(side=16, frames=2):
    return States(
        *(
            torch.randn(frames, side // by, side // by, width, requires_grad=True)
            for by, width in ((1, WIDTHS[0]), (4, WIDTHS[2]), (8, WIDTHS[3]))
        )
    )


def awake(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_every_path_reaches_every_path(kernel):
    exchange, states = awake(Exchange(WIDTHS, kernel)), random_states()
    paths = {path: getattr(states, path) for path in ("precision", "time", "space")}
    outputs = exchange(states)
    for target in paths:
        gradients = torch.autograd.grad(getattr(outputs, target).sum(), list(paths.values()), retain_graph=True)
        for source, gradient in zip(paths, gradients):
            assert gradient.abs().max() > 0, f"{source} does not reach {target}"


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_the_exchange_is_a_laplacian_pyramid(kernel):
    """The short form equals splitting into bands, adding the coarse states, and rebuilding, level by level."""
    exchange, states = awake(Exchange(WIDTHS, kernel)), random_states()
    for up in (exchange.up8, exchange.up4, exchange.up2):
        torch.nn.init.zeros_(up.bias)  # a bias is added once, not once per rebuilding
    precision, time, space, _ = states
    d4 = exchange.down4(precision)
    d8 = exchange.down8(d4)
    m8 = time + d8
    d16 = exchange.down16(m8)
    m16 = space + d16
    rebuilt8 = (m8 - exchange.up8(d16)) + exchange.up8(m16)
    rebuilt4 = (d4 - exchange.up4(d8)) + exchange.up4(rebuilt8)
    rebuilt2 = (precision - exchange.up2(d4)) + exchange.up2(rebuilt4)
    for found, expected in zip(exchange(states)[:3], (rebuilt2, rebuilt8, m16), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_level_hears_no_echo_of_itself():
    """Without coarse states of their own, the precision path gets back exactly what it sent."""
    exchange = awake(Exchange(WIDTHS, 3))
    for up in (exchange.up8, exchange.up4, exchange.up2):
        torch.nn.init.zeros_(up.bias)
    states = random_states()
    silent = States(states.precision, torch.zeros_like(states.time), torch.zeros_like(states.space))
    torch.testing.assert_close(exchange(silent).precision, states.precision)


def test_a_seed_gives_the_same_weights_whatever_the_version_of_pytorch():
    """`trunc_normal_` drew otherwise in 2.11 than in 2.13: the pinned losses held on one of them only."""
    torch.manual_seed(3)
    weight = new_weight(4, 8, fan_in=8).detach().flatten()
    expected = torch.tensor([-0.0271, 0.12724, -0.27648, 0.02529, -0.4557, 0.4789])  # the last two at their second draw
    torch.testing.assert_close(weight[[0, 1, 2, 3, 25, 30]], expected, rtol=0, atol=1e-4)
    assert weight.abs().max() <= 2 / math.sqrt(8)


@pytest.mark.parametrize("blocks", [2, 8])
def test_residual_branches_start_so_small_that_their_sum_keeps_the_scale(make_model, blocks):
    """Two a block, each of variance 1 / (2 blocks); a normal that is cut at two deviations has 0.88 of them."""
    block = make_model(blocks=blocks, time_width=64, space_width=64).encoder.blocks[0]
    for last in (
        block.precision.last,
        block.time.out,
        block.time.mlp.contract,
        block.space.out,
        block.space.mlp.contract,
    ):
        inputs = last.weight[0].numel()
        assert (last.weight.std() * (2 * blocks * inputs) ** 0.5).item() == pytest.approx(0.88, rel=0.08)


def test_merges_start_at_zero():
    states = random_states()
    for found, expected in zip(Exchange(WIDTHS, 3)(states)[:3], states[:3]):
        torch.testing.assert_close(found, expected)


def test_the_first_and_last_resampling_reach_all_paths():
    precision = torch.randn(2, 16, 16, WIDTHS[0], requires_grad=True)
    states = Descent(WIDTHS, 3)(precision)
    assert [tuple(state.shape[1:]) for state in states[:3]] == [(16, 16, 16), (4, 4, 32), (2, 2, 48)]
    states = random_states()
    for gradient in torch.autograd.grad(Ascent(WIDTHS, 3)(states).square().sum(), states[:3]):
        assert gradient.abs().max() > 0


# --- summary --------------------------------------------------------------------------------------------------------


def test_one_pass_summarises_any_number_of_periods(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(1, text_dim=8)
    calls = []
    model.encoder.register_forward_hook(lambda *arguments: calls.append(1))
    periods = batch.periods[:1] + torch.arange(7)[:, None] * 20 * DAY_MS
    many = dataclasses.replace(
        batch,
        periods=periods,
        period_segment=torch.zeros(7, dtype=torch.int32),
        pairs=7 * int(batch.cu_frames[1]),
    )
    fields = model.embed(many)
    assert fields.shape[0] == 7 and len(calls) == 1
    for row in range(7):
        one = dataclasses.replace(
            many, periods=periods[row : row + 1], period_segment=many.period_segment[:1], pairs=int(batch.cu_frames[1])
        )
        torch.testing.assert_close(model.embed(one)[0], fields[row], rtol=1e-4, atol=1e-5)
    assert (fields[0] - fields[3]).abs().max() > 1e-3


def test_a_period_may_lie_outside_all_frames(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(1, text_dim=8)
    later = dataclasses.replace(batch, periods=batch.periods + 500 * DAY_MS)
    assert model.embed(later).isfinite().all()


def test_the_bias_prefers_the_frames_at_each_heads_part_of_the_period(make_batch):
    batch, bias = make_batch(1, frames={"sentinel2": 40}), PeriodBias(4)
    row, frame = pair_rows(batch)
    assert len(row) == batch.pairs
    values = bias(batch)
    for pair in range(0, batch.pairs, 7):
        start, end = (moment / DAY_MS for moment in batch.periods[row[pair]].tolist())
        time, length = batch.frame_time_ms[frame[pair]].item() / DAY_MS, end - start
        expected = [
            -abs(time - (start + centre * length)) / math.hypot(1.1 / 3 / 2 * length, 8)
            for centre in torch.linspace(-0.05, 1.05, 4).tolist()
        ]
        torch.testing.assert_close(values[pair], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_pairs_are_each_periods_frames_period_by_period(make_batch):
    batch = make_batch(2)
    offsets = batch.cu_frames.tolist()
    expected = [
        (row, frame)
        for row, segment in enumerate(batch.period_segment.tolist())
        for frame in range(offsets[segment], offsets[segment + 1])
    ]
    row, frame = pair_rows(batch)
    assert list(zip(row.tolist(), frame.tolist())) == expected


def test_unit_vectors_have_length_one_and_a_zero_vector_finite_gradients():
    x = torch.randn(5, 64, requires_grad=True)
    torch.testing.assert_close(unit(x).norm(dim=-1), torch.ones(5))
    zero = torch.zeros(1, 64, requires_grad=True)
    unit(zero).sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_levels_of_one_pixel_are_resampled_by_the_tap_that_meets_them(kernel):
    """Small crops have coarse levels of one pixel; what padding and cutting would give costs k² times as much."""
    down, up = Down(5, 7, kernel), Up(7, 5, kernel)
    torch.nn.init.normal_(up.weight)
    fine, coarse = torch.randn(3, 1, 1, 5), torch.randn(3, 1, 1, 7)
    padded = kernels.exchange_down(F.pad(fine, (0, 0, 0, 1, 0, 1)), down.weight, down.bias)
    torch.testing.assert_close(down(fine), padded)
    raised = kernels.exchange_up_add(coarse, up.weight, up.bias, None)
    torch.testing.assert_close(up(coarse, into=fine), fine + raised[:, :1, :1])


# --- layers ---------------------------------------------------------------------------------------------------------


def test_channel_norm_keeps_float32_statistics_of_half_precision_states():
    norm = ChannelNorm(64)
    x = torch.randn(8, 64) * 3 + 100  # bf16 has steps of 0.5 here: statistics in bf16 would be far off
    half = x.bfloat16()
    torch.testing.assert_close(norm(half).float(), norm(half.float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_upsampling_starts_as_interpolation_without_a_checkerboard(kernel):
    up = Up(8, 5, kernel)
    with torch.no_grad():
        image = up(torch.ones(1, 6, 6, 8))[0, 2:-2, 2:-2]
    assert image.std((0, 1)).max() < 1e-5 and image.abs().max() > 0.1


def test_upsampling_to_pixels_keeps_a_constant_map_constant_however_it_is_trained():
    up = Up(8, 5, 4, flat=True).double()
    with torch.no_grad():
        up.weight.normal_()
        image = up(torch.randn(8).double().expand(1, 6, 6, 8))[0, 2:-2, 2:-2]
    assert image.std((0, 1)).max() < 1e-12 and image.abs().max() > 0.1


def test_upsampling_to_pixels_still_tells_the_pixels_of_a_cell_apart():
    up = Up(8, 5, 4, flat=True)
    with torch.no_grad():
        up.weight.normal_()
        cell = torch.zeros(1, 5, 5, 8)
        cell[0, 2, 2] = 1
        image = up(cell)[0, 4:6, 4:6]
    assert image.std((0, 1)).min() > 0.1


def test_taps_without_a_grid_are_the_nearest_and_stay_as_they_are():
    weight = torch.randn(3, 4, 4, 2, dtype=torch.float64)
    flat = without_grid(weight)
    torch.testing.assert_close(without_grid(flat), flat)
    # Nearest: what was taken away is orthogonal to every kernel whose phases have equal sums.
    other = without_grid(torch.randn_like(weight))
    assert abs(((weight - flat) * other).sum()) < 1e-12
    interpolation = Up(3, 2, 4).weight.detach()
    torch.testing.assert_close(without_grid(interpolation), interpolation)
