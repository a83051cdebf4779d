"""Parts of a list of work: each is said, or taken from the rank that torchrun gave."""

import pytest

from aef.part import is_a_rank_of_several, parse_part, part_of_rank


def test_a_part_is_counted_from_one():
    assert parse_part("2/8") == (2, 8) and str(parse_part("8/8")) == "8/8"


@pytest.mark.parametrize("text", ["0/8", "9/8", "3/2", "0/0", "8", "a/b", "1/2/3", "-1/2", "1.5/2", ""])
def test_what_is_no_part_is_refused_with_what_was_found(text):
    with pytest.raises(ValueError, match=r"--part: expected K/N with K from 1 to N, like 2/8, found") as refused:
        parse_part(text)
    assert repr(text) in str(refused.value)


def test_a_rank_of_torchrun_has_the_part_after_its_number():
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "4"} for rank in range(4)]
    assert [str(part_of_rank(rank)) for rank in ranks] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(map(is_a_rank_of_several, ranks))
    assert not is_a_rank_of_several({"WORLD_SIZE": "4"}) and not is_a_rank_of_several({"RANK": "0", "WORLD_SIZE": "1"})
    for wrong in ({}, {"RANK": "0"}, {"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "a", "WORLD_SIZE": "4"}):
        with pytest.raises(ValueError, match=r"--part auto: expected the environment of torchrun, found RANK=.*K/N"):
            part_of_rank(wrong)
