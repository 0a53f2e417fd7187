"""Functions by the names that a config gives them."""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar('F', bound=Callable)


class Registry(dict[str, Callable[..., Any]]):
    """Functions by name; a config file can add its own before it names it.

    Args:
      field: of the config, for messages.
    """

    def __init__(self, field: str):
        super().__init__()
        self._field = field

    def add(self, name: str) -> Callable[[F], F]:
        """Returns a decorator that registers a function.

        Raises:
          ValueError: if the name is taken.
        """
        def register(function: F) -> F:
            if name in self:
                raise ValueError(f'{self._field}: {name!r} is taken')
            self[name] = function
            return function
        return register

    def check(self, name: str) -> None:
        """Raises ValueError for an unknown name; lists those that are known."""
        if name not in self:
            raise ValueError(f'{self._field} must be one of {sorted(self)}, got {name!r}')
