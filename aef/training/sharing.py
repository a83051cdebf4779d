"""Who gets what of a global batch: samples spread over ranks and micro-batches so that each has about the same work."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def share(costs: Sequence[float], capacities: Sequence[int], groups: Sequence[int] | None = None) -> list[list[int]]:
    """Spread items over bins of given capacities so that their costs are about equal: dearest first into the cheapest bin.

    Items of the same number in ``groups`` stay together (crops of a chip, which is then read once): they take the
    cheapest bin that has room for all of them, and are divided only where none has.

    Returns the items of each bin in ascending order. Capacities must sum to the number of items.
    """
    together: dict[int, list[int]] = {}
    for item in range(len(costs)):
        together.setdefault(item if groups is None else groups[item], []).append(item)
    bins: list[list[int]] = [[] for _ in capacities]
    open_bins = [(0.0, number) for number, capacity in enumerate(capacities) if capacity]

    def room(number: int) -> int:
        return capacities[number] - len(bins[number])

    def waiting(items: list[int]) -> tuple[float, list[int]]:
        return -sum(costs[item] for item in items), items

    queue = [waiting(items) for items in together.values()]
    heapq.heapify(queue)
    while queue:
        _, items = heapq.heappop(queue)
        fitting = [each for each in open_bins if room(each[1]) >= len(items)]
        if fitting:
            chosen = min(fitting)
        else:
            chosen = max(open_bins, key=lambda each: (room(each[1]), -each[0], -each[1]))
            items, rest = items[: room(chosen[1])], items[room(chosen[1]) :]
            heapq.heappush(queue, waiting(rest))
        total, number = chosen
        open_bins.remove(chosen)
        bins[number] += items
        if room(number):
            open_bins.append((total + sum(costs[item] for item in items), number))
    return [sorted(items) for items in bins]
