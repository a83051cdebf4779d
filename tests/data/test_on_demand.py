"""Items that are made when they are asked for."""

import weakref

from aef.data.on_demand import OnDemand, select


class Made:
    def __init__(self, key):
        self.key = key


def test_items_are_made_anew_and_held_by_nobody():
    alive = []

    def make(key):
        alive.append(weakref.ref(item := Made(key)))
        return item

    items = OnDemand("abcd", make)
    assert len(items) == 4 and not alive
    some = select(items[1:], lambda item: item.key != "c")
    assert [item.key for item in some] == ["b", "d"] and [reference() for reference in alive] == [None] * 5
    for _ in items:
        assert sum(reference() is not None for reference in alive) == 1
    assert items[-1].key == "d" and items[0] is not items[0]


def test_what_is_selected_of_a_list_is_the_same():
    items = [Made(1), Made(2)]
    assert list(select(items, lambda item: item.key == 2)) == items[1:]
