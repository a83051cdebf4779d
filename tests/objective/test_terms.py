"""Uniformity, consistency and the contrastive term, each against its formula."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from aef.objective.consistency import consistency
from aef.objective.contrastive import disc_mean, info_nce, same_texts
from aef.objective.uniformity import Partners, partners, rings, uniformity_channels, uniformity_pairs
from aef.objective.world import World

ALONE = World()


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- uniformity ------------------------------------------------------------------------------------------------------


def test_the_partner_is_the_next_sample_of_another_place_in_global_order():
    assert partners([0, 1, 2, 3], [7, 8, 9, 10]) == [1, 2, 3, 0]
    assert partners([0, 1, 2, 3], [7, 7, 8, 7]) == [2, 2, 3, 2]
    # Global order, not the order in which ranks hold the samples.
    assert partners([3, 0, 2, 1], [10, 7, 9, 8]) == [1, 3, 0, 2]


def test_crops_of_a_chip_are_paired_with_those_of_the_next_one_by_one():
    assert partners([0, 1, 2, 3], [7, 7, 8, 8]) == [2, 3, 0, 1]
    crops = partners(range(24), [number // 4 for number in range(24)])
    assert sorted(crops) == list(range(24)) and crops[:5] == [4, 5, 6, 7, 8]
    # Of fewer crops each is taken in turn; a chip that the end of the batch cuts is one.
    assert partners([0, 1, 2, 3, 4], [7, 7, 7, 8, 8]) == [3, 4, 3, 0, 1]
    assert partners([0, 1, 2, 3], [7, 8, 8, 7]) == [2, 3, 0, 1]


def test_one_place_has_no_partner():
    assert partners([5], [7]) is None
    assert partners([0, 1, 2], [7, 7, 7]) is None


def test_rings_of_a_row_of_chips_are_rotated_by_themselves():
    assert partners(range(6), [7, 8, 9, 10, 11, 12], 2) == [1, 0, 3, 2, 5, 4]
    assert partners([3, 0, 2, 1], [10, 7, 9, 8], 2) == [2, 3, 0, 1]
    assert partners(range(6), [7, 8, 9, 10, 11, 12], 3) == [1, 2, 0, 4, 5, 3]
    assert partners(range(8), [7, 7, 8, 8, 9, 9, 10, 10], 4) == [2, 3, 0, 1, 6, 7, 4, 5]
    # The last ring may be shorter.
    assert rings(range(5), [7, 8, 9, 10, 11], 3) == [[0, 1, 2], [3, 4]]


def test_a_ring_of_one_place_takes_in_the_next_and_the_last_joins_the_one_before():
    assert rings(range(6), [7, 7, 8, 9, 10, 10], 2) == [[0, 1, 2, 3, 4, 5]]
    assert rings(range(6), [7, 7, 8, 8, 9, 10], 2) == [[0, 1, 2, 3], [4, 5]]
    assert rings(range(3), [7, 8, 9], 2) == [[0, 1, 2]]
    assert partners(range(4), [7, 7, 7, 8], 2) == [3, 3, 3, 0]
    assert partners(range(4), [7, 7, 7, 7], 2) is None


@pytest.mark.parametrize("seed", range(5))
def test_partners_agree_with_a_plain_search(seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(9, generator=generator).tolist()
    place = torch.randint(0, 3, (9,), generator=generator).tolist()
    by_order = {index: i for i, index in enumerate(order)}
    for i, found in enumerate(partners(order, place)):
        before = next(step for step in range(9) if place[by_order[(order[i] - step - 1) % 9]] != place[i])
        later = [by_order[(order[i] + step) % 9] for step in range(1, 18)]
        other = next(step for step, j in enumerate(later) if place[j] != place[i])
        row = next(list(run) for _, run in itertools.groupby(later[other:], key=lambda j: place[j]))
        assert found == row[before % len(row)]


def test_random_vectors_reach_the_floor_of_0_0997():
    a, b = unit(4, 64, 64, 64), unit(4, 64, 64, 64, seed=1)
    assert uniformity_pairs(a, b).mean().item() == pytest.approx(0.0997, abs=0.001)


def test_collapse_gives_one_in_both_readings():
    field = unit(1, 1, 1, 64).expand(3, 8, 8, 64)
    assert uniformity_pairs(field, field).tolist() == pytest.approx([1, 1, 1])
    assert uniformity_channels(field, field, ALONE, 3).item() == pytest.approx(1)


def test_opposite_poles_give_one_for_pairs_and_nearly_nothing_for_channels():
    poles = torch.stack([unit(8, 8, 64), unit(8, 8, 64)])
    sign = torch.where(torch.arange(8)[:, None] % 2 == 0, 1.0, -1.0).expand(8, 8)[..., None]
    partner = poles * sign  # half of the pixels meet their own pole, half the opposite one
    assert uniformity_pairs(poles, partner).tolist() == pytest.approx([1, 1])
    assert uniformity_channels(poles, partner, ALONE, 2).item() < 0.2


@pytest.mark.parametrize("reading", ["pairs", "channels"])
def test_uniformity_passes_finite_differences(reading):
    a, b = unit(2, 2, 3, 5).requires_grad_(), unit(2, 2, 3, 5, seed=1).requires_grad_()
    term = uniformity_pairs if reading == "pairs" else lambda u, v: uniformity_channels(u, v, ALONE, 2)
    assert torch.autograd.gradcheck(term, (a, b))


# --- consistency -----------------------------------------------------------------------------------------------------


def test_gradients_of_a_partner_that_three_samples_share_add_up_in_a_fixed_order():
    mean = torch.randn(4, 2, 2, 3, requires_grad=True)
    met = Partners.of(partners([0, 1, 2, 3], [7, 7, 8, 7]), ALONE, [4])
    with Operators() as backward:
        torch.autograd.backward(met.fields(mean, ALONE)[1], torch.ones_like(mean))
    assert mean.grad[:, 0, 0, 0].tolist() == [0, 0, 3, 1]
    # It takes its rows in the order in which threads come, on a GPU.
    assert backward.names and "aten.index_add.default" not in backward.names


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_consistency_is_0_for_equal_half_for_orthogonal_and_1_for_opposite_fields():
    field = unit(1, 4, 4, 64)
    other = unit(1, 4, 4, 64, seed=1)
    orthogonal = F.normalize(other - (other * field).sum(-1, keepdim=True) * field, dim=-1)
    for student, expected in ((field, 0), (orthogonal, 0.5), (-field, 1)):
        assert consistency(field, student).item() == pytest.approx(expected, abs=1e-12)


def test_consistency_passes_finite_differences_in_both_fields():
    a, b = unit(2, 2, 3, 5).requires_grad_(), unit(2, 2, 3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(consistency, (a, b))


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_text_without_uncertainty_takes_exactly_its_pixel():
    field = unit(2, 5, 5, 8)
    found = disc_mean(field, torch.tensor([1, 0]), torch.tensor([[1, 4], [0, 0]]), torch.tensor([0.0, 0.9]))
    assert torch.allclose(found, torch.stack([field[1, 1, 4], field[0, 0, 0]]))


def test_an_uncertain_text_takes_the_disc_and_no_pixel_beyond():
    field = unit(1, 7, 7, 8)
    found = disc_mean(field, torch.tensor([0]), torch.tensor([[3, 3]]), torch.tensor([1.0]))
    plus = field[0, 3, 3] + field[0, 2, 3] + field[0, 4, 3] + field[0, 3, 2] + field[0, 3, 4]
    assert torch.allclose(found[0], F.normalize(plus, dim=0))
    odd = field.clone()
    odd[0, 2, 2] = -odd[0, 2, 2]
    assert torch.equal(found, disc_mean(odd, torch.tensor([0]), torch.tensor([[3, 3]]), torch.tensor([1.0])))


@pytest.mark.parametrize(("radius", "pixels"), [(0.9, 1), (1.0, 5), (2.0, 13), (2.3, 21)])
def test_a_disc_holds_the_pixels_whose_centres_lie_within_its_radius(radius, pixels):
    own_direction = torch.eye(49).reshape(1, 7, 7, 49)
    found = disc_mean(own_direction, torch.tensor([0]), torch.tensor([[3, 3]]), torch.tensor([radius]))
    assert (found > 0).sum() == pixels


def clip_loss(text, place, scale):
    logits = scale * text @ place.T
    target = torch.arange(len(text))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test_info_nce_is_the_standard_clip_loss():
    text, place, scale = unit(5, 8), unit(5, 8, seed=1), torch.tensor([14.3], dtype=torch.float64)
    found = info_nce(text, place, same_texts(range(5), 0, 5), scale, ALONE, [5])
    assert found.mean().item() == pytest.approx(clip_loss(text, place, scale).item())


def test_rows_of_the_same_text_are_not_negatives_of_each_other():
    text, place, scale = unit(4, 8), unit(4, 8, seed=1), torch.tensor([10.0], dtype=torch.float64)
    found = info_nce(text, place, same_texts([3, 9, 3, 5], 0, 4), scale, ALONE, [4])
    without = [0, 1, 3]
    alone = clip_loss_row(text[without], place[without], scale, 0)
    assert found[0].item() == pytest.approx(alone)
    assert found[1].item() == pytest.approx(clip_loss_row(text, place, scale, 1))


def clip_loss_row(text, place, scale, row):
    logits = scale * text @ place.T
    return float(-(logits.log_softmax(1)[row, row] + logits.log_softmax(0)[row, row]) / 2)


def test_fewer_than_two_different_texts_give_no_loss():
    assert same_texts([], 0, 0) is None and same_texts([1], 0, 1) is None
    assert same_texts([4, 4, 4], 0, 3) is None and same_texts([4, 4, 4], 2, 0) is None


def test_a_rank_knows_which_texts_of_the_others_are_its_own():
    assert same_texts([4, 7, 4, 4], 2, 2).tolist() == [[True, False, False, True], [True, False, True, False]]
    assert same_texts([4, 7], 2, 0).shape == (0, 2)  # a rank without texts


def test_the_contrastive_term_passes_finite_differences():
    text, field = unit(3, 5).requires_grad_(), unit(3, 4, 4, 5, seed=1).requires_grad_()
    scale = torch.tensor([7.0], dtype=torch.float64, requires_grad=True)
    pixel, radius = torch.tensor([[0, 0], [3, 1], [2, 2]]), torch.tensor([0.0, 1.0, 1.5])

    def term(t, m, s):
        return info_nce(t, disc_mean(m, torch.arange(3), pixel, radius), same_texts([1, 2, 1], 0, 3), s, ALONE, [3])

    assert torch.autograd.gradcheck(term, (text, field, scale))
