"""Packed frames against a padded implementation, and everything that a sample must not notice."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aef.data.batch import FrameBlock
from aef.data.sample import Frames
from aef.data.statistics import Statistics
from aef.model.projectors import Projector
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, encode_period, encode_time


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- the padded implementation: every sample and view has T frames, absent ones hold noise and are masked ------------


class Dense:
    """The same network from the same parameters, over padded frames (S, T, …) with a mask, in plain PyTorch (NCHW)."""

    def __init__(self, model):
        self.config, self.p = model.config, dict(model.named_parameters())

    def embed(self, batch):
        images, times, mask = self.pad(batch)
        segments, length = mask.shape
        start = batch.support_start_ms[:segments, None].expand(-1, length)
        code = encode_time(times, start)
        states = self.encode(images, code, mask)
        return torch.stack([self.summarize(states, code, times, mask, batch, row) for row in range(len(batch.periods))])

    def pad(self, batch):
        offsets = batch.cu_frames.tolist()
        segments = len(batch.support_start_ms)
        lengths = [offsets[i + 1] - offsets[i] for i in range(segments)]
        length = max(lengths) + 2
        width, half = self.config.precision_width, batch.side_px // 2
        images = torch.randn(segments, length, width, half, half)  # absent frames hold noise
        times = torch.randint(0, 10**12, (segments, length))
        mask = torch.zeros(segments, length, dtype=torch.bool)
        for segment in range(segments):
            mask[segment, : lengths[segment]] = True
            times[segment, : lengths[segment]] = batch.frame_time_ms[offsets[segment] : offsets[segment + 1]]
        for name, block in batch.frames.items():
            projected = self.project(name, block)
            for frame, place in enumerate(block.position.tolist()):
                if place >= 0:
                    segment = int(batch.frame_segment[place])
                    images[segment, place - offsets[segment]] = projected[frame]
        return images, times, mask

    def conv(self, x, name, **options):
        return F.conv2d(x, self.p[f"{name}.weight"].permute(0, 3, 1, 2), self.p[f"{name}.bias"], **options)

    def up(self, x, name, **options):
        return F.conv_transpose2d(
            x, self.p[f"{name}.weight"].permute(0, 3, 1, 2), self.p[f"{name}.bias"], stride=2, **options
        )

    def linear(self, x, name):
        return F.linear(x, self.p[f"{name}.weight"], self.p.get(f"{name}.bias"))

    def norm(self, x, name):
        weight = self.p[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.p[f"{name}.bias"], eps=1e-6)

    def norm_image(self, x, name):
        return self.norm(x.permute(0, 2, 3, 1), name).permute(0, 3, 1, 2)

    def mlp(self, x, name):
        hidden = F.gelu(self.linear(self.norm(x, f"{name}.norm"), f"{name}.expand"))
        return x + self.linear(hidden, f"{name}.contract")

    def project(self, name, block):
        source = BUILT_IN[name]
        columns = []
        for i, band in enumerate(source.bands):
            value, t = block.values[..., i].float(), band.transform
            y = torch.log1p((t.scale * value).clamp(min=0)) / 10 if t.kind == "log" else t.scale * value + t.offset
            columns.append(torch.where(block.valid.expand_as(block.values)[..., i], y.clamp(-6, 6), 0))
        valid = block.valid.expand_as(block.values).float()
        image = torch.cat((torch.stack(columns, -1), valid), -1).permute(0, 3, 1, 2)
        prefix = f"projectors.sources.{name}"
        return self.conv(F.gelu(self.conv(image, f"{prefix}.down", stride=2, padding=1)), f"{prefix}.conv", padding=1)

    def encode(self, images, code, mask):
        segments, length = mask.shape
        down = {"stride": 2, "padding": 1}
        up = {"padding": 1, "output_padding": 1}
        p = images.flatten(0, 1)
        t = self.conv(self.conv(p, "encoder.descent.down4", **down), "encoder.descent.down8", **down)
        s = self.conv(t, "encoder.descent.down16", **down)
        s = s + self.positions(s.shape[-1])
        for block in range(self.config.blocks):
            b = f"encoder.blocks.{block}"
            y = F.gelu(self.conv(self.norm_image(p, f"{b}.precision.norm"), f"{b}.precision.inner.0", padding=1))
            p2 = p + self.conv(y, f"{b}.precision.last", padding=1)
            t2 = self.attend_in_time(t, code, mask, f"{b}.time")
            s2 = self.attend_in_space(s, f"{b}.space")
            e = f"{b}.exchange"
            # The pyramid as its docstring draws it: bands, coarse sums, rebuilding.
            d4 = self.conv(p2, f"{e}.down4", **down)
            g8 = self.conv(d4, f"{e}.down8", **down)
            m8 = t2 + g8
            g16 = self.conv(m8, f"{e}.down16", **down)
            m16 = s2 + g16
            new_t = (
                (m8 - self.up(g16, f"{e}.up8", **up))
                + self.up(m16, f"{e}.up8", **up)
                + self.p[f"{e}.up8.bias"][:, None, None]
            )
            q = (
                (d4 - self.up(g8, f"{e}.up4", **up))
                + self.up(new_t, f"{e}.up4", **up)
                + self.p[f"{e}.up4.bias"][:, None, None]
            )
            p = (
                (p2 - self.up(d4, f"{e}.up2", **up))
                + self.up(q, f"{e}.up2", **up)
                + self.p[f"{e}.up2.bias"][:, None, None]
            )
            t, s = new_t, m16
        a = "encoder.ascent"
        return (p + self.up(self.up(t + self.up(s, f"{a}.up8", **up), f"{a}.up4", **up), f"{a}.up2", **up)).unflatten(
            0, (segments, length)
        )

    def positions(self, side):
        code = torch.zeros(side, side, 24)
        for row in range(side):
            for column in range(side):
                for axis, at in enumerate((row, column)):
                    for octave in range(6):
                        angle = 2 * math.pi * (at - (side - 1) / 2) / 2 ** (octave + 1)
                        code[row, column, 12 * axis + octave] = math.sin(angle)
                        code[row, column, 12 * axis + 6 + octave] = math.cos(angle)
        return self.linear(code, "encoder.position.project").permute(2, 0, 1)

    def heads(self, x, name, heads):
        return [y.unflatten(-1, (heads, -1)).transpose(-2, -3) for y in self.linear(x, f"{name}.qkv").chunk(3, -1)]

    def attend_in_time(self, x, code, mask, name):
        segments, length = mask.shape
        side = x.shape[-1]
        x = x.unflatten(0, (segments, length)).flatten(3).permute(0, 3, 1, 2)  # (S, P, T, C)
        y = self.norm(x, f"{name}.norm") + self.linear(code, f"{name}.time")[:, None]
        q, k, v = self.heads(y, name, x.shape[-1] // self.config.head_width)
        keys = mask[:, None, None, None, :]
        scores = (q @ k.transpose(-1, -2) / math.sqrt(self.config.head_width)).masked_fill(~keys, -math.inf)
        out = torch.nan_to_num(scores.softmax(-1)) @ v
        x = x + self.linear(out.transpose(2, 3).flatten(-2), f"{name}.out")
        x = self.mlp(x, f"{name}.mlp")
        return x.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (side, side))

    def attend_in_space(self, x, name):
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.heads(self.norm(x, f"{name}.norm"), name, x.shape[-1] // self.config.head_width)
        out = (q @ k.transpose(-1, -2) / math.sqrt(self.config.head_width)).softmax(-1) @ v
        x = self.mlp(x + self.linear(out.transpose(1, 2).flatten(-2), f"{name}.out"), f"{name}.mlp")
        return x.transpose(1, 2).unflatten(-1, (side, side))

    def summarize(self, states, code, times, mask, batch, row):
        segment = int(batch.period_segment[row])
        start, end = batch.periods[row].tolist()
        keys = self.norm(states[segment].permute(0, 2, 3, 1), "summary.norm")  # (T, h, w, C)
        keys = keys + self.linear(code[segment], "summary.time")[:, None, None]
        period = encode_period(batch.periods[row : row + 1], batch.support_start_ms[segment : segment + 1])
        hidden = F.gelu(self.linear(period, "summary.period_hidden"))
        token = self.p["summary.seed"] + self.linear(hidden, "summary.period")[0]
        heads = self.config.summary_heads
        query = self.linear(token, "summary.to_query").unflatten(0, (heads, -1))
        k = torch.einsum("thwc,ndc->thwnd", keys, self.p["summary.key"])
        logits = torch.einsum("nd,thwnd->thwn", query, k) / math.sqrt(query.shape[-1])
        logits = logits + self.bias(times[segment], start, end)[:, None, None]
        weights = torch.nan_to_num(logits.masked_fill(~mask[segment][:, None, None, None], -math.inf).softmax(0))
        pooled = torch.einsum("thwn,thwc->hwnc", weights, keys).flatten(-2)
        base = self.linear(token, "summary.residual")
        y = self.mlp(base + self.linear(pooled, "summary.out"), "summary.mlp")
        y = self.norm(y, "head.norm").permute(2, 0, 1)[None]
        # Each phase's answer to a constant map is brought to the mean answer, a quarter of the excess from each of its taps.
        weight = self.p["head.up.weight"].permute(0, 3, 1, 2).clone()
        phases = {(i, j): weight[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)}
        mean = weight.sum((2, 3)) / 4
        for taps in phases.values():
            taps -= (taps.sum((2, 3)) - mean)[..., None, None] / 4
        pixels = F.conv_transpose2d(y, weight, self.p["head.up.bias"], stride=2, padding=1)
        return F.normalize(pixels[0].permute(1, 2, 0), dim=-1)

    def bias(self, times, start, end):
        length = (end - start) / DAY_MS
        spacing = 1.1 / (self.config.summary_heads - 1)
        width = math.sqrt((spacing / 2 * length) ** 2 + 64)
        rows = []
        for time in times.tolist():
            u = (time - start) / (end - start)
            beyond = (u - min(max(u, 0), 1)) * length / width
            x = torch.tensor([min(max(u, -1), 2), min(max(beyond, -8), 8), length / 365, width / 30])
            distance = ((time - start) / DAY_MS - self.p["summary.bias.centre"] * length).abs() / width
            learned = self.linear(F.gelu(self.linear(x, "summary.bias.hidden")), "summary.bias.out")
            rows.append(learned - self.p["summary.bias.sharpness"].exp() * distance)
        return torch.stack(rows)


@pytest.mark.parametrize("side_px", [16, 32])
def test_packed_frames_equal_padded_frames(make_model, make_batch, side_px):
    model = make_model(awake=True)
    batch = make_batch(2, side_px=side_px, text_dim=8, targets_per_source=2)
    expected = Dense(model).embed(batch)
    actual = model.embed(batch)
    close(actual, expected)
    direction = torch.randn(actual.shape)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad((actual * direction).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((expected * direction).sum(), parameters, allow_unused=True)
    for one, other in zip(ours, theirs):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() <= 1e-5 * other.norm()


# --- what changes nothing -------------------------------------------------------------------------------------------


def test_the_order_of_a_sources_frames_does_not_matter(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(2, text_dim=8)
    block = batch.frames["sentinel2"]
    order = torch.randperm(len(block.position))
    shuffled = dataclasses.replace(
        block, values=block.values[order], valid=block.valid[order], position=block.position[order]
    )
    close(model.embed(dataclasses.replace(batch, frames={**batch.frames, "sentinel2": shuffled})), model.embed(batch))


def test_permuting_frames_with_their_timestamps_does_not_change_the_summaries(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(2, text_dim=8)
    place = torch.arange(batch.total_frames)
    for start, end in zip(batch.cu_frames.tolist(), batch.cu_frames.tolist()[1:]):
        place[start:end] = start + torch.randperm(end - start)
    times = torch.empty_like(batch.frame_time_ms)
    times[place] = batch.frame_time_ms
    frames = {name: dataclasses.replace(block, position=place[block.position]) for name, block in batch.frames.items()}
    assert not torch.equal(times, batch.frame_time_ms)
    close(model.embed(dataclasses.replace(batch, frames=frames, frame_time_ms=times)), model.embed(batch))


@pytest.mark.parametrize("garbage", [1e6, math.nan])
def test_values_that_were_not_observed_do_not_matter(make_model, make_batch, garbage):
    model, batch = make_model(awake=True), make_batch(2, text_dim=8)
    spoiled = {
        name: dataclasses.replace(block, values=torch.where(block.valid, block.values, garbage))
        for name, block in batch.frames.items()
    }
    assert not torch.equal(spoiled["sentinel1"].values, batch.frames["sentinel1"].values)
    assert torch.equal(model.embed(dataclasses.replace(batch, frames=spoiled)), model.embed(batch))


def test_a_class_that_was_not_observed_does_not_matter():
    source = BUILT_IN["nlcd"]
    projector = Projector(source, Statistics.identity(BUILT_IN, ()), 8, 6.0)
    codes = torch.tensor(source.classes[:4]).view(1, 2, 2, 1)
    valid = torch.tensor([True, True, True, False]).view(1, 2, 2, 1)
    other = torch.where(valid, codes, source.classes[7])
    one, same = (projector(FrameBlock(c, valid, torch.zeros(1)), torch.float32) for c in (codes, other))
    assert torch.equal(one, same)
    seen = projector(FrameBlock(other, torch.ones_like(valid), torch.zeros(1)), torch.float32)
    assert not torch.allclose(seen, one)


def test_the_classes_of_an_encoded_source_are_brought_to_the_device_once(monkeypatch):
    source = BUILT_IN["nlcd"]
    projector = Projector(source, Statistics.identity(BUILT_IN, ()), 8, 6.0)
    codes = torch.tensor(source.classes[:4]).view(1, 2, 2, 1)
    block = FrameBlock(codes, torch.ones_like(codes, dtype=torch.bool), torch.zeros(1))
    first = projector(block, torch.float32)
    monkeypatch.setattr(torch, "tensor", None)  # on a GPU a copy for which the host waits
    assert torch.equal(projector(block, torch.float32), first)


def test_observed_values_do_matter(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(2, text_dim=8)
    for name, block in batch.frames.items():
        changed = dataclasses.replace(block, values=block.values * 0.5)
        embedded = model.embed(dataclasses.replace(batch, frames={**batch.frames, name: changed}))
        assert (embedded - model.embed(batch)).abs().max() > 1e-4, name


def test_the_dummy_of_an_absent_source_does_not_matter(make_model, make_batch):
    model = make_model(awake=True)
    batch = make_batch(2, text_dim=8, frames={"sentinel2": 4})
    dummy = batch.frames["landsat"]
    assert dummy.position.tolist() == [-1]
    noise = dataclasses.replace(dummy, values=torch.rand_like(dummy.values), valid=torch.ones_like(dummy.valid))
    assert torch.equal(
        model.embed(dataclasses.replace(batch, frames={**batch.frames, "landsat": noise})), model.embed(batch)
    )


def test_filler_frames_do_not_matter(make_model, make_samples, pack):
    model, samples = make_model(awake=True), make_samples(2, text_dim=8)
    plain, filled = pack(samples, text_dim=8), pack(samples, text_dim=8, frame_bucket=13)
    assert filled.total_frames > plain.total_frames and filled.total_frames % 13 == 0
    close(model.embed(filled), model.embed(plain))


def test_a_samples_result_does_not_depend_on_its_companions(make_model, make_samples, pack):
    model = make_model(awake=True).train()
    # Each in a year of its own, as supports are drawn.
    samples = [s.moved(17 * n * DAY_MS) for n, s in enumerate(make_samples(3, text_dim=8, targets_per_source=2))]
    together, alone = model(pack(samples, text_dim=8)), model(pack(samples[1:2], text_dim=8))
    batch = pack(samples, text_dim=8)
    mine = batch.period_segment // 2 == 1
    close(together.mean[mine], alone.mean)
    for name, reconstruction in alone.reconstructions.items():
        # Training mode: the noise of the bottleneck is the same too.
        close(together.reconstructions[name][batch.targets[name].sample == 1], reconstruction)
    close(together.text[1:2], alone.text)


# --- the empty and the small ----------------------------------------------------------------------------------------


def backward_is_finite(model, batch):
    output = model(batch)
    total = output.mean.sum() + output.text.sum() + sum(r.square().mean() for r in output.reconstructions.values())
    total.backward()
    tensors = [output.mean, output.text, *output.reconstructions.values(), *(p.grad for p in model.parameters())]
    return all(tensor.isfinite().all() for tensor in tensors if tensor is not None)


def test_an_emptied_student_is_finite_and_no_longer_looks_at_any_frame(make_model, make_samples, pack):
    model, samples = make_model(awake=True), make_samples(2, text_dim=8)
    samples[0].student = {}
    batch = pack(samples, text_dim=8)
    assert backward_is_finite(model, batch)
    mean = model.embed(batch)
    student = mean[batch.student_row[0]]
    close(student.norm(dim=-1), torch.ones(16, 16))
    other = make_samples(2, text_dim=8, seed=5)
    other[0].student, other[0].consistency_period = {}, samples[0].consistency_period
    elsewhere = pack(other, text_dim=8)
    close(model.embed(elsewhere)[elsewhere.student_row[0]], student)


def test_a_batch_without_any_frame_is_finite(make_model, make_samples, pack):
    samples = make_samples(2, text_dim=8)
    for sample in samples:
        sample.teacher, sample.student = {}, {}
    assert backward_is_finite(make_model(awake=True), pack(samples, text_dim=8))


@pytest.mark.parametrize("frames", [{"sentinel1": 3}, {"sentinel2": 1}, {"landsat": 1, "sentinel1": 1}])
def test_few_frames_and_few_sources_are_enough(make_model, make_batch, frames):
    assert backward_is_finite(make_model(awake=True), make_batch(1, frames=frames, text_dim=8))


def test_a_sample_without_targets_is_finite(make_model, make_samples, pack):
    samples = make_samples(1, text_dim=8)
    samples[0].targets = {}
    assert backward_is_finite(make_model(awake=True), pack(samples, text_dim=8))


def test_frames_of_every_stored_type_are_encoded(make_model, make_samples, pack):
    """Chips hold integers; what the encoder sees of them must be what it sees of the same numbers as floats."""
    model, samples = make_model(awake=True), make_samples(1, text_dim=8)
    for sample in samples:
        f = sample.teacher["sentinel2"]
        sample.teacher["sentinel2"] = Frames(np.round(f.values), f.valid, f.time_ms)
    expected = model.embed(pack(samples, text_dim=8))
    for kind in (np.uint16, np.int32, np.float64):
        f = sample.teacher["sentinel2"]
        sample.teacher["sentinel2"] = Frames(f.values.astype(kind), f.valid, f.time_ms)
        close(model.embed(pack(samples, text_dim=8)), expected)
