"""Every parameter learns: after two steps nothing is stuck at zero; gradients are right and survive recomputation."""

import dataclasses

import pytest
import torch

from aef.config import PRESETS
from aef.model import stp
from aef.model.stp import Block
from aef.sources import BUILT_IN
from aef.timecode import TIMECODE_WIDTH


def loss_of(model, batch):
    """A stand-in for the objective that reads all outputs, like its four terms do."""
    output = model(batch)
    teacher, student = output.mean[batch.teacher_row], output.mean[batch.student_row]
    total = (1 - (teacher * student).sum(-1)).mean()
    for name, reconstruction in output.reconstructions.items():
        block = batch.targets[name]
        if BUILT_IN[name].classes:
            error = reconstruction.logsumexp(-1) - reconstruction[..., 0]
        else:
            # Not L1: its signs may balance exactly over the two samples.
            error = (reconstruction - 0.3).square().mean(-1)
        total = total + (error.mean((1, 2)) * block.item_weight).mean()
    aligned = (output.text * teacher[batch.text.sample, 4, 4]).sum(-1) * output.logit_scale.exp()
    given = torch.tensor([float(identity is not None) for identity in batch.text.identity])
    return total - 0.01 * (aligned * given).mean()


def gradients(model, batch):
    model.zero_grad()
    loss_of(model, batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "changes",
    [{}, {"pyramid_kernel": 2, "precision_convs": 3}, {"pyramid_kernel": 4, "precision_convs": 1, "blocks": 3}],
)
def test_after_two_steps_every_parameter_has_had_a_gradient(make_model, make_batch, changes):
    model = make_model(**changes).train()
    batch = make_batch(2, side_px=32, text_dim=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    reached = set()
    for _ in range(2):
        found = gradients(model, batch)
        assert all(gradient.isfinite().all() for gradient in found.values())
        reached |= {name for name, gradient in found.items() if gradient.abs().max() > 0}
        optimizer.step()
    assert {name for name, _ in model.named_parameters()} - reached == set()


def test_absent_sources_take_part_with_zero_gradients(make_model, make_samples, pack):
    """ZeRO reduces every parameter's gradient on every rank: none may be missing, whatever the batch lacks."""
    model = make_model(awake=True).train()
    samples = make_samples(2, side_px=32, text_dim=8, frames={"sentinel2": 3}, targets=("sentinel2",))
    found = gradients(model, pack(samples, text_dim=8))
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, gradient in found.items():
        part, source = name.replace("projectors.sources", "projectors").split(".")[:2]
        absent = part in ("projectors", "decoders") and source != "sentinel2"
        assert (gradient.abs().max() == 0) == absent, name


def test_gradients_flow_through_teacher_and_student(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(1, text_dim=8)
    for row in (batch.teacher_row, batch.student_row):
        model.zero_grad()
        model(batch).mean[row].sum().backward()
        assert model.projectors.sources["sentinel2"].conv.weight.grad.abs().max() > 0


def check_finite_differences(parameters, loss):
    """Along one random direction per parameter, the slope of `loss` is that which backward finds."""
    names, tensors = zip(*parameters)
    analytic = torch.autograd.grad(loss(), tensors)
    random, step = torch.Generator().manual_seed(0), 1e-6
    for name, parameter, gradient in zip(names, tensors, analytic):
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        direction = direction / direction.norm() + gradient / gradient.norm()
        with torch.no_grad():
            parameter.add_(step * direction)
            above = loss().item()
            parameter.sub_(2 * step * direction)
            below = loss().item()
            parameter.add_(step * direction)
        numeric, expected = (above - below) / (2 * step), (gradient * direction).sum().item()
        assert abs(numeric - expected) < 1e-5 * abs(expected) + 1e-8, f"{name}: {numeric} against {expected}"


def test_the_encoders_gradients_are_those_of_finite_differences(make_model):
    encoder = make_model(awake=True, blocks=1).encoder.double()
    states = torch.randn(3, 16, 16, 16, dtype=torch.float64)
    timecode = torch.randn(3, TIMECODE_WIDTH, dtype=torch.float64)
    weights = torch.randn(3, 16, 16, 16, dtype=torch.float64)
    offsets = torch.tensor([0, 2, 3], dtype=torch.int32)
    check_finite_differences(
        list(encoder.named_parameters()), lambda: (encoder(states, timecode, offsets, 8) * weights).mean()
    )


def test_all_other_gradients_are_those_of_finite_differences(make_model, make_batch):
    sources = ("sentinel1", "nlcd")
    model = make_model(awake=True, inputs=sources[:1], targets=sources, blocks=1).double().eval()
    batch = make_batch(1, text_dim=8, frames={"sentinel1": 2}, inputs=sources[:1], targets=sources)
    others = [(name, p) for name, p in model.named_parameters() if not name.startswith("encoder")]
    check_finite_differences(others, lambda: loss_of(model, batch))


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_recomputing_activations_changes_nothing(make_model, make_batch, checkpointing):
    batch = make_batch(2, text_dim=8)
    # In fp64: what is made again may be added up in another order.
    expected = gradients(make_model(awake=True).double().train(), batch)
    found = gradients(make_model(awake=True, checkpointing=checkpointing).double().train(), batch)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_bfloat16_operands_stay_close_to_float32(make_model, make_batch):
    batch = make_batch(2, text_dim=8)
    exact = make_model(awake=True).eval()
    rounded = make_model(awake=True, compute_dtype="bfloat16").eval()
    one, other = exact(batch), rounded(batch)
    assert other.mean.dtype == torch.float32
    assert (one.mean * other.mean).sum(-1).min() > 0.999
    for name in one.reconstructions:
        assert other.reconstructions[name].dtype == torch.float32
        torch.testing.assert_close(other.reconstructions[name], one.reconstructions[name], rtol=0.1, atol=0.1)
    found, expected = gradients(rounded, batch), gradients(exact, batch)
    for name in ("encoder.blocks.0.time.qkv.weight", "projectors.sources.sentinel2.conv.weight", "summary.out.weight"):
        similarity = torch.cosine_similarity(found[name].flatten(), expected[name].flatten(), dim=0)
        assert found[name].dtype == torch.float32 and similarity > 0.98, name


def test_an_engine_that_casts_the_parameters_decides_the_operands(make_model, make_batch):
    batch = make_batch(2, text_dim=8)
    cast = make_model(awake=True).to(torch.bfloat16).eval()
    output = cast(batch)
    assert output.mean.dtype == output.text.dtype == output.logit_scale.dtype == torch.float32
    assert all(reconstruction.dtype == torch.float32 for reconstruction in output.reconstructions.values())
    assert (output.mean * make_model(awake=True).eval()(batch).mean).sum(-1).min() > 0.99
    assert all(gradient.isfinite().all() for gradient in gradients(cast, batch).values())


@pytest.mark.parametrize(
    ("setting", "how"),
    [("cuda_graphs", {"dynamic": False, "mode": "reduce-overhead"}), ("compile", {"dynamic": False})],
)
def test_blocks_are_compiled_for_each_length_and_only_where_there_is_a_gradient(
    setting, how, make_model, make_batch, monkeypatch
):
    asked, called = [], []
    monkeypatch.setattr(Block, "compile", lambda self, **settings: asked.append(settings))
    model, batch = make_model(**{setting: True}), make_batch(1, text_dim=8)
    assert asked == [how] * model.config.blocks
    assert torch._dynamo.config.recompile_limit >= stp.COMPILED_LENGTHS * stp.COMPILED_KINDS
    for block in model.encoder.blocks:  # hooks belong to what `compile` replaces, not to `forward`
        block.register_forward_hook(lambda *arguments: called.append(1))
    with torch.no_grad():
        expected = model.embed(batch)
    assert called == []
    torch.testing.assert_close(model.embed(batch), expected)
    assert len(called) == model.config.blocks


def test_all_blocks_are_compiled_for_as_many_lengths_as_is_said(monkeypatch):
    made = []
    compiler = {"dynamic": False, "backend": lambda graph, _: made.append(1) or graph.forward}
    monkeypatch.setattr(stp, "COMPILED", compiler)
    monkeypatch.setattr(stp, "COMPILED_LENGTHS", 1)
    torch._dynamo.reset()  # what other tests compiled counts too
    with torch._dynamo.config.patch(recompile_limit=1):
        config = dataclasses.replace(PRESETS["tiny"].model, blocks=4, compile=True)
        encoder = stp.Encoder(config)
        states, timecode = torch.randn(3, 4, 4, config.precision_width), torch.randn(3, TIMECODE_WIDTH)
        encoder(states, timecode, torch.tensor([0, 3], dtype=torch.int32), 8)
    assert len(made) == stp.COMPILED_KINDS


@pytest.mark.parametrize(
    ("with_reader", "checkpointing"),
    [(False, "none"), (True, "none"), (False, "selective")],
    ids=["last block", "inner block", "operands made again"],
)
def test_a_block_compiles_into_one_graph(make_model, with_reader, checkpointing):
    block, following = make_model(awake=True, checkpointing=checkpointing).encoder.blocks
    shapes = ((3, 8, 8, 16), (3, 2, 2, 32), (3, 1, 1, 32), (3, 8, 8, 16))
    states = [torch.randn(shape, requires_grad=True) for shape in shapes]
    rest = (torch.randn(3, TIMECODE_WIDTH), torch.tensor([0, 2, 3], dtype=torch.int32), 8)
    reader = following.precision.norm if with_reader else None
    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend="aot_eager")
    found, wanted = (run(*states, *rest, reader) for run in (compiled, block))
    assert (found.normal is not None) == with_reader
    gradients = []
    for outputs in (found, wanted):
        present = [one for one in outputs if one is not None]
        gradients.append((*present, *torch.autograd.grad([one.square().sum() for one in present], states)))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
@pytest.mark.parametrize("setting", ["compile", "cuda_graphs"])
def test_compiled_blocks_equal_eager_blocks(make_model, make_batch, setting, checkpointing):
    batch = make_batch(2, text_dim=8)
    expected = gradients(make_model(awake=True).train(), batch)
    compiled = make_model(awake=True, checkpointing=checkpointing, **{setting: True}).train()
    assert list(compiled.state_dict()) == list(make_model().state_dict())
    for name, gradient in gradients(compiled, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
