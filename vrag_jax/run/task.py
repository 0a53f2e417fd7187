"""What a task is: a function of a run, and what it needs of the config."""

import dataclasses
from collections.abc import Callable

from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.training.phase import Phase


def no_check(config: RunConfig) -> None:
    """Of a task without checks of its own."""


def pages(config: RunConfig) -> tuple[str, ...]:
    """The field that most tasks need: the manifest of the pages."""
    return ('data.manifest',)


@dataclasses.dataclass(frozen=True)
class Task:
    """A value of `config.task`; `tasks.registry` holds them by name.

    Attributes:
      run: does it.
      phases: make the training phases that it has, of the config.
      settings: dataclass of the section of the config that has the task's name, if it has one.
      check: refuses configs with which it cannot work, by a `ConfigError`.
      needs: fields of files that must be given, of the config.
      policy: whether it is about a policy, be it its sizes alone.
      asks: whether it asks the policy: needs its weights, tokenizer and prompt.
      searches: whether it searches the pages, of the config.
      mesh: whether it uses the mesh.
      devices: how many devices it is about, of the config; None counts those of this machine.
    """

    run: Callable[[RunContext], None]
    phases: tuple[Callable[[RunConfig], Phase], ...] = ()
    settings: type | None = None
    check: Callable[[RunConfig], None] = no_check
    needs: Callable[[RunConfig], tuple[str, ...]] = pages
    policy: bool = True
    asks: bool = False
    searches: Callable[[RunConfig], bool] = lambda config: True
    mesh: bool = True
    devices: Callable[[RunConfig], int] | None = None
