"""From unit vectors to what is compared: the bottleneck's noise, the decoders and the text head."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from aef.model.bottleneck import Bottleneck
from aef.model.decoders import Decoder, encode_metadata
from aef.model.summary import unit
from aef.model.text import INITIAL_LOGIT_SCALE, LARGEST_LOGIT_SCALE, clip_scale
from aef.sources import BUILT_IN, MetadataField
from aef.timecode import DAY_MS, YEAR_MS, encode_unit

# --- bottleneck and decoders ----------------------------------------------------------------------------------------


def test_training_decodes_from_a_noisy_sample_and_inference_from_the_mean(make_model, make_batch):
    model, batch = make_model(awake=True), make_batch(1, text_dim=8)
    seen = {}
    model.decoders["sentinel2"].register_forward_hook(lambda module, arguments, output: seen.update(x=arguments[0]))
    for training in (True, False):
        mean = model.train(training)(batch).mean[batch.targets["sentinel2"].period_row].flatten(1, 2)
        cosine = (seen["x"] * mean).sum(-1)
        if training:
            assert abs(cosine.mean() - 0.9961) < 0.0007  # κ = 8000 in 64 dimensions: 5.06° on average
        else:
            torch.testing.assert_close(seen["x"], mean)


def test_the_concentration_is_fixed(make_model):
    model = make_model()
    assert model.bottleneck.kappa == 8000 and not list(model.bottleneck.parameters())


def test_noise_belongs_to_sample_slot_and_pixel():
    bottleneck = Bottleneck(8000.0).train()
    mean = unit(torch.randn(1, 1, 64)).expand(2, 9, 64)
    hashes, slots = torch.tensor([2**40 - 1, 5]), torch.tensor([0, 1])
    drawn = bottleneck(mean, hashes, slots, (1, 2))
    flat = drawn.flatten(0, 1)
    assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 0.01  # nobody shares noise
    of_one_sample = bottleneck(mean, hashes[[0, 0]], slots, (1, 2)).flatten(0, 1)
    assert torch.cdist(of_one_sample, of_one_sample).fill_diagonal_(1).min() > 0.01
    assert torch.equal(bottleneck(mean.flip(0), hashes.flip(0), slots.flip(0), (1, 2)).flip(0), drawn)
    assert not torch.equal(bottleneck(mean, hashes, slots, (1, 3)), drawn)
    assert not torch.equal(bottleneck(mean, hashes, slots + 1, (1, 2)), drawn)


def test_a_decoder_is_an_mlp_of_two_hidden_layers_on_embedding_metadata_and_time():
    source = BUILT_IN["sentinel1"]
    decoder = Decoder(source, 64, 512)
    embedding, position = unit(torch.randn(2, 9, 64)), torch.tensor([0.0, 0.7])
    metadata = torch.tensor([[350.0, math.nan], [10.0, 98.0]])
    found = decoder(embedding, metadata, position, torch.float32)
    encoded = torch.tensor(
        [
            [math.sin(math.radians(350)), math.cos(math.radians(350)), 0, 0, 0, 1],
            [
                math.sin(math.radians(10)),
                math.cos(math.radians(10)),
                0,
                math.sin(math.radians(98)),
                math.cos(math.radians(98)),
                0,
            ],
        ]
    )
    octaves = torch.pi * 2.0 ** torch.arange(8) * position[:, None]
    context = torch.cat((encoded, octaves.sin(), octaves.cos()), -1)[:, None].expand(-1, 9, -1)
    x = torch.cat((8 * embedding, context), -1)  # components of order 1
    first = torch.cat((decoder.embedding.weight, decoder.context.weight), 1)
    assert first.shape == (512, 64 + source.metadata_width + 16) and decoder.hidden.weight.shape == (512, 512)
    gelu = torch.nn.functional.gelu
    y = gelu(x @ first.T + decoder.context.bias)
    y = gelu(y @ decoder.hidden.weight.T + decoder.hidden.bias)
    torch.testing.assert_close(found, y @ decoder.out.weight.T + decoder.out.bias, rtol=1e-4, atol=1e-5)


def test_a_gated_decoder_multiplies_what_it_makes_of_the_embedding_by_metadata_and_time():
    source, position = BUILT_IN["sentinel2"], torch.tensor([0.2, 0.7])
    embedding, metadata = unit(torch.randn(2, 9, 64)), torch.zeros(2, 0)
    gated, plain = Decoder(source, 64, 16, gated=True), Decoder(source, 64, 16)
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if not name.startswith("gate.")})
    for decoder, factor in ((gated, None), (plain, 1.0)):
        found = decoder(embedding, metadata, position, torch.float32)
        code = encode_unit(position)
        scale = 1 + code @ gated.gate.weight.T + gated.gate.bias if factor is None else torch.ones(2, 16)
        first = scale[:, None] * (8 * embedding @ gated.embedding.weight.T)
        first = first + (code @ gated.context.weight.T + gated.context.bias)[:, None]
        hidden = F.gelu(F.gelu(first) @ gated.hidden.weight.T + gated.hidden.bias)
        torch.testing.assert_close(found, hidden @ gated.out.weight.T + gated.out.bias, rtol=1e-4, atol=1e-5)


def test_a_decoder_sees_one_pixel_at_a_time():
    decoder = Decoder(BUILT_IN["gedi"], 64, 32)
    embedding = torch.randn(1, 9, 64, requires_grad=True)
    out = decoder(embedding, torch.zeros(1, 0), torch.tensor([0.5]), torch.float32)
    assert out.shape == (1, 9, 101)
    (gradient,) = torch.autograd.grad(out[0, 4].sum(), embedding)
    assert gradient[0, 4].abs().max() > 0 and gradient[0, :4].abs().max() == gradient[0, 5:].abs().max() == 0


def test_flags_and_values_are_fed_as_they_are_and_missing_ones_say_so():
    fields = (MetadataField("pass", "flag"), MetadataField("height", "value"))
    encoded = encode_metadata(fields, torch.tensor([[1.0, math.nan], [-1.0, 2.5]]))
    assert encoded.tolist() == [[1, 0, 0, 1], [-1, 0, 2.5, 0]]


def test_every_target_is_decoded_from_the_summary_of_its_own_period(make_model, make_batch):
    model, batch = make_model(awake=True).eval(), make_batch(1, text_dim=8, targets_per_source=2)
    output, block = model(batch), batch.targets["landsat"]
    assert block.period_row[0] != block.period_row[1]
    swapped = dataclasses.replace(block, period_row=block.period_row.flip(0))
    changed = model(dataclasses.replace(batch, targets={**batch.targets, "landsat": swapped}))
    assert (changed.reconstructions["landsat"] - output.reconstructions["landsat"]).abs().max() > 1e-4
    assert torch.equal(changed.reconstructions["sentinel2"], output.reconstructions["sentinel2"])


def test_a_target_is_decoded_at_its_position_in_its_own_period(make_model, make_batch):
    model, batch = make_model().eval(), make_batch(2, text_dim=8, targets_per_source=2)
    asked = {}
    for name, decoder in model.decoders.items():
        decoder.register_forward_pre_hook(lambda module, inputs, name=name: asked.update({name: inputs[2]}))
    model(batch)
    for name, block in batch.targets.items():
        start, end = batch.periods[block.period_row].unbind(-1)
        torch.testing.assert_close(
            asked[name].double(), (block.time_ms - start) / (end - start).double(), atol=1e-6, rtol=0
        )


# --- text -----------------------------------------------------------------------------------------------------------


def test_text_becomes_a_unit_vector_of_its_period(make_model, make_batch):
    model, batch = make_model(), make_batch(3, text_dim=8)
    output = model(batch)
    torch.testing.assert_close(output.text.norm(dim=-1), torch.ones(3))
    assert output.logit_scale.shape == (1,) and output.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    later = dataclasses.replace(batch, periods=batch.periods + 90 * DAY_MS)
    assert (model(later).text - output.text).abs().max() > 1e-4
    # It says length and season: not which year.
    assert torch.equal(model(dataclasses.replace(batch, periods=batch.periods + 3 * YEAR_MS)).text, output.text)
    # Its code is relative to its own start: the support, which would tell places apart, is not among what it reads.
    elsewhere = dataclasses.replace(batch, support_start_ms=batch.support_start_ms - 50 * DAY_MS)
    assert torch.equal(model(elsewhere).text, output.text)


def test_without_a_text_tower_there_is_no_text_head(make_model, make_batch):
    model = make_model(text_dim=0)
    output = model(make_batch(2))
    assert model.text_head is None and not any(name.startswith("text") for name, _ in model.named_parameters())
    assert output.text.shape == (1, 64) and output.logit_scale.tolist() == pytest.approx([INITIAL_LOGIT_SCALE])


@pytest.mark.parametrize(("start", "pull", "passes"), [(5.0, -1.0, False), (5.0, 1.0, True), (3.0, -1.0, True)])
def test_the_temperature_is_clipped_but_never_trapped(start, pull, passes):
    scale = torch.tensor([start], requires_grad=True)
    clipped = clip_scale(scale)
    assert clipped.item() == pytest.approx(min(start, LARGEST_LOGIT_SCALE))
    (pull * clipped).sum().backward()
    assert scale.grad.item() == (pull if passes else 0)
