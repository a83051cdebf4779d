"""Items that are made when they are asked for, as the chips of a folder that does not fit in memory."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class OnDemand(Sequence[T]):
    """``make(key)`` for each key, anew whenever it is asked for and held by nobody: going through them twice makes each
    twice. A slice is of the same kind.

    Example::

        chips = OnDemand(folder.files, model.read)
    """

    def __init__(self, keys: Sequence[K], make: Callable[[K], T]) -> None:
        self._keys, self._make = keys, make

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return OnDemand(self._keys[index], self._make)
        return self._make(self._keys[operator.index(index)])

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self._keys)  # which, unlike a generator's frame, lets an item go


def select(items: Sequence[T], keep: Callable[[T], bool]) -> Sequence[T]:
    """The items that are to be kept, each still held by `items` alone."""
    return OnDemand([index for index, item in enumerate(items) if keep(item)], items.__getitem__)
