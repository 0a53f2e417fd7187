"""A lazily evaluated sequence."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

S = TypeVar('S')
T = TypeVar('T')


class MappedSequence(Sequence[T], Generic[S, T]):
    """What a function makes of the items of another sequence; nothing is kept.

    Args:
      items: the other sequence.
      make: takes an item's index and the item.
    """

    def __init__(self, items: Sequence[S], make: Callable[[int, S], T]):
        self._items = items
        self._make = make

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index):
        # A range knows about negative numbers and about the end.
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        return self._make(places, self._items[places])
