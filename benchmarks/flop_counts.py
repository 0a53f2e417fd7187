"""Counts of floating-point operations, as XLA compiles programs, and of how often they run.

XLA's `cost_analysis` counts the body of a loop once, however often it runs. Programs are
therefore compiled a second time for counting, with their loops over layers unrolled; the
one loop whose length is not static, that of decoding, tells how often it ran.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

_JIT = jax.jit  # The real one, also while a `Recorder` has put its own in place.


@contextlib.contextmanager
def unrolled_loops() -> Iterator[None]:
    """Traces `jax.lax.scan` and `jax.lax.map` without loops."""
    scan = jax.lax.scan

    def unrolled(f, init, xs=None, length=None, reverse=False, unroll=1, **options):
        del unroll
        return scan(f, init, xs, length, reverse, unroll=True, **options)

    def mapped(f, xs, **_):
        return jax.vmap(f)(xs)

    with mock.patch.object(jax.lax, 'scan', unrolled), mock.patch.object(jax.lax, 'map', mapped):
        yield


def count(function: Callable, *args: Any, **static: Any) -> float:
    """Returns the operations of one call, as compiled for this machine.

    Args:
      function: not jitted; a loop of unknown length in it counts as one pass.
      *args: pytrees of arrays or shapes.
      **static: arguments that are not traced.
    """
    with unrolled_loops():
        # A new function: nothing that was traced before, with its loops, is used again.
        lowered = _JIT(lambda *arrays: function(*arrays, **static)).lower(*args)
        # Of what only copies nothing is told.
        return float((lowered.compile().cost_analysis() or {}).get('flops', 0.0))


def shapes(tree: Any) -> Any:
    """Returns a pytree with shapes and dtypes in place of arrays."""
    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            np.shape(x), x.dtype if hasattr(x, 'dtype') else jnp.result_type(x))

    return jax.tree.map(shape, tree)


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with the shapes of its arguments.

    Attributes:
      name: of the function.
      function: before it was jitted, of its traced arguments alone.
      arguments: shapes.
    """

    name: str
    function: Callable
    arguments: tuple[Any, ...]

    @functools.cached_property
    def operations(self) -> float:
        """Of one call, or of one pass of its loop of unknown length."""
        return count(self.function, *self.arguments)


@dataclasses.dataclass
class Runs:
    """How often a program has been called, and its loop gone round."""

    program: Program
    calls: int = 0
    passes: int = 0


class Recorder:
    """Notes what is called of everything that is jitted while `recording`."""

    def __init__(self) -> None:
        self._runs: dict[Any, Runs] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """While it is open, `jax.jit` makes functions that are recorded."""
        with mock.patch.object(jax, 'jit', self._recorded_jit):
            yield

    def _recorded_jit(self, function: Callable | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(self._recorded_jit, **options)
        jitted = _JIT(function, **options)
        static = options.get('static_argnums', ())
        static = {static} if isinstance(static, int) else set(static)
        if options.get('static_argnames'):
            return jitted  # None of those that matter names its static arguments.

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs:
                return jitted(*args, **kwargs)
            # Before the call, which may take arguments over.
            runs = self._runs_of(function, args, static)
            result = jitted(*args)
            runs.calls += 1
            runs.passes += _passes(result)
            return result

        return call

    def _runs_of(self, function: Callable, args: tuple, static: set[int]) -> Runs:
        fixed = {n: arg for n, arg in enumerate(args) if n in static}
        traced = tuple(shapes(arg) for n, arg in enumerate(args) if n not in static)
        leaves, structure = jax.tree.flatten(traced)
        key = (id(function), structure, tuple((x.shape, str(x.dtype)) for x in leaves),
               tuple(fixed.items()))

        def of_traced(*arrays: Any) -> Any:
            rest = iter(arrays)
            return function(*(fixed[n] if n in fixed else next(rest) for n in range(len(args))))

        name = getattr(function, '__name__', 'other')
        return self._runs.setdefault(key, Runs(Program(name, of_traced, traced)))

    def take(self) -> list[Runs]:
        """Returns what has been called since the last time, and begins anew."""
        taken = [dataclasses.replace(runs) for runs in self._runs.values() if runs.calls]
        for runs in self._runs.values():
            runs.calls = runs.passes = 0
        return taken


def _passes(result: Any) -> int:
    """Passes of the loop of a call, as its result tells; 1 where there is none."""
    parts = result if isinstance(result, tuple) else (result,)
    told = [part.passes for part in parts if hasattr(part, 'passes')]
    return int(told[0]) if told else 1


def total(runs: Iterable[Runs]) -> dict[str, float]:
    """Returns the operations of all that ran, by name of the program."""
    sums: dict[str, float] = {}
    for run in runs:
        name = run.program.name
        sums[name] = sums.get(name, 0.0) + run.program.operations * run.passes
    return sums


@dataclasses.dataclass(frozen=True)
class Curve:
    """Operations against a length, known at a few and linear in between."""

    known: Mapping[int, float]

    def __call__(self, length: int) -> float:
        """Raises ValueError past the known lengths."""
        lengths = sorted(self.known)
        if not lengths[0] <= length <= lengths[-1]:
            raise ValueError(f'{length} is not between {lengths[0]} and {lengths[-1]}')
        return float(np.interp(length, lengths, [self.known[n] for n in lengths]))
