"""Which chips a run passes over, as all of its ranks know it."""

from aef.training.bad_chips import BadChips


class Two:
    """Two ranks, of which the other has found some chips."""

    def __init__(self, other):
        self.other = other

    def gather(self, own):
        return [[list(pair) for pair in found] for found in (own, self.other)]


def test_chips_that_several_ranks_have_found_are_new_once():
    bad = BadChips(chips=1000, most=0.01, known=["a.npz"])
    new = bad.add([("b.npz", "is cut"), ("a.npz", "is cut")], Two([("b.npz", "is cut"), ("c.npz", "band B10")]))
    assert new == {"b.npz": "is cut", "c.npz": "band B10"}
    assert bad.names == {"a.npz", "b.npz", "c.npz"}
    assert bad.add([], Two([("c.npz", "band B10")])) == {}


def test_a_share_of_the_chips_may_be_bad_and_one_always():
    bad = BadChips(chips=1000, most=0.01, known=[f"{n}.npz" for n in range(10)])
    assert bad.too_many is None
    bad.add([("new.npz", "is cut")], Two([]))
    assert bad.too_many.startswith(
        "11 of 1000 training chips are bad, more than data.max_bad=0.01 of them: events.jsonl"
    )
    assert BadChips(chips=5, most=0.0, known=["a.npz"]).too_many is None
    assert BadChips(chips=5, most=0.0, known=["a.npz", "b.npz"]).too_many is not None
